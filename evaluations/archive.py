"""Files and folders of pictures, as evaluators read them: batch by batch, with what is known about them.

An archive is an npz with `arr_0` uint8 [N, H, W, 3], or a reference file with `mu, sigma, mu_s, sigma_s`, or both; a
folder holds PNG or JPEG files of one size. Nothing is held but the batch in hand.

Axes: N pictures, H height, W width.
"""

import hashlib
import json
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

SETTINGS = "settings.json"  # of a folder of pictures
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")  # mean and covariance of pooled, then of spatial features
# What our own files say that they hold, and how files without papers are recognised by their published names.
KINDS = {
    "generation": r"-topk-.*-cfg-.*-seed-",
    "reconstruction": r"-codebook-size-.*-dim-.*-seed-",
    "originals": r"^val_",
    "reference": r"^VIRTUAL_|_labeled$",
}


# ADM's references hold pictures of the size that their names tell.
SIZED = re.compile(r"^VIRTUAL_[a-z_]+?(64|128|256|512)(_|$)")


class Pictures:
    """Pictures of one size. `shape` is (N, H, W), N = 0 where there are statistics alone; `meta` may be empty."""

    path: Path
    shape: tuple[int, int, int]
    meta: dict
    names: tuple[str, ...]  # of the arrays beside the pictures

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def stem(self) -> str:
        return self.path.name.removesuffix(".npz")

    @property
    def kind(self) -> str | None:
        """generation, reconstruction, originals or reference; None: unknown."""
        known = (kind for kind, pattern in KINDS.items() if re.search(pattern, self.stem))
        # Statistics of others are those of a training set, whatever the file is called.
        return self.meta.get("kind") or next(known, "reference" if "mu" in self.names else None)

    @property
    def size(self) -> tuple[int, int] | None:
        """H and W, of the pictures that the statistics are of where there are no others; None: unknown."""
        if len(self):
            return self.shape[1:]
        named = SIZED.search(self.stem)
        side = self.meta.get("image_size") or (named and int(named[1]))
        return (side, side) if side else None

    def beside(self, suffix: str) -> Path:
        """A file that is named as this one, with another ending."""
        return self.path.with_name(self.stem + suffix)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """uint8 [size or fewer, H, W, 3], in order."""
        raise NotImplementedError

    def array(self, name: str) -> np.ndarray:
        """One of `names`."""
        raise NotImplementedError

    @cached_property
    def sha256(self) -> str:
        """Of all that the file or folder holds."""
        raise NotImplementedError


class Archive(Pictures):
    """An npz."""

    def __init__(self, path: Path):
        self.path = path
        with self.blamed(), zipfile.ZipFile(path) as archive:
            self.names = tuple(name.removesuffix(".npy") for name in archive.namelist())
            self.shape, self.meta = (0, 0, 0), {}
            header = None
            if "arr_0" in self.names:
                with archive.open("arr_0.npy") as file:
                    header = read_header(file)
            if "meta" in self.names:
                self.meta = as_papers(str(self.array("meta")))
        if header is not None:
            self.shape = self.checked(*header)[:3]
        if not len(self) and not {"mu", "sigma"} <= set(self.names):
            raise ValueError(f"{path}: holds {', '.join(self.names) or 'nothing'}; expected arr_0 (uint8 pictures "
                             "[N, H, W, 3]), or the statistics mu and sigma")  # fmt: skip

    def checked(self, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> tuple[int, ...]:
        if dtype != np.uint8:
            raise ValueError(f"{self.path}: arr_0 is {dtype}; expected uint8, from 0 to 255: convert it, rounded as "
                             "you mean it")  # fmt: skip
        if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
            raise ValueError(f"{self.path}: arr_0 is {shape}, grey pictures; expected (N, H, W, 3): repeat the channel "
                             "three times if grey is meant")  # fmt: skip
        if len(shape) != 4 or shape[3] != 3 or fortran:
            order = " in Fortran order" if fortran else ""
            raise ValueError(f"{self.path}: arr_0 is {shape}{order}; expected (N, H, W, 3), channels last")
        if not shape[0] and not {"mu", "sigma"} <= set(self.names):
            raise ValueError(f"{self.path}: arr_0 holds no pictures")
        return shape

    @contextmanager
    def blamed(self):
        """What the reading raises -> a sentence that names the file."""
        try:
            yield
        except FileNotFoundError:
            raise ValueError(f"{self.path}: there is no such file") from None
        except IsADirectoryError:
            raise ValueError(f"{self.path}: is a folder") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.path}: truncated or not an npz ({error}); make or fetch it again") from error

    def batches(self, size: int) -> Iterator[np.ndarray]:
        count, height, width = self.shape
        with self.blamed(), zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            read_header(file)
            for first in range(0, count, size):
                batch = min(size, count - first)
                data = file.read(batch * height * width * 3)
                if len(data) < batch * height * width * 3:
                    raise EOFError(f"arr_0 ends within picture {first + len(data) // (height * width * 3)} of {count}")
                yield np.frombuffer(bytearray(data), np.uint8).reshape(batch, height, width, 3)

    def array(self, name: str) -> np.ndarray:
        with self.blamed(), np.load(self.path, allow_pickle=False) as arrays:
            return arrays[name]

    @cached_property
    def sha256(self) -> str:
        return sha256(self.path)


class Folder(Pictures):
    """A folder of picture files, in natural order (2.png before 10.png); settings.json tells what made them."""

    names = ()

    def __init__(self, path: Path):
        self.path = path
        self.files = picture_files(path)
        if not self.files:
            raise ValueError(f"{path}: no pictures in this folder ({', '.join(EXTENSIONS)})")
        width, height = size_of(self.files[0])
        for file in self.files:
            w, h = size_of(file)
            if (w, h) != (width, height):
                raise ValueError(f"{path}: pictures of mixed sizes: {self.files[0].name} is {width} x {height} px, "
                                 f"{file.name} is {w} x {h}; bring them to one size, as evaluations/c2i/reference.py "
                                 "--image-size does for a reference")  # fmt: skip
        self.shape = (len(self.files), height, width)
        self.meta = settings_of(path)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(self), size):
            yield np.stack([read_picture(file) for file in self.files[first : first + size]])

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.files)


def open_pictures(path: str | Path) -> Pictures:
    """An npz or a folder of pictures; ValueError, naming it, where it cannot serve as one."""
    path = Path(path)
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))  # what is written beside it takes its name
    return Folder(path) if path.is_dir() else Archive(path)


def as_papers(text: str) -> dict:
    """JSON -> what a file says about its pictures; nothing where it is another program's text."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def read_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of the array whose bytes come next in an .npy file."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def settings_of(folder: Path) -> dict:
    """What made the pictures of a folder, as our samplers note it there; empty where nothing is said."""
    path = folder / SETTINGS
    try:
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(held, dict):
            raise ValueError(f"holds {type(held).__name__}, expected an object")
    except ValueError as error:
        raise ValueError(f"{path}: not settings as JSON ({error}); write it anew or remove it") from error
    return held


def sha256(path: str | Path) -> str:
    """Of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def sha256_of(files: Iterable[Path]) -> str:
    """Of all names and bytes, in order."""
    digest = hashlib.sha256()
    for file in files:
        data = file.read_bytes()
        digest.update(f"{file.name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def picture_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder, in natural order."""
    found = (file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS and file.name[0] != ".")
    return sorted(found, key=natural)


def natural(path: Path) -> list:
    """A sort key by which 2.png comes before 10.png."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r"(\d+)", path.name)]


def size_of(file: Path) -> tuple[int, int]:
    """Width and height, from the header alone."""
    try:
        with Image.open(file) as picture:
            return picture.size
    except Exception as error:  # from OSError to SyntaxError and struct.error, as the decoder likes
        raise ValueError(f"{file}: not a readable picture ({error})") from error


def read_picture(file: Path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    try:
        with Image.open(file) as picture:
            mode, rgb = picture.mode, np.asarray(picture.convert("RGB"))
    except Exception as error:
        raise ValueError(f"{file}: not a readable picture ({error})") from error
    if mode[0] in "IF":
        raise ValueError(f"{file}: has more than 8 bits a channel; convert it, rounded as you mean it")
    return rgb
