"""The published layout of extracted codes, one file per picture, and its conversion into a code store.

CODE_PATH/{dataset}{size}_codes/{i}.npy     integers [1, K crops, N codes], or [1, N] for one crop
CODE_PATH/{dataset}{size}_labels/{i}.npy    integer [1]
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from dataset.classes import imagenet_classes
from dataset.code_store import SHARD_SIZE, CodeStore, CodeStoreWriter


class PublishedCodes:
    """Reads the published layout; numbers as CodeStore's. Count and crops are read from the data.

    Where a folder of the path is named '...ten_crop' and its neighbour '...ten_crop_105' is there, the second one's
    crops follow the first one's: as both have equally many, each serves half of the draws, as published.
    The published extraction pads to a multiple of its world size: surplus last files repeat the first pictures, which
    is harmless (a few pictures are drawn twice as often).
    """

    vocab_size = None
    tokenizer = None

    def __init__(self, code_path: str | Path, image_size: int | None = None):
        self.folder = Path(code_path)
        self.name = _find(self.folder, image_size)
        dataset, size = re.fullmatch(r"(.*?)(\d*)", self.name).groups()
        if image_size is not None:
            dataset, size = self.name.removesuffix(str(image_size)), image_size
        self.image_size = int(size) if size else None
        self.class_names = imagenet_classes() if dataset == "imagenet" else None
        self.num_classes = len(self.class_names) if self.class_names else None  # None: unknown
        folders = [self.folder]
        if (second := _second(self.folder)) is not None and (second / f"{self.name}_codes").is_dir():
            folders.append(second)
        self._code_folders = [folder / f"{self.name}_codes" for folder in folders]
        self._label_folder = self.folder / f"{self.name}_labels"
        self.count = _count(self._code_folders[0])
        for other in (*self._code_folders[1:], self._label_folder):
            if (count := _count(other)) != self.count:
                raise ValueError(f"--code-path: {other} has {count} files, {self._code_folders[0]} has {self.count}")
        shapes = [read_codes(folder / "0.npy").shape for folder in self._code_folders]
        if len(set(shapes)) > 1:
            raise ValueError(f"--code-path: {folders[0]} has crops and codes {list(shapes[0])}, {folders[1]} has "
                             f"{list(shapes[1])}; rename the second folder to leave it out")  # fmt: skip
        self._shape = shapes[0]
        side = int(self._shape[1] ** 0.5)
        if side * side != self._shape[1]:
            raise ValueError(f"{self._code_folders[0]}: {self._shape[1]} codes are not a square grid")
        self.grid = (side, side)
        self.crops = self._shape[0] * len(folders)

    @property
    def source_rows(self) -> np.ndarray:
        return np.arange(self.count)

    def codes(self, pictures: np.ndarray, crop: np.ndarray | None = None) -> np.ndarray:
        """int64 [n, K, N], or with one crop's number for each picture [n, N]."""
        if crop is None:
            return np.stack([self._all_crops(picture) for picture in np.asarray(pictures).tolist()])
        chosen = []
        for picture, number in zip(np.asarray(pictures).tolist(), np.asarray(crop).tolist()):
            folder, within = divmod(number, self._shape[0])
            chosen.append(self._read(folder, picture)[within])
        return np.stack(chosen)

    def labels(self, pictures: np.ndarray) -> np.ndarray:
        """int64 [n]."""
        values = []
        for picture in np.asarray(pictures).tolist():
            path = self._label_folder / f"{picture}.npy"
            value = _load(path)
            if value.size != 1 or value.dtype.kind not in "iu":
                raise ValueError(f"{path}: expected one integer, found {value.dtype} {list(value.shape)}")
            values.append(int(value.reshape(())))
        return np.array(values, np.int64)

    def first_outside(self, vocab_size: int) -> tuple[Path, int] | None:
        """As CodeStore's, but of 2,000 pictures, spread evenly: a million files take minutes. Converting checks all."""
        for picture in np.unique(np.linspace(0, self.count - 1, 2000).astype(int)).tolist():
            for part, folder in enumerate(self._code_folders):
                codes = self._read(part, picture)
                for code in (int(codes.min()), int(codes.max())):
                    if not 0 <= code < vocab_size:
                        return folder / f"{picture}.npy", code
        return None

    def _all_crops(self, picture: int) -> np.ndarray:
        return np.concatenate([self._read(folder, picture) for folder in range(len(self._code_folders))])

    def _read(self, folder: int, picture: int) -> np.ndarray:
        path = self._code_folders[folder] / f"{picture}.npy"
        codes = read_codes(path)
        if codes.shape != self._shape:
            raise ValueError(f"{path}: {list(codes.shape)} crops and codes, but file 0 has {list(self._shape)}")
        return codes.astype(np.int64)


def convert_published(
    code_path: str | Path,
    image_size: int | None,
    out: str | Path,
    vocab_size: int,
    class_names: list[str] | None = None,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> CodeStore:
    """Published layout -> code store in `out`, a shard at a time; run again after an interruption, it continues.

    `progress` wraps the list of shards to do, as tqdm does. The codes' tokenizer is not known: it stays None.
    """
    published = PublishedCodes(code_path, image_size)
    settings = {
        "grid": published.grid,
        "crops": published.crops,
        "vocab_size": vocab_size,
        "tokenizer": None,
        "image_size": published.image_size,
        "class_names": class_names or published.class_names,
        "source": {"published": published.name},
    }
    writer = CodeStoreWriter(out, settings, published.count, shard_size)
    for shard in progress(writer.missing_shards()):
        rows = np.array(writer.shard_rows(shard))
        codes = np.empty((len(rows), *writer.shape), writer.dtype)
        for place, picture in enumerate(rows.tolist()):
            read = published.codes([picture])
            if read.min() < 0 or read.max() >= vocab_size:
                raise ValueError(f"--vocab-size {vocab_size}: picture {picture} of {code_path} has codes from "
                                 f"{read.min()} to {read.max()}; give that of the codes' tokenizer")  # fmt: skip
            codes[place] = read[0]
        writer.write_shard(shard, codes, published.labels(rows), rows)
    writer.finish()
    return CodeStore(out)


def is_published(path: Path) -> bool:
    return any(path.glob("*_codes"))


def _find(folder: Path, image_size: int | None) -> str:
    """'imagenet256' of the folder imagenet256_codes."""
    if not folder.is_dir():
        raise ValueError(f"--code-path {folder}: there is no such folder")
    found = sorted(path.name.removesuffix("_codes") for path in folder.glob("*_codes") if path.is_dir())
    fitting = [name for name in found if image_size is None or name.endswith(str(image_size))]
    if len(fitting) == 1:
        return fitting[0]
    listing = ", ".join(f"{name}_codes" for name in found) or "none"
    if fitting:
        raise ValueError(f"--code-path {folder}: several code folders ({listing}); "
                         "give --image-size, or a path with one of them alone")  # fmt: skip
    raise ValueError(f"--code-path {folder}: no folder DATASET{image_size or 'SIZE'}_codes in it; found: {listing}"
                     + ("; give another --image-size" if found else ""))  # fmt: skip


def _second(folder: Path) -> Path | None:
    parts = list(folder.absolute().parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place].endswith("ten_crop"):
            return Path(*parts[:place], parts[place] + "_105", *parts[place + 1 :])
    return None


def _count(folder: Path) -> int:
    """The number of files, which must be 0.npy to n-1.npy."""
    if not folder.is_dir():
        raise ValueError(f"--code-path: {folder} is missing")
    with os.scandir(folder) as entries:
        numbers = {int(entry.name[:-4]) for entry in entries if re.fullmatch(r"\d+\.npy", entry.name)}
    if not numbers:
        raise ValueError(f"--code-path: no files 0.npy, 1.npy, ... in {folder}")
    missing = next((i for i in range(len(numbers)) if i not in numbers), None)
    if missing is not None:
        raise ValueError(f"--code-path: {folder}/{missing}.npy is missing, though there is a {max(numbers)}.npy")
    return len(numbers)


def read_codes(path: Path) -> np.ndarray:
    """[K, N]"""
    codes = _load(path)
    if codes.dtype.kind not in "iu" or codes.ndim not in (2, 3) or codes.shape[0] != 1:
        raise ValueError(f"{path}: expected integers [1, crops, codes], found {codes.dtype} {list(codes.shape)}")
    return codes.reshape(-1, codes.shape[-1])


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: truncated or not an .npy file ({error})") from error
