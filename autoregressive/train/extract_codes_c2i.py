"""Encode pictures into a code store, on one process or many; a stopped extraction goes on where it was.

    torchrun --nproc_per_node=8 autoregressive/train/extract_codes_c2i.py --vq-ckpt ./pretrained_models/vq_ds16_c2i.pt \
        --data-path IMAGENET/train --code-path DIR --ten-crop --crop-range 1.1 --image-size 384
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.train.options import ExtractCodes
from engine.config import run


def main(options: ExtractCodes) -> None:
    from autoregressive.train.extract import extract_codes

    extract_codes(options)


if __name__ == "__main__":
    run(main, ExtractCodes)
