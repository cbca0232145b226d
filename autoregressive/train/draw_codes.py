"""Draw pictures back from a code store, to see what a GPT will learn from.

    python3 autoregressive/train/draw_codes.py --code-path DIR --vq-ckpt VQ.pt --pictures 0 1 2 3 --output codes.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.train.options import DrawCodes
from engine.config import run


def main(options: DrawCodes) -> None:
    from autoregressive.train.store_tools import draw_codes

    draw_codes(options)


if __name__ == "__main__":
    run(main, DrawCodes)
