"""Pictures through vLLM: ours beside the plain sampler, and what clients of the server wait. Needs vLLM.

    .venv-serve/bin/python benchmarks/serving.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import ServingBenchmark
from engine.config import run


def main(options: ServingBenchmark) -> None:
    from benchmarks.serving_contenders import compare

    compare(options)


if __name__ == "__main__":
    run(main, ServingBenchmark)
