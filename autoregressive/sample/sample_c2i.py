"""Sample a grid of pictures from classes.

    python3 autoregressive/sample/sample_c2i.py --vq-ckpt ./pretrained_models/vq_ds16_c2i.pt \
        --gpt-ckpt ./pretrained_models/c2i_L_384.pt --gpt-model GPT-L --image-size 384 --labels goldfish 387 "lion"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.sample.options import SampleC2I
from engine.config import run


def main(options: SampleC2I) -> None:
    from autoregressive.sample.grid import sample_grid

    sample_grid(options)


if __name__ == "__main__":
    run(main, SampleC2I)
