"""Files and folders of pictures, as evaluators read them: batch by batch, with what is known about them.

An archive is an npz with `arr_0` uint8 [N, H, W, 3], or a reference file with `mu, sigma, mu_s, sigma_s`, or both; a
folder holds PNG or JPEG files of one size. Nothing is held but the batch in hand.

Axes: N pictures, H height, W width.
"""

import hashlib
import json
import lzma
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

READERS = 8  # threads; Pillow reads and resizes beside Python
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
    def has_statistics(self) -> bool:
        return {"mu", "sigma"} <= set(self.names)

    @property
    def kind(self) -> str | None:
        """generation, reconstruction, originals or reference; None: unknown."""
        if "kind" in self.meta:
            return self.meta["kind"]
        known = (kind for kind, pattern in KINDS.items() if re.search(pattern, self.stem))
        # Statistics of others are those of a training set; without pictures, whatever the file is called.
        found = next(known, None) if len(self) else None
        return found or ("reference" if self.has_statistics else None)

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
            headers = {}
            for name in {"arr_0", "meta"} & set(self.names):
                with archive.open(f"{name}.npy") as file:
                    headers[name] = read_header(file)
        self.shape = self.checked(*headers["arr_0"])[:3] if "arr_0" in headers else (0, 0, 0)
        of_text = "meta" in headers and headers["meta"][2].kind == "U"  # others' may be of any kind
        self.meta = as_papers(str(self.array("meta"))) if of_text else {}
        for pair in (STATISTICS[:2], STATISTICS[2:]):
            there = [name for name in pair if name in self.names]
            if len(there) == 1:
                lacking = pair[1 - pair.index(there[0])]
                raise ValueError(f"{path}: holds {there[0]} without {lacking}; a mean and a covariance belong together")
        if not len(self) and not self.has_statistics:
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
        if not shape[0] and not self.has_statistics:
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
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, pickle.UnpicklingError,
                NotImplementedError, RuntimeError) as error:  # fmt: skip
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
        self.meta = read_settings(path)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(READERS) as readers:
            for first in range(0, len(self), size):
                yield np.stack(list(readers.map(read_picture, self.files[first : first + size])))

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
    return sound(found) if isinstance(found, dict) else {}


def sound(papers: dict) -> dict:
    """Without what is not of the type that it is in ours."""
    types = {"kind": str, "image_size": int, "pictures": int}
    return {name: value for name, value in papers.items() if isinstance(value, types.get(name, object))}


def read_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of the array whose bytes come next in an .npy file."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def read_settings(folder: Path) -> dict:
    """What made the pictures of a folder, as our samplers note it there; empty where nothing is said."""
    path = folder / SETTINGS
    try:
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(held, dict):
            raise ValueError(f"holds {type(held).__name__}, expected an object")
    except ValueError as error:
        raise ValueError(f"{path}: not settings as JSON ({error}); write it anew or remove it") from error
    return sound(held)


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
