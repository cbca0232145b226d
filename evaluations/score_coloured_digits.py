"""Read sampled coloured digits: the shares with the digit, the colour and the ground that their prompts ask for.

    python3 evaluations/score_coloured_digits.py --samples samples/NAME --real coloured_digits
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run
from evaluations.coloured_digits_options import ScoreColouredDigits


def main(options: ScoreColouredDigits) -> None:
    from evaluations.coloured_digits_task import score

    score(options)


if __name__ == "__main__":
    run(main, ScoreColouredDigits)
