"""Train an image tokenizer, on one process or many (DDP).

    torchrun --nproc_per_node=8 tokenizer/tokenizer_image/vq_train.py --cloud-save-path DIR --data-path IMAGENET/train \
        --image-size 256 --vq-model VQ-16
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.config import run
from tokenizer.tokenizer_image.vq_options import TrainTokenizer


def main(options: TrainTokenizer) -> None:
    from tokenizer.tokenizer_image.vq_task import train_tokenizer

    train_tokenizer(options)


if __name__ == "__main__":
    run(main, TrainTokenizer)
