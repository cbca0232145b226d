"""Train a text-conditional GPT on captioned pictures, on one process or many (DDP).

    torchrun --nproc_per_node=8 autoregressive/train/train_t2i.py --cloud-save-path DIR --data-path LISTS \
        --t5-feat-path FEATURES --vq-ckpt ./pretrained_models/vq_ds16_t2i.pt --image-size 256 --gpt-model GPT-XL

Stage 2 goes on at another size: the same with --image-size 512, --gpt-ckpt CHECKPOINT and --short-t5-feat-path DIR.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.train.options import TrainT2I
from engine.config import run


def main(options: TrainT2I) -> None:
    from autoregressive.train.text_task import train_t2i

    train_t2i(options)


if __name__ == "__main__":
    run(main, TrainT2I)
