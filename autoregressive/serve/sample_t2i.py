"""Sample a grid of pictures from prompts through vLLM.

    python3 autoregressive/serve/sample_t2i.py --vq-ckpt ./pretrained_models/vq_ds16_t2i.pt \
        --gpt-ckpt ./pretrained_models/t2i_XL_stage1_256.pt --gpt-model GPT-XL --image-size 256 \
        --prompts "a red fox asleep in the snow" "a lighthouse in a storm, oil on canvas"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.serve.options import ServedT2I
from engine.config import run


def main(options: ServedT2I) -> None:
    from autoregressive.serve.sheets import sample_texts

    sample_texts(options)


if __name__ == "__main__":
    run(main, ServedT2I)
