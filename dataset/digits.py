"""The handwritten digits that scikit-learn ships: 1,797 real scans, 8x8, grey levels 0 to 16, ten classes, no download.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998 (the test part).
"""

import numpy as np

from dataset.images import ArraySource


def digits_arrays(split: str = "all") -> tuple[np.ndarray, np.ndarray]:
    """Features uint8 [N, 64] from 0 to 16, labels int64 [N]. 'train': every other scan of a class; 'test': the rest."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("--dataset digits needs scikit-learn: pip install 'llamagen[eval]'") from error
    if split not in ("train", "test", "all"):
        raise ValueError(f"--split {split}: choose train, test or all")
    features, labels = load_digits(return_X_y=True)
    place = np.zeros(len(labels), np.int64)  # of a scan within its class
    for digit in range(10):
        of_class = labels == digit
        place[of_class] = np.arange(of_class.sum())
    chosen = np.ones(len(labels), bool) if split == "all" else place % 2 == (split == "test")
    return features[chosen].astype(np.uint8), labels[chosen].astype(np.int64)


def digits(split: str = "all") -> ArraySource:
    """White on black, 8x8; the crops enlarge them, by BICUBIC, to the size that is asked for."""
    features, labels = digits_arrays(split)
    grey = np.rint(features * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return ArraySource(np.repeat(grey, 3, axis=3), labels, [str(digit) for digit in range(10)])
