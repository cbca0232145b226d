"""Codes of the pictures of a list, by the number of their line: a code store, or published files of a picture each."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from dataset.code_store import CODES, CodeStore
from dataset.files import first_read
from dataset.published_codes import read_codes


class ListCodeStore(CodeStore):
    """A code store of a list."""

    kind = replace(CODES, command="extract_codes_t2i.py")


class StoredListCodes:
    """A code store whose source is a list: its rows are the list's lines."""

    def __init__(self, folder: Path):
        self.store = ListCodeStore(folder)
        self.grid, self.image_size = self.store.grid, self.store.image_size
        self.vocab_size, self.tokenizer = self.store.vocab_size, self.store.tokenizer
        self.source: dict | None = self.store.meta["source"]

    def codes_of(self, line: int) -> np.ndarray | None:
        """Integers [N] of the first crop; None: there are none."""
        rows = self.store.source_rows
        place = int(np.searchsorted(rows, line))
        if place == len(rows) or rows[place] != line:
            return None
        return self.store.codes(np.array([place]), np.zeros(1, np.int64))[0]


class PublishedListCodes:
    """{folder}/{line}.npy, integers [1, N]; what they are of is not written anywhere."""

    image_size = vocab_size = tokenizer = source = None

    def __init__(self, folder: Path):
        self.folder = folder
        codes = first_read(read_codes, folder.glob("*.npy")).shape[-1]
        side = int(codes**0.5)
        if side * side != codes:
            raise ValueError(f"{folder}: {codes} codes are not a square grid")
        self.grid = (side, side)

    def codes_of(self, line: int) -> np.ndarray | None:
        path = self.folder / f"{line}.npy"
        return read_codes(path)[0] if path.is_file() else None


ListCodes = StoredListCodes | PublishedListCodes


def open_list_codes(folder: Path) -> ListCodes:
    """The codes of one list."""
    ours = (folder / "meta.json").exists() or (folder / "extraction.json").exists()
    published = not ours and folder.is_dir() and next(folder.glob("*.npy"), None) is not None
    return PublishedListCodes(folder) if published else StoredListCodes(folder)
