"""Train a small T5 on one's own captions, on a CPU within a minute: where a few kinds of captions are all there is.

    python3 language/train_small_t5.py --data-path coloured_digits/lists/train.jsonl --output t5/small
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run
from language.small_t5_options import SmallT5


def main(options: SmallT5) -> None:
    from language.small_t5_task import train_small_t5

    train_small_t5(options)


if __name__ == "__main__":
    run(main, SmallT5)
