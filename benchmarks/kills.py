"""What kills cost a sharded training run: nothing but time. Its processes are killed at random moments.

    python3 benchmarks/kills.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import KillsTrial
from engine.config import run


def main(options: KillsTrial) -> None:
    from benchmarks.kills_trial import report

    report(options)


if __name__ == "__main__":
    run(main, KillsTrial)
