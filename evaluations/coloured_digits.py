"""Pictures of one digit in one colour on a ground of another, taken apart.

Axes: N pictures, H height, W width, S side of a shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

SHAPE = 16  # pixels: the side of a digit's shape, as it is read
LEAST = 25.0  # a figure's colour is at least so far from the ground's, of the 442 from black to white
FEWEST = 6  # pixels of a figure, at least: fewer are specks


@dataclass
class Parts:
    """Pictures' figures and grounds. Where there is no figure, its colour is NaN and its shape is empty."""

    figure: np.ndarray  # float [N, 3], mean colours
    ground: np.ndarray  # float [N, 3]
    shapes: np.ndarray  # float [N, S, S], from 0 (ground) to 1 (figure)


def take_apart(images: np.ndarray) -> Parts:
    """Figure and ground of uint8 [N, H, W, 3], by their colours: the frame's is the ground's."""
    parts = [_take_apart(image.astype(np.float64)) for image in images]
    return Parts(*(np.stack(each) for each in zip(*parts)))


def _take_apart(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour of the figure [3] and of the ground [3], the figure's shape [S, S]."""
    frame = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    ground = np.median(frame, 0)
    distances = np.linalg.norm(image - ground, axis=-1)  # [H, W]
    figure = np.median(image[distances >= np.sort(distances, axis=None)[-FEWEST]], 0)
    for _ in range(4):  # from these first guesses to the means of the pixels that are of one colour clearly
        axis = figure - ground
        length = np.linalg.norm(axis)
        if length < LEAST:
            return np.full(3, np.nan), image.mean((0, 1)), np.zeros((SHAPE, SHAPE))
        cover = (image - ground) @ axis / length**2  # [H, W], 0: ground, 1: figure; between them on a stroke's edges
        inside = cover >= min(0.8, np.sort(cover, axis=None)[-FEWEST])
        figure, ground = image[inside].mean(0), image[cover < 0.2].mean(0)
    return figure, ground, shape_of(np.clip(cover, 0, 1))


def shape_of(cover: np.ndarray) -> np.ndarray:
    """The figure, wherever it stands and however large it is, in the middle of [S, S]; cover [H, W], from 0 to 1."""
    rows, columns = np.nonzero(cover > 0.5)
    side = max(np.ptp(rows), np.ptp(columns)) + 3  # a pixel of ground on either side
    left = (columns.min() + columns.max() + 1 - side) / 2
    top = (rows.min() + rows.max() + 1 - side) / 2
    picture = Image.fromarray(cover.astype(np.float32))
    fine = picture.transform((4 * SHAPE, 4 * SHAPE), Image.Transform.EXTENT, (left, top, left + side, top + side),
                             Image.Resampling.BILINEAR)  # fmt: skip
    return np.asarray(fine.resize((SHAPE, SHAPE), Image.Resampling.BOX)).astype(np.float64)


def nearest(colours: np.ndarray, named: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """The name of the nearest colour, for each of [N, 3]; "none" for NaN."""
    names = list(named)
    distances = np.linalg.norm(colours[:, None] - np.array([named[name] for name in names]), axis=-1)  # [N, names]
    return ["none" if np.isnan(row).any() else names[row.argmin()] for row in distances]
