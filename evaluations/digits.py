"""Sampled digits as scikit-learn's classifiers want them."""

import numpy as np


def read_samples(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Features float [N, 64] from 0 to 16, and the labels that were asked for, int64 [N], from a sampler's npz.

    Pictures of 8k x 8k pixels are averaged to the 8 x 8 of scikit-learn's digits.
    """
    try:
        with np.load(path) as data:
            pictures, labels = data["arr_0"], data["labels"]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"--samples {path}: not an npz of sample_c2i_ddp.py ({error})") from error
    count, height, width, _ = pictures.shape
    if height != width or height % 8:
        raise ValueError(f"--samples {path}: pictures of {height} x {width} px; expected squares of 8, 16, ... px")
    grey = pictures.mean(-1).reshape(count, 8, height // 8, 8, width // 8).mean((2, 4))  # [N, 8, 8]
    return grey.reshape(count, 64) * (16 / 255), labels
