"""Memory of a GPU that trains a large GPT with others: worked out, and traced by a real step on tensors without memory.

    python3 benchmarks/training_memory.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import TrainingMemory
from engine.config import run


def main(options: TrainingMemory) -> None:
    from benchmarks.training_memory_table import write

    write(options)


if __name__ == "__main__":
    run(main, TrainingMemory)
