"""Train a large class-conditional GPT, its weights sharded over processes (FSDP).

    torchrun --nproc_per_node=8 autoregressive/train/train_c2i_fsdp.py --cloud-save-path DIR --code-path DIR \
        --image-size 384 --gpt-model GPT-XXL
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.train.options import TrainSharded
from engine.config import run


def main(options: TrainSharded) -> None:
    from autoregressive.train.task import train_c2i

    train_c2i(options)


if __name__ == "__main__":
    run(main, TrainSharded)
