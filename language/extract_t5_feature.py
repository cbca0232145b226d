"""Encode lists of captions into packed features, on one process or many; a stopped extraction goes on where it was.

    torchrun --nproc_per_node=8 language/extract_t5_feature.py --data-path LISTS --data-start 0 --data-end 99 \
        --t5-path FEATURES --t5-model-path ./pretrained_models/t5-ckpt --t5-model-type flan-t5-xl --caption-key blip
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run
from language.options import ExtractFeatures


def main(options: ExtractFeatures) -> None:
    from language.extract_task import extract_features

    extract_features(options)


if __name__ == "__main__":
    run(main, ExtractFeatures)
