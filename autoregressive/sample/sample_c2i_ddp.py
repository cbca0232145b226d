"""Sample pictures by the thousand, for FID: PNGs and one npz. A stopped run goes on where it was.

    torchrun --nproc_per_node=8 autoregressive/sample/sample_c2i_ddp.py --vq-ckpt ./pretrained_models/vq_ds16_c2i.pt \
        --gpt-ckpt ./pretrained_models/c2i_B_384.pt --gpt-model GPT-B --image-size 384 --image-size-eval 256 \
        --cfg-scale 2.0
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.sample.options import SampleC2IMany
from engine.config import run


def main(options: SampleC2IMany) -> None:
    from autoregressive.sample.many import sample_many

    sample_many(options)


if __name__ == "__main__":
    run(main, SampleC2IMany)
