"""Score a tokenizer by its reconstructions: PSNR, SSIM, LPIPS, rFID, codebook usage, worst and best pictures.

    torchrun --nproc_per_node 8 tokenizer/tokenizer_image/reconstruction_vq_ddp.py --data-path IMAGENET/val \\
        --vq-ckpt ./pretrained_models/vq_ds16_c2i.pt
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.config import run
from tokenizer.tokenizer_image.reconstruct_options import ReconstructTokenizer


def main(options: ReconstructTokenizer) -> None:
    from tokenizer.tokenizer_image.reconstruct_task import reconstruct

    reconstruct(options)


if __name__ == "__main__":
    run(main, ReconstructTokenizer)
