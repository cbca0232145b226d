"""Training of the GPT: our step beside transformers' Llama of the same shape, and what whole logits take.

    python3 benchmarks/training.py
    python3 benchmarks/training.py --gpt-model GPT-XL --codes 576 --only ours-compiled transformers-compiled
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import TrainingBenchmark
from engine.config import run


def main(options: TrainingBenchmark) -> None:
    from benchmarks.training_contenders import compare

    compare(options)


if __name__ == "__main__":
    run(main, TrainingBenchmark)
