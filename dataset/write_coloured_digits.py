"""Write coloured handwritten digits with captions: pictures, lists for training, and prompts to sample.

    python3 dataset/write_coloured_digits.py --output coloured_digits
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.coloured_digits_options import ColouredDigits
from engine.config import run


def main(options: ColouredDigits) -> None:
    from dataset.coloured_digits import PROMPTS, write_pictures
    from engine.folders import made_once

    counts = {"train": options.train_pictures, "test": options.test_pictures, "seed": options.seed}
    with made_once(options.output, {"data": "coloured digits 2", **counts}, "--output") as folder:
        if folder:
            write_pictures(folder, **counts)
    print(f"{options.train_pictures} pictures to train on, {options.test_pictures} to test with, {PROMPTS} prompts "
          f"{'->' if folder else 'are there already:'} {options.output}")  # fmt: skip


if __name__ == "__main__":
    run(main, ColouredDigits)
