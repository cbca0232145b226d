"""Turn caption features in the published layout (one .npy per caption) into packed feature stores.

    python3 language/convert_t5_features.py --published DIR --data-path LISTS --t5-path FEATURES
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run
from language.options import ConvertFeatures


def main(options: ConvertFeatures) -> None:
    from language.extract_task import convert

    convert(options)


if __name__ == "__main__":
    run(main, ConvertFeatures)
