"""Sampling of codes, and the tokenizer: ours beside transformers' generate and beside what the machine allows; what
looking ahead saves, and what fewer bits cost, on the pair that ships.

    python3 benchmarks/sampling.py --held-out CIFAR10/test --classifier results_cifar10/classifier-b.safetensors
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import SamplingBenchmark
from engine.config import run


def main(options: SamplingBenchmark) -> None:
    from benchmarks.sampling_table import compare

    compare(options)


if __name__ == "__main__":
    run(main, SamplingBenchmark)
