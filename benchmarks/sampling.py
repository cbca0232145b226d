"""Sampling of codes, and the tokenizer: ours beside transformers' generate and beside what the machine allows.

    python3 benchmarks/sampling.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import SamplingBenchmark
from engine.config import run


def main(options: SamplingBenchmark) -> None:
    from benchmarks.sampling_contenders import compare

    compare(options)


if __name__ == "__main__":
    run(main, SamplingBenchmark)
