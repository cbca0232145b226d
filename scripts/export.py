"""Write a checkpoint's weights for others: .pt, .safetensors, or a folder for the Hub with a model card.

    python3 scripts/export.py --ckpt results/my-gpt/checkpoints/0005000 --use-ema --output my-gpt.pt
    python3 scripts/export.py --ckpt results/my-gpt/checkpoints/0005000 --output my-gpt --push-to-hub USER/my-gpt
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autoregressive.export_options import Export
from engine.config import run


def main(options: Export) -> None:
    from autoregressive.export import export

    export(options)


if __name__ == "__main__":
    run(main, Export)
