"""Find the guidance scale: score a few thousand samples at each of a grid of scales (and top-k, top-p, temperature).

    python3 evaluations/search.py --gpt-ckpt pretrained_models/c2i_B_256.pt --vq-ckpt pretrained_models/vq_ds16_c2i.pt \
        --reference VIRTUAL_imagenet256_labeled.npz --cfg-scales 1.0 1.5 2.0 2.5 --output search/B

Any number of processes by torchrun. Stopped, the same command goes on where it was.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run
from evaluations.search_options import Search


def main(options: Search) -> None:
    from evaluations.search_task import search

    search(options)


if __name__ == "__main__":
    run(main, Search)
