"""Write the originals of a data set, centre-cropped, as the npz that reconstructions are scored against.

    python3 tokenizer/validation/val_ddp.py --data-path IMAGENET/val --image-size 256
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.config import run
from tokenizer.validation.val_options import WriteOriginals


def main(options: WriteOriginals) -> None:
    from tokenizer.validation.val_task import write_originals

    write_originals(options)


if __name__ == "__main__":
    run(main, WriteOriginals)
