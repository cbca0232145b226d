"""Score pictures against a reference: Inception Score, FID, sFID, Precision, Recall, by ADM's protocol.

    python3 evaluations/c2i/evaluator.py VIRTUAL_imagenet256_labeled.npz samples/NAME.npz
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.config import run
from evaluations.options import Evaluate


def main(options: Evaluate) -> None:
    from evaluations.c2i.evaluate_task import evaluate

    evaluate(options)


if __name__ == "__main__":
    run(main, Evaluate)
