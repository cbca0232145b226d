"""Files that appear whole or not at all."""

import json
import os
import uuid
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

FEW = 16
Item, Read = TypeVar("Item"), TypeVar("Read")


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write aside in the same folder, flush to disk, rename; what fails leaves no aside file behind.

    Aside files are `.{name}.{random}.part`: several ranks, on several hosts, may write the same file at once.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
        raise


def first_read(read: Callable[[Item], Read], items: Iterable[Item]) -> Read | None:
    """What the first of a few files says that can be read: a torn one is no reason not to begin. None: no files."""
    failed = None
    for item in islice(items, FEW):
        try:
            return read(item)
        except ValueError as error:
            failed = error
    if failed is not None:
        raise failed
    return None


def write_json(path: Path, value) -> None:
    write_atomic(path, lambda file: file.write((json_of(value, indent=1) + "\n").encode()))


def json_of(value, indent: int | None = None) -> str:
    """JSON in UTF-8's letters; half a surrogate pair, which JSON may hold and UTF-8 cannot, stays an escape."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode(errors="backslashreplace").decode()
