"""The code store: a folder of codes with everything that one must know about them.

    meta.json                  format, count, grid, crops, vocab_size, tokenizer, image_size, class_names, source,
                               shards, skipped
    shard-00000.codes.npy      unsigned integers [pictures, K crops, N codes in raster order], memory-mapped when read
    shard-00000.labels.npy     int64 [pictures]; -1: unknown
    shard-00000.rows.npy       int64 [pictures]: each picture's row in the source list

and what every store has (dataset/store.py). It is the same, byte for byte, whichever ranks wrote it in whichever order.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dataset.store import Kind, Store, StoreWriter

SHARD_SIZE = 8192
SETTINGS = ("grid", "crops", "vocab_size", "tokenizer", "image_size", "class_names", "source")
CODES = Kind("code", "pictures", "extract_codes_c2i.py", SETTINGS)


def code_dtype(vocab_size: int) -> np.dtype:
    """The narrowest unsigned integer that holds every code."""
    return np.dtype(np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32)


class CodeStoreWriter(StoreWriter):
    """Fills a code store; `settings`: grid [h, w], crops, vocab_size, tokenizer {"name", "checksum"} or None,
    image_size, class_names or None, source, and whatever else decides the codes."""

    kind = CODES

    def __init__(
        self,
        folder: str | Path,
        settings: dict[str, Any],
        rows_total: int,
        shard_size: int = SHARD_SIZE,
        flag: str = "--code-path",
    ):
        height, width = settings["grid"]
        self.shape = (settings["crops"], height * width)
        self.dtype = code_dtype(settings["vocab_size"])
        super().__init__(folder, settings, rows_total, shard_size, flag)

    def write_shard(
        self, shard: int, codes: np.ndarray, labels: np.ndarray, rows: np.ndarray, skipped: list[dict] | None = None
    ) -> None:
        """codes [pictures, K, N]; labels, rows [pictures], rows rising; skipped: {"row", "path", "reason", "cause"}
        each."""
        assert codes.shape == (len(rows), *self.shape) and len(labels) == len(rows), "codes, labels, rows do not match"
        outside = _outside(codes, self.settings["vocab_size"])
        if outside is not None:
            raise ValueError(f"code {outside} is not below the vocabulary size, {self.settings['vocab_size']}: "
                             "give the --codebook-size (--vocab-size) of the tokenizer that made it")  # fmt: skip
        self._write(shard, rows, skipped, labels=np.asarray(labels, np.int64),
                    codes=np.ascontiguousarray(codes, self.dtype))  # fmt: skip


class CodeStore(Store):
    """A finished code store. Pictures are numbered from 0 to count - 1, without gaps."""

    kind = CODES

    def __init__(self, folder: str | Path, flag: str = "--code-path"):
        super().__init__(folder, flag)
        self._labels = self.column("labels")
        self.source_rows = self.column("rows")  # int64 [count]: each picture's row in the source list

    def _read_meta(self) -> dict:
        meta = super()._read_meta()
        self.grid: tuple[int, int] = tuple(meta["grid"])
        self.crops: int = meta["crops"]
        self.vocab_size: int = meta["vocab_size"]
        self.tokenizer: dict | None = meta["tokenizer"]
        self.image_size: int = meta["image_size"]
        self.class_names: list[str] | None = meta["class_names"]
        return meta

    def shard_shape(self, shard: dict) -> tuple[tuple[int, ...], np.dtype]:
        return (shard["pictures"], self.crops, self.grid[0] * self.grid[1]), code_dtype(self.vocab_size)

    @property
    def num_classes(self) -> int:
        return len(self.class_names) if self.class_names else int(self._labels.max()) + 1

    def codes(self, pictures: np.ndarray, crop: np.ndarray | None = None) -> np.ndarray:
        """[n, K, N], or with one crop's number for each picture [n, N]."""
        pictures = np.asarray(pictures, np.int64)
        middle = (self.crops,) if crop is None else ()
        result = np.empty((len(pictures), *middle, self.grid[0] * self.grid[1]), code_dtype(self.vocab_size))
        shard_of = np.searchsorted(self._starts, pictures, side="right") - 1
        by_shard = np.argsort(shard_of, kind="stable")
        used, firsts = np.unique(shard_of[by_shard], return_index=True)
        for shard, places in zip(used.tolist(), np.split(by_shard, firsts[1:])):
            local = pictures[places] - self._starts[shard]
            result[places] = self.shard(shard)[local if crop is None else (local, crop[places])]
        return result

    def labels(self, pictures: np.ndarray) -> np.ndarray:
        """int64 [n]."""
        return self._labels[pictures]

    def first_outside(self, vocab_size: int) -> tuple[Path, int] | None:
        """The first shard with a code that is not below vocab_size, and that code; reads everything once."""
        for number, shard in enumerate(self.meta["shards"]):
            if (outside := _outside(self.shard(number), vocab_size)) is not None:
                return self.folder / shard["file"], outside
        return None


def _outside(codes: np.ndarray, vocab_size: int) -> int | None:
    """A code that is not from 0 to vocab_size - 1. Looks at a few MB at a time, which stay in the cache."""
    rows = max(1, 2**20 // max(1, codes[:1].size))
    for start in range(0, len(codes), rows):
        part = codes[start : start + rows]
        if (high := int(part.max())) >= vocab_size:
            return high
        if part.dtype.kind == "i" and (low := int(part.min())) < 0:
            return low
    return None
