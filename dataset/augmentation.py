"""Crops of a picture. Pillow and numpy alone; sizes are in pixels.

The published names and behaviour: ADM's crops (guided-diffusion, image_datasets.py) and torchvision's ten-crop.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

MAX_ASPECT = 50  # a 60000 x 2 picture would become millions of pixels wide, to be cut to a square


def center_crop_arr(pil_image: Image.Image, image_size: int) -> Image.Image:
    """The centre square, image_size wide, of the picture whose short side was brought to image_size."""
    pil_image = _resize_short_side(pil_image, image_size)
    width, height = pil_image.size
    return _crop(pil_image, (height - image_size) // 2, (width - image_size) // 2, image_size)


def random_crop_arr(
    pil_image: Image.Image,
    image_size: int,
    min_crop_frac: float = 0.8,
    max_crop_frac: float = 1.0,
    draws: Sequence[float] | None = None,
) -> Image.Image:
    """A random square, image_size wide; the short side was brought between image_size / max_ and / min_crop_frac.

    `draws`: three numbers in [0, 1) that choose scale, top and left; without them Python's global generator does.
    """
    scale, top, left = draws if draws is not None else (random.random(), random.random(), random.random())
    smallest, largest = math.ceil(image_size / max_crop_frac), math.ceil(image_size / min_crop_frac)
    pil_image = _resize_short_side(pil_image, smallest + int(scale * (largest - smallest + 1)))
    width, height = pil_image.size
    return _crop(pil_image, int(top * (height - image_size + 1)), int(left * (width - image_size + 1)), image_size)


def ten_crop(pil_image: Image.Image, image_size: int, crop_range: float) -> list[Image.Image]:
    """Of the centre crop to int(crop_range * image_size): corners and centre, then the same of its mirror image."""
    if crop_range < 1:
        raise ValueError(f"--crop-range {crop_range}: must be at least 1, it is the area's side over the crop's")
    area = int(crop_range * image_size)
    plain = center_crop_arr(pil_image, area)
    far, middle = area - image_size, round((area - image_size) / 2)
    places = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
    return [_crop(view, top, left, image_size) for view in (plain, mirror(plain)) for top, left in places]


def mirror(pil_image: Image.Image) -> Image.Image:
    return pil_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def to_tensor(pil_image: Image.Image) -> np.ndarray:
    """float32 [3, H, W] in [-1, 1], bit by bit what torchvision's ToTensor and Normalize(0.5, 0.5) give."""
    array = np.asarray(pil_image).transpose(2, 0, 1).astype(np.float32, order="C")
    array /= 255
    array *= 2
    array -= 1
    return array


def check_aspect(pil_image: Image.Image) -> None:
    """ValueError for a picture that is too long for its width to be cut to a square."""
    width, height = pil_image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"a picture of {width} x {height} pixels: its long side may be {MAX_ASPECT} times the short "
                         "one, crop it or remove it")  # fmt: skip


def _resize_short_side(pil_image: Image.Image, size: int) -> Image.Image:
    check_aspect(pil_image)
    # Pillow's BICUBIC does not average over far larger areas as well as repeated halving does.
    while min(pil_image.size) >= 2 * size:
        pil_image = pil_image.resize(tuple(side // 2 for side in pil_image.size), Image.Resampling.BOX)
    scale = size / min(pil_image.size)
    return pil_image.resize(tuple(round(side * scale) for side in pil_image.size), Image.Resampling.BICUBIC)


def _crop(pil_image: Image.Image, top: int, left: int, size: int) -> Image.Image:
    return pil_image.crop((left, top, left + size, top + size))
