"""Train a class-conditional GPT on extracted codes, on one process or many (DDP).

    torchrun --nproc_per_node=8 autoregressive/train/train_c2i.py --cloud-save-path DIR --code-path DIR \
        --image-size 384 --gpt-model GPT-B
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.train.options import TrainC2I
from engine.config import run


def main(options: TrainC2I) -> None:
    from autoregressive.train.task import train_c2i

    train_c2i(options)


if __name__ == "__main__":
    run(main, TrainC2I)
