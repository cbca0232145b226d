"""Extract the codes of captioned pictures, a code store for each list; a stopped extraction goes on where it was.

    torchrun --nproc_per_node=8 autoregressive/train/extract_codes_t2i.py --data-path LISTS --code-path DIR \
        --data-start 0 --data-end 9 --vq-ckpt ./pretrained_models/vq_ds16_t2i.pt --image-size 512
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.train.options import ExtractTextCodes
from engine.config import run


def main(options: ExtractTextCodes) -> None:
    from autoregressive.train.extract import extract_list_codes

    extract_list_codes(options)


if __name__ == "__main__":
    run(main, ExtractTextCodes)
