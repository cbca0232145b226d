"""Sample a grid of pictures of classes through vLLM.

    python3 autoregressive/serve/sample_c2i.py --vq-ckpt ./pretrained_models/vq_ds16_c2i.pt \
        --gpt-ckpt ./pretrained_models/c2i_XXL_384.pt --gpt-model GPT-XXL --from-fsdp --image-size 384
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.serve.options import ServedC2I
from engine.config import run


def main(options: ServedC2I) -> None:
    from autoregressive.serve.sheets import sample_classes

    sample_classes(options)


if __name__ == "__main__":
    run(main, ServedC2I)
