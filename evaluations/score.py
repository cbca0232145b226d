"""The share of sampled pictures that a classifier reads as the class asked for, beside its share on real pictures.

    python3 evaluations/score.py --classifier classifier.safetensors --samples samples/NAME.npz \
        --dataset cifar10 --data-path DIR
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run
from evaluations.options import Score


def main(options: Score) -> None:
    from evaluations.score_task import score

    score(options)


if __name__ == "__main__":
    run(main, Score)
