"""Score pictures against their captions (CLIP score) and against real pictures (FID, clean-fid's way).

    python3 evaluations/t2i/evaluation.py --fake_dir samples_coco/NAME --ref_dir COCO --how_many 30000
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.config import run
from evaluations.t2i.options import EvaluateT2I


def main(options: EvaluateT2I) -> None:
    from evaluations.t2i.evaluation_task import evaluate

    evaluate(options)


if __name__ == "__main__":
    run(main, EvaluateT2I)
