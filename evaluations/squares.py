"""Pictures of any sizes as networks read them: each one's centre square, brought to one side.

As Parmar et al. 2022 ("clean-fid") prepare pictures for FID, which text-to-image models are scored by.

Axes: B pictures of a batch, S side of a square.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image

from evaluations.archive import EXTENSIONS, READERS, Pictures, read_picture, sha256_of

FORMATS = (*EXTENSIONS, ".bmp", ".pgm", ".ppm", ".tif", ".tiff")


class Squares(Pictures):
    """`files` of a folder, in that order: centre squares, Lanczos to `side`, then `resize` to what a network reads.

    `resize`: bytes_at or floats_at. The name of features that are kept beside the folder tells both.
    """

    names, meta = (), {}

    def __init__(self, folder: Path, files: Sequence[Path], side: int, resize: Callable, net_side: int):
        self.path, self.files, self.side = folder, files, side
        self.resize = partial(resize, side=net_side)
        self.preparation = f"lanczos{side}-{resize.__name__.removesuffix('_at')}{net_side}"
        self.shape = (len(files), net_side, net_side)

    @property
    def stem(self) -> str:
        return f"{self.path.name}.{self.preparation}"

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """uint8 or float32 [size or fewer, S, S, 3], from 0 to 255."""
        with ThreadPoolExecutor(READERS) as readers:
            for first in range(0, len(self), size):
                yield np.stack(list(readers.map(self.read, self.files[first : first + size])))

    def read(self, file: Path) -> np.ndarray:
        return self.resize(centre_square(read_picture(file), self.side))

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.files)


def files_below(folder: Path) -> list[Path]:
    """The pictures in a folder and in those within it."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in FORMATS and file.name[0] != ".")


def centre_square(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [side, side, 3]: as wide and high as its short side, from its centre, then Lanczos."""
    height, width = picture.shape[:2]
    short = min(height, width)
    top, left = (round((length - short) / 2) for length in (height, width))  # halves to even, as torchvision's crop
    square = picture[top : top + short, left : left + short]
    return np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.LANCZOS))


def bytes_at(square: np.ndarray, side: int) -> np.ndarray:
    """uint8 [S, S, 3] -> [side, side, 3], bicubic, rounded: what CLIP reads."""
    return np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))


def floats_at(square: np.ndarray, side: int) -> np.ndarray:
    """uint8 [S, S, 3] -> float32 [side, side, 3], bicubic, each channel by itself and not rounded to bytes.

    Rounding and resizing without a filter were what made FIDs of different programs differ (Parmar et al. 2022).
    """
    channels = [Image.fromarray(square[:, :, c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(channel.resize((side, side), Image.Resampling.BICUBIC)) for channel in channels]
    return np.stack(resized, 2).clip(0, 255)
