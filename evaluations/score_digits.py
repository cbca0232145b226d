"""Read sampled digits with a classifier that never saw the generator or its training pictures.

    python3 evaluations/score_digits.py --samples quickstart/samples/NAME.npz
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run


@dataclass
class Scoring:
    samples: str
    """An npz of sample_c2i_ddp.py: arr_0 uint8 [N, H, W, 3] and labels int64 [N]."""


def main(options: Scoring) -> None:
    from sklearn.svm import SVC

    from dataset.digits import digits_arrays
    from evaluations.digits import read_samples

    real, real_labels = digits_arrays("train")  # what the generator was trained on
    other, other_labels = digits_arrays("test")  # what the classifier is trained on
    pictures, asked = read_samples(options.samples)
    classifier = SVC(gamma=0.001).fit(other, other_labels)
    on_real = (classifier.predict(real) == real_labels).mean()
    on_samples = (classifier.predict(pictures) == asked).mean()
    print(f"read as the digit that was asked for: {on_samples:.3f} of {len(asked)} generated pictures")
    print(f"the same classifier on the other half of the real digits: {on_real:.3f} of {len(real_labels)}")


if __name__ == "__main__":
    run(main, Scoring)
