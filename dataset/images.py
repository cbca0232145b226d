"""Pictures by number: where they come from, and how they are served, as training samples or as crops to encode.

A legend: B pictures, K crops of a picture, S the side of a crop.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dataset.augmentation import center_crop_arr, mirror, random_crop_arr, ten_crop, to_tensor
from dataset.order import CROP_LEFT, CROP_SCALE, CROP_TOP, FLIP, draw

TRIES = 16  # rows in a row that cannot be read before training gives up


class ImageSource(Protocol):
    """Pictures by row number, with their labels."""

    class_names: list[str] | None

    def __len__(self) -> int: ...

    def path(self, row: int) -> str | None:
        """The picture's file; None where it has none of its own."""

    def label(self, row: int) -> int:
        """-1: unknown."""

    def open(self, row: int) -> Image.Image:
        """The picture as RGB. ValueError, naming the file, where it cannot be read."""


@dataclass
class FileSource:
    paths: Sequence[str]
    labels: np.ndarray  # int64 [rows]
    class_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> str:
        return self.paths[row]

    def label(self, row: int) -> int:
        return int(self.labels[row])

    def open(self, row: int) -> Image.Image:
        return read_rgb(self.paths[row])


@dataclass
class ArraySource:
    """A small data set, held in memory."""

    pictures: np.ndarray  # uint8 [rows, H, W, 3]
    labels: np.ndarray  # int64 [rows]
    class_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, row: int) -> None:
        return None

    def label(self, row: int) -> int:
        return int(self.labels[row])

    def open(self, row: int) -> Image.Image:
        return Image.fromarray(self.pictures[row])


def read_rgb(path: str | Path, upright: bool = False, formats: Sequence[str] | None = None) -> Image.Image:
    """A picture file as RGB, of any format or of these. upright: turned as its EXIF data say; the published training
    takes pictures as they are stored."""
    try:
        with Image.open(path, formats=formats) as picture:
            return (ImageOps.exif_transpose(picture) if upright else picture).convert("RGB")
    except Exception as error:  # from OSError to SyntaxError and struct.error, as the decoder likes
        raise ValueError(f"{path}: not a readable picture ({error})") from error


class Images(Dataset):
    """Training samples: "image" float32 [3, S, S] in [-1, 1], "label" and "index" int64, "unreadable" float32, by
    (epoch, row) or by row.

    `augment`: "random" (published: short side between S/1.0 and S/0.8, then a random square), "center", or "none"
    (the pictures are S wide already). Crop and mirroring are functions of (seed, epoch, row). The next row that can be
    read takes the place of a picture that cannot, with `replace`: "index" is the row that is served, "unreadable" is 1.
    """

    collate = staticmethod(default_collate)

    def __init__(
        self,
        source: ImageSource,
        size: int,
        augment: Literal["random", "center", "none"] = "center",
        seed: int = 0,
        flip: bool = False,
        replace: bool = False,
    ):
        self.source, self.size, self.augment, self.seed, self.flip = source, size, augment, seed, flip
        self.replace = replace

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, row = key if isinstance(key, tuple) else (0, key)
        for tried in range(TRIES):
            served = (row + tried) % len(self)
            try:
                picture = self._square(epoch, served)
                break
            except ValueError as error:
                if not self.replace or tried == TRIES - 1:
                    raise
                warnings.warn(f"{error}; the next picture takes its place", stacklevel=2)
        if picture.size != (self.size, self.size):
            raise ValueError(f"{name_of(self.source, served)}: is {picture.width}x{picture.height}, "
                             f"but --image-size is {self.size}")  # fmt: skip
        if self.flip and draw(self.seed, epoch, served, FLIP) < 0.5:
            picture = mirror(picture)
        return {
            "image": torch.from_numpy(to_tensor(picture)),
            "label": torch.tensor(self.source.label(served)),
            "index": torch.tensor(served),
            "unreadable": torch.tensor(float(tried > 0)),
        }

    def _square(self, epoch: int, row: int) -> Image.Image:
        """The picture, cropped as asked. ValueError, naming the file, where that cannot be."""
        picture = self.source.open(row)
        try:
            if self.augment == "random":
                draws = draw(self.seed, epoch, row, np.array([CROP_SCALE, CROP_TOP, CROP_LEFT])).tolist()
                return random_crop_arr(picture, self.size, draws=draws)
            return center_crop_arr(picture, self.size) if self.augment == "center" else picture
        except ValueError as error:
            raise ValueError(f"{name_of(self.source, row)}: {error}") from error


def fingerprint(source: ImageSource, data_path: str | None) -> str:
    """A short hash of the list of pictures: paths below --data-path, wherever that lies, and labels."""
    root = Path(data_path or "")
    prefix = str(root.parent if root.suffix == ".jsonl" else root)
    digest = hashlib.sha256()
    for row in range(len(source)):
        line = f"{(source.path(row) or '').removeprefix(prefix)}\t{source.label(row)}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def name_of(source: ImageSource, row: int) -> str:
    return source.path(row) or f"picture {row}"


class TooSmall(ValueError):
    """A picture that would have to be enlarged."""

    cause = "too small"


@dataclass
class Unreadable:
    row: int
    path: str | None
    reason: str
    cause: str = "unreadable"


class Crops(Dataset):
    """All the crops of a picture, for extracting codes; a batch is collate()'s dictionary.

    Without `ten_crop_ranges`: the centre crop, and its mirror image with `flip` (K = 1 or 2, published: 2). With them:
    ten crops for each range, or without `flip` the five of them that are no mirror images. Bytes, not floats, travel
    from the workers: call scale() on the device.
    """

    def __init__(self, source: ImageSource, size: int, flip: bool = True, ten_crop_ranges: Sequence[float] = ()):
        self.source, self.size, self.flip, self.ranges = source, size, flip, tuple(ten_crop_ranges)

    @property
    def per_range(self) -> int:
        return 10 if self.flip else 5

    @property
    def per_picture(self) -> int:
        return self.per_range * len(self.ranges) or 1 + self.flip

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int, int] | Unreadable:
        try:
            crops = self._crops(self.source.open(row))
        except ValueError as error:
            return Unreadable(row, self.source.path(row), str(error), getattr(error, "cause", "unreadable"))
        return np.stack(crops), self.source.label(row), row

    def _crops(self, picture: Image.Image) -> list[Image.Image]:
        if self.ranges:
            return [crop for range_ in self.ranges for crop in ten_crop(picture, self.size, range_)[: self.per_range]]
        plain = center_crop_arr(picture, self.size)
        return [plain, mirror(plain)] if self.flip else [plain]

    @staticmethod
    def collate(items: list) -> dict:
        """{"images": uint8 [B, K, 3, S, S], "label": int64 [B], "index": int64 [B], "skipped": list of Unreadable}.

        The three are None where no picture of the batch can be read.
        """
        good = [item for item in items if not isinstance(item, Unreadable)]
        skipped = [item for item in items if isinstance(item, Unreadable)]
        if not good:
            return {"images": None, "label": None, "index": None, "skipped": skipped}
        images, labels, rows = zip(*good)
        packed = torch.from_numpy(np.stack(images)).permute(0, 1, 4, 2, 3).contiguous()  # [B, K, 3, S, S]
        return {"images": packed, "label": torch.tensor(labels), "index": torch.tensor(rows), "skipped": skipped}


def scale(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], as to_tensor()."""
    return images.float().div_(255).mul_(2).sub_(1)
