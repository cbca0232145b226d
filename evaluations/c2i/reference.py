"""Make a reference file for the evaluator, statistics and 10,000 pictures, from a folder or data set.

    python3 evaluations/c2i/reference.py --dataset imagenet --data-path IMAGENET/train --output imagenet256.npz
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.config import run
from evaluations.options import Reference


def main(options: Reference) -> None:
    from evaluations.c2i.reference_task import make_reference

    make_reference(options)


if __name__ == "__main__":
    run(main, Reference)
