"""Pictures as the page shows them.

Axes: B pictures, S side of a picture in pixels, h rows and w columns of codes.
"""

import colorsys
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from autoregressive.sample.drawn import resized
from dataset.augmentation import center_crop_arr, check_aspect
from dataset.images import read_rgb
from evaluations.images import grid

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # not EPS, say, for which Pillow starts another program
SHEET = 768  # pixels: the side of a sheet that is only looked at for a moment
LONGEST = 4096  # pixels: the longer side of an upload is brought down to it


def opened(path: str | Path | None) -> tuple[Image.Image, str]:
    """An upload as an upright RGB picture, and a word on what was done to it. ValueError where it is no picture."""
    if path is None:
        raise ValueError("Choose a picture first.")
    try:
        picture = read_rgb(path, upright=True, formats=FORMATS)
    except ValueError as error:
        raise ValueError("This file is not a picture that can be read: choose a PNG, JPEG or WebP of at most "
                         "40 megapixels.") from error  # fmt: skip
    check_aspect(picture)
    if max(picture.size) <= LONGEST:
        return picture, ""
    width, height = picture.size
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    return picture, f"{width} x {height} pixels were scaled down to {picture.width} x {picture.height}. "


def fitted(picture: Image.Image, side: int) -> tuple[np.ndarray, str]:
    """Its centre at the model's size, uint8 [S, S, 3], and a word on it."""
    if picture.size == (side, side):
        return np.asarray(picture), ""
    what = f"The centre of {picture.width} x {picture.height} pixels was brought to {side} x {side}. "
    return np.asarray(center_crop_arr(picture, side)), what


def lay_out(pictures: np.ndarray, side: int) -> np.ndarray:
    """One sheet of them, about square; each `side` pixels wide, or less where the sheet would become large."""
    per_row = ceil(len(pictures) ** 0.5)
    return grid(resized(pictures, min(side, SHEET // per_row)), per_row)


def dimmed(picture: np.ndarray, kept: int, codes: int) -> np.ndarray:
    """uint8 [S, S, 3] in which all but the area of the first `kept` of codes x codes codes is pale."""
    side = picture.shape[0] // codes
    number = np.arange(codes * codes).reshape(codes, codes).repeat(side, 0).repeat(side, 1)  # of the code above a pixel
    pale = (picture.astype(np.uint16) + 3 * 235) // 4
    return np.where((number < kept)[..., None], picture, pale).astype(np.uint8)


def code_map(codes: np.ndarray, vocabulary: int, side: int = 256) -> np.ndarray:
    """Codes [h, w] as a picture, uint8 [side, side, 3]: a colour each, the same in every picture."""
    step = 0.618033988749895  # the golden ratio's: neighbouring numbers get colours far apart
    colours = np.array([colorsys.hsv_to_rgb(i * step % 1, 0.45 + 0.4 * (i * 7 % 5) / 4, 0.6 + 0.35 * (i * 11 % 7) / 6)
                        for i in range(vocabulary)])  # fmt: skip
    picture = (255 * colours[codes]).astype(np.uint8)
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST))


def table_of(codes: np.ndarray) -> str:
    """Codes [h, w] as text, a row a line."""
    wide = len(str(codes.max()))
    return "\n".join(" ".join(f"{code:{wide}d}" for code in row) for row in codes)
