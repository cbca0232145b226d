"""Sample a picture for each prompt of a list: PNGs, captions.txt and result.jsonl. A stopped run goes on where it was.

    torchrun --nproc_per_node=8 autoregressive/sample/sample_t2i_ddp.py --prompt-csv PartiPrompts.tsv \
        --vq-ckpt ./pretrained_models/vq_ds16_t2i.pt --gpt-ckpt ./pretrained_models/t2i_XL_stage1_256.pt \
        --gpt-model GPT-XL --image-size 256 --sample-dir samples_parti
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.sample.options import SampleT2IMany
from engine.config import run


def main(options: SampleT2IMany) -> None:
    from autoregressive.sample.many_prompts import sample_many_prompts

    sample_many_prompts(options)


if __name__ == "__main__":
    run(main, SampleT2IMany)
