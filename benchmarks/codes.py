"""Codes for training: our store beside one file per picture, and how fast codes are extracted.

    python3 benchmarks/codes.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import CodesBenchmark
from engine.config import run


def main(options: CodesBenchmark) -> None:
    from benchmarks.codes_contenders import compare

    compare(options)


if __name__ == "__main__":
    run(main, CodesBenchmark)
