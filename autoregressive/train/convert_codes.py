"""Turn codes in the published layout (one .npy per picture) into a code store.

    python3 autoregressive/train/convert_codes.py --published DIR --image-size 384 --code-path OUT
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from autoregressive.train.options import ConvertCodes
from engine.config import run


def main(options: ConvertCodes) -> None:
    from autoregressive.train.store_tools import convert_codes

    convert_codes(options)


if __name__ == "__main__":
    run(main, ConvertCodes)
