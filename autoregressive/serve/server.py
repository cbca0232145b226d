"""Serve pictures over HTTP, by the OpenAI images API.

    python3 autoregressive/serve/server.py --vq-ckpt ./pretrained_models/vq_ds16_c2i.pt \
        --gpt-ckpt ./pretrained_models/c2i_L_384.pt

    curl http://127.0.0.1:8000/v1/images/generations -H "Content-Type: application/json" \
        -d '{"prompt": "golden retriever", "n": 2, "seed": 1, "cfg_scale": 4}'

Without weights it serves the small pair that ships. --gpt-type t2i: --gpt-ckpt is a text-conditional model.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.serve.options import Serve
from engine.config import run


def main(options: Serve) -> None:
    from autoregressive.serve.listen import serve

    serve(options)


if __name__ == "__main__":
    run(main, Serve)
