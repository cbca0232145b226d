"""Reconstruct picture files with a tokenizer, each beside its original.

    python3 tokenizer/tokenizer_image/vq_demo.py --image-path a.jpg b.png --vq-ckpt ./pretrained_models/vq_ds16_c2i.pt
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.config import run
from tokenizer.tokenizer_image.vq_options import DemoTokenizer


def main(options: DemoTokenizer) -> None:
    from tokenizer.tokenizer_image.vq_reconstruct import reconstruct_files

    reconstruct_files(options)


if __name__ == "__main__":
    run(main, DemoTokenizer)
