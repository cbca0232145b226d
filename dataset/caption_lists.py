"""Lists of captioned pictures, as large as they come: .jsonl files whose lines are found by their place.

    {"image_path": "pictures/0001.jpg", "text": ["a red cube", "A red cube on a table. It is old.", "A red cube"]}

A line is a row, counted from 0 over all lists in sorted order. Nothing of a line is held but where it begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.captions import BadLine, line_starts, read_line
from dataset.images import TooSmall, read_rgb


@dataclass(frozen=True)
class Line:
    """Where a row stands."""

    file: Path
    number: int  # within its file, from 0

    def __str__(self) -> str:
        return f"{self.file}, line {self.number}"


class CaptionLists:
    """The rows of some lists, read one by one."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        self.starts = [line_starts(file) for file in self.files]
        self.first_rows = np.cumsum([0, *(len(starts) - 1 for starts in self.starts)])
        if not len(self):
            raise ValueError(f"--data-path: no lines in {', '.join(map(str, self.files))}")

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def place(self, row: int) -> tuple[int, int]:
        """The number of its file, and of its line there."""
        file = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return file, row - int(self.first_rows[file])

    def line(self, row: int) -> Line:
        file, number = self.place(row)
        return Line(self.files[file], number)

    def entry(self, row: int) -> dict:
        """The line's object; BadLine, naming the line, where it is none with an image_path."""
        file, number = self.place(row)
        try:
            entry = read_line(self.files[file], self.starts[file], number)
        except BadLine as error:
            raise BadLine(error.cause, f"{self.line(row)}: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("image_path"), str):
            raise BadLine("no picture", f"{self.line(row)}: expected an object such as "
                                        '{"image_path": "a.jpg", "text": ["..."]}')  # fmt: skip
        return entry

    def picture_path(self, row: int, entry: dict) -> str:
        """Relative to the folder of its list."""
        return str(self.files[self.place(row)[0]].parent / entry["image_path"])


@dataclass
class ListedPictures:
    """The pictures of some lists as an image source; one whose short side is below `smallest` pixels is refused."""

    lists: CaptionLists
    smallest: int = 1
    class_names: None = None

    def __len__(self) -> int:
        return len(self.lists)

    def path(self, row: int) -> str:
        """The picture's file; where the line tells none, the line."""
        try:
            return self.lists.picture_path(row, self.lists.entry(row))
        except ValueError:
            return str(self.lists.line(row))

    def label(self, row: int) -> int:
        return -1

    def open(self, row: int) -> Image.Image:
        return self.opened(row, self.lists.entry(row))

    def opened(self, row: int, entry: dict) -> Image.Image:
        """The picture of a line that has been read."""
        path = self.lists.picture_path(row, entry)
        picture = read_rgb(path)
        if min(picture.size) < self.smallest:
            raise TooSmall(f"{path}: is {picture.width} x {picture.height} px, smaller than --image-size "
                           f"{self.smallest}")  # fmt: skip
        return picture
