"""Caption features, packed: a feature store for each list of captions, holding the rows of valid tokens alone.

    meta.json                  format, count, tokens, bytes, width, dtype, encoder, cleaning, max_length, caption_key,
                               trunc_caption, source, shards, skipped
    shard-00000.features.npy   uint16 [tokens, D], the bits of bf16 or fp16, memory-mapped when read
    shard-00000.offsets.npy    int64 [captions + 1]: where each caption's tokens begin, and the last one's end
    shard-00000.rows.npy       int64 [captions]: each caption's line in its list, from 0, rising

and what every store has (dataset/store.py). The published layout, {folder}/{line}.npy, float32 [1, tokens, D], is read
as well and can be converted.

Axes: n tokens of a caption, D width of a feature.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.faults import Skipped
from dataset.files import first_read
from dataset.store import Kind, Store, StoreWriter, open_array

SHARD_SIZE = 2000
SETTINGS = ("width", "dtype", "encoder", "cleaning", "max_length", "caption_key", "trunc_caption", "source")
FEATURES = Kind("feature", "captions", "extract_t5_feature.py", SETTINGS)
MISSING = "without features"  # the cause of a line that the published layout has no file for
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FeatureStoreWriter(StoreWriter):
    """Fills a feature store; `settings`: width; dtype "bf16" or "fp16"; encoder {"name", "checksum"}, cleaning,
    max_length, caption_key, trunc_caption, each None if unknown; source {"list", "lines"}; and what else decides the
    features."""

    kind = FEATURES

    def __init__(
        self,
        folder: str | Path,
        settings: dict[str, Any],
        rows_total: int,
        shard_size: int = SHARD_SIZE,
        flag: str = "--t5-path",
    ):
        self.width, self.dtype = settings["width"], DTYPES[settings["dtype"]]
        super().__init__(folder, settings, rows_total, shard_size, flag)

    def write_shard(
        self, shard: int, features: Tensor, lengths: np.ndarray, rows: np.ndarray, skipped: list[dict] | None = None
    ) -> None:
        """features [all tokens, D]; lengths, rows [captions], rows rising; skipped: {"row", "path", "reason", "cause"}
        each."""
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        assert features.shape == (offsets[-1], self.width) and len(lengths) == len(rows), "tokens do not match"
        packed = features.cpu().to(self.dtype)
        if not packed.isfinite().all():
            raise ValueError(f"features of shard {shard} are not finite in {self.settings['dtype']}: encode and store "
                             "them as bf16, which overflows where float32 does")  # fmt: skip
        bits = packed.contiguous().view(torch.int16).numpy().view(np.uint16)
        self._write(shard, rows, skipped, offsets=offsets, features=bits)

    def describe(self, shard: int) -> dict[str, Any]:
        offsets = open_array(self.path(shard, "offsets.npy"), self.kind)
        return {"file": self.path(shard, "features.npy").name, "captions": len(offsets) - 1, "tokens": int(offsets[-1])}

    def totals(self, shards: list[dict[str, Any]]) -> dict[str, Any]:
        tokens = sum(shard["tokens"] for shard in shards)
        return {"tokens": tokens, "bytes": tokens * self.width * self.dtype.itemsize}


class FeatureStore(Store):
    """A finished feature store; captions are asked for by their line in the list."""

    kind = FEATURES

    def __init__(self, folder: str | Path, flag: str = "--t5-feat-path"):
        super().__init__(folder, flag)
        self.rows = self.column("rows")  # int64 [count], rising
        self._offsets = self.columns("offsets", more=1)
        for shard, offsets in zip(self.meta["shards"], self._offsets):
            if offsets[0] != 0 or offsets[-1] != shard["tokens"] or (np.diff(offsets) < 0).any():
                path = self.folder / shard["file"].replace(".features.", ".offsets.")
                raise ValueError(f"{path}: does not cut {shard['tokens']} tokens into captions; {self.kind.remake}")

    def _read_meta(self) -> dict:
        meta = super()._read_meta()
        if meta["dtype"] not in DTYPES:
            raise ValueError(f"{self.folder / 'meta.json'}: dtype {meta['dtype']}, expected {' or '.join(DTYPES)}")
        self.width: int = meta["width"]
        self.dtype: torch.dtype = DTYPES[meta["dtype"]]
        self.encoder: dict | None = meta["encoder"]
        self.source: dict | None = meta["source"]
        return meta

    def shard_shape(self, shard: dict) -> tuple[tuple[int, ...], np.dtype]:
        return (shard["tokens"], self.width), np.dtype(np.uint16)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [count]: each caption's tokens."""
        return np.concatenate([np.diff(offsets) for offsets in self._offsets])

    def has(self, row: int) -> bool:
        return self._place(row) is not None

    def features(self, row: int) -> Tensor:
        """[n, D] of the caption in that line."""
        place = self._place(row)
        if place is None:
            raise ValueError(f"{self.flag} {self.folder}: no features of line {row} (skipped.jsonl says why)")
        shard = int(np.searchsorted(self._starts, place, side="right")) - 1
        begin, end = self._offsets[shard][place - self._starts[shard] :][:2].tolist()
        bits = np.array(self.shard(shard)[begin:end])  # a copy: the mapped file is not writable, as tensors are
        return torch.from_numpy(bits.view(np.int16)).view(self.dtype)

    def _place(self, row: int) -> int | None:
        place = int(np.searchsorted(self.rows, row))
        return place if place < self.count and self.rows[place] == row else None


class PublishedFeatures:
    """One file for each caption, {folder}/{line}.npy; asked as a FeatureStore is. Which encoder made them is not known.

    To count the captions or their tokens means to list the folder, or to open every file.
    """

    encoder = source = None
    dtype = torch.float32

    def __init__(self, folder: str | Path, flag: str = "--t5-feat-path"):
        self.folder, self.flag = Path(folder), flag
        if not self.folder.is_dir():
            raise ValueError(f"{flag} {folder}: there is no such folder")
        first = first_read(self._open, _numbered(self.folder))
        if first is None:
            raise ValueError(f"{flag} {folder}: no caption features in it: neither a feature store nor LINE.npy files")
        self.width: int = first.shape[-1]

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 [count], rising."""
        return np.sort(np.fromiter(_numbered(self.folder), np.int64))

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([self._open(row).shape[1] for row in self.rows.tolist()], np.int64)

    def has(self, row: int) -> bool:
        return (self.folder / f"{row}.npy").is_file()

    def features(self, row: int) -> Tensor:
        """float32 [n, D]"""
        array = self._open(row)
        if array.shape[-1] != self.width:
            raise ValueError(f"{self.folder / f'{row}.npy'}: features of width {array.shape[-1]}, others of the folder "
                             f"are of {self.width}; extract them with one encoder")  # fmt: skip
        found = torch.from_numpy(np.array(array[0], np.float32))
        if not found.isfinite().all():
            raise ValueError(f"{self.folder / f'{row}.npy'}: holds features that are not finite; delete it to leave it "
                             "out")  # fmt: skip
        return found

    def _open(self, row: int) -> np.ndarray:
        """[1, n, D], mapped."""
        path = self.folder / f"{row}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise ValueError(f"{self.flag} {self.folder}: no features of line {row} ({path.name})") from error
        except (ValueError, EOFError) as error:  # not OSError, which says nothing of the file
            raise ValueError(f"{path}: truncated or not an .npy file ({error}); delete it to leave it out") from error
        if array.ndim != 3 or array.shape[0] != 1 or array.dtype.kind != "f":
            raise ValueError(f"{path}: expected floats [1, tokens, width], found {array.dtype} {list(array.shape)}")
        return array


AnyFeatures = FeatureStore | PublishedFeatures


def open_features(path: str | Path, stem: str, flag: str = "--t5-feat-path") -> AnyFeatures:
    """The features of the list called `stem`, in the folder of that name."""
    folder = Path(path) / stem
    if not Path(path).is_dir():
        raise ValueError(f"{flag} {path}: there is no such folder")
    if not folder.is_dir():
        raise ValueError(f"{flag} {path}: no folder {stem} in it, which would hold the features of the list {stem}; "
                         "extract them with language/extract_t5_feature.py")  # fmt: skip
    return FeatureStore(folder, flag) if is_store(folder) else PublishedFeatures(folder, flag)


def is_store(folder: Path) -> bool:
    """A feature store, be it unfinished; not the published layout."""
    return any((folder / name).exists() for name in ("meta.json", "extraction.json"))


def convert_features(
    published: str | Path,
    out: str | Path,
    settings: dict[str, Any],
    lines: int | None = None,
    shard_size: int = SHARD_SIZE,
    flag: str = "--t5-path",
    max_bad: float = 0.0,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> dict:
    """A folder of the published layout -> a feature store in `out`; what its meta.json says. Run again, it continues.

    `settings`: dtype, and whatever is known of the features; `lines` of their list (else up to the last file).
    `progress` wraps the list of shards to do, as tqdm does. Lines without a file are skipped, as are files that hold no
    features, up to a share of `max_bad`.
    """
    features = PublishedFeatures(published, "--published")
    settings = {**dict.fromkeys(SETTINGS), "source": {"lines": lines}, "width": features.width, **settings}
    if lines is None:
        lines = int(features.rows[-1]) + 1
    elif int(features.rows[-1]) >= lines:
        raise ValueError(f"--published {published}: has features of line {features.rows[-1]}, but its list has "
                         f"{lines} lines, numbered from 0; give the lists that they were made of")  # fmt: skip
    writer = FeatureStoreWriter(out, settings, lines, shard_size, flag)
    for shard in progress(writer.missing_shards()):
        rows = writer.shard_rows(shard)
        found, skipped = {}, []
        for row in rows:
            path = features.folder / f"{row}.npy"
            try:
                found[row] = features.features(row)
            except ValueError as error:
                reason, cause = (str(error), "unreadable") if path.exists() else ("there is no such file", MISSING)
                skipped.append({"row": row, "path": str(path), "reason": reason, "cause": cause})
        packed = torch.cat([torch.empty(0, writer.width), *found.values()])
        writer.write_shard(shard, packed, np.array(list(map(len, found.values())), np.int64), list(found), skipped)
    Skipped(lines, max_bad, "captions").add([bad for bad in writer.skipped() if bad.get("cause", MISSING) != MISSING])
    return writer.finish()


def _numbered(folder: Path) -> Iterator[int]:
    """The numbers of the folder's {number}.npy, in any order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, ending = entry.name.rpartition(".")
            if ending == "npy" and stem.isascii() and stem.isdigit():
                yield int(stem)
