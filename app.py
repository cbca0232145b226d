"""A page to play with the models in a browser: classes, prompts, completion, the tokenizer.

    python3 app.py
    python3 app.py --vq-ckpt pretrained_models/vq_ds16_c2i.pt --gpt-ckpt pretrained_models/c2i_L_384.pt

Without weights it takes the published ones that are in pretrained_models/, else the small pair that ships.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from autoregressive.demo.options import App
from engine.config import run


def main(options: App) -> None:
    from autoregressive.demo.serve import serve

    serve(options)


if __name__ == "__main__":
    run(main, App)
