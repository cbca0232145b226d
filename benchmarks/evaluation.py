"""Scores: feature extraction beside pytorch-fid and torch-fidelity, precision and recall, distances, memory.

    python3 benchmarks/evaluation.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import EvaluationBenchmark
from engine.config import run


def main(options: EvaluationBenchmark) -> None:
    from benchmarks.evaluation_contenders import compare

    compare(options)


if __name__ == "__main__":
    run(main, EvaluationBenchmark)
