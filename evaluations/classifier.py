"""Train a small convolutional classifier on pictures of 32 to 64 pixels; its accuracy on held-out ones is printed.

    python3 evaluations/classifier.py --dataset cifar10 --data-path DIR --width 64 --global-seed 0

It scores samples (evaluations/score.py), or its features train a tokenizer (--perceptual-net of vq_train.py).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run
from evaluations.options import TrainClassifier


def main(options: TrainClassifier) -> None:
    from evaluations.classifier_task import train_classifier

    train_classifier(options)


if __name__ == "__main__":
    run(main, TrainClassifier)
