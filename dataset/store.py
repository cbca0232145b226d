"""What all stores have in common: a folder of shards that any number of ranks may fill, a description written last.

    meta.json                  format, count, the settings, shards, skipped; a folder without it is unfinished
    extraction.json            the settings of the extraction; it can only be continued with the same ones
    shard-00000.{part}.npy     arrays; the store's main part is written last: where it stands, the shard is whole
    shard-00000.rows.npy       int64: each item's row in the source list
    shard-00000.skipped.json   the rows that could not be used: [{"row", "path", "reason", "cause"}, ...]
    skipped.jsonl              all of them, one a line

Which rows a shard holds depends on their number and the shard size alone, so the folder is the same whichever ranks
wrote it in whichever order.
"""

import errno
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dataset.faults import Skipped
from dataset.files import json_of, write_atomic, write_json

_numbers = count()  # of the stores that this process opens: a folder that is written anew is another store
MAPPED = 256  # shards held open, of all stores: each is an open file, of which a process often may have but 1,024


@dataclass(frozen=True)
class Kind:
    """A kind of store, in the words of its files and messages."""

    name: str  # "code": its main part is "codes"
    items: str  # what has a row each, in the plural
    command: str  # goes on with an unfinished one
    settings: tuple[str, ...]  # what its meta.json must say
    format: int = 1

    @property
    def part(self) -> str:
        return f"{self.name}s"

    @property
    def remake(self) -> str:
        return f"delete this shard's .{self.part}.npy and meta.json, and run the extraction again with the same flags"


class StoreWriter:
    """Fills a store shard by shard, by any number of ranks at once; each shard must be one rank's.

    `settings`: all that kind.settings names, and whatever else decides the content, JSON-able; they stand in meta.json.
    `flag`: by which the folder was given.
    """

    kind: ClassVar[Kind]

    def __init__(self, folder: str | Path, settings: dict[str, Any], rows_total: int, shard_size: int, flag: str):
        missing = [name for name in self.kind.settings if name not in settings]
        assert not missing, f"settings without {missing}"
        self.folder, self.rows_total, self.shard_size, self.flag = Path(folder), rows_total, shard_size, flag
        self.settings = json.loads(json.dumps(settings))  # tuples become lists, as they are read back
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{flag} {folder}: is a file; give a folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{flag}: cannot make the folder {folder} ({error.strerror}); choose another") from error
        self._continue()

    def _continue(self) -> None:
        """Make sure that shards which lie there already come from the same extraction."""
        asked = {"rows_total": self.rows_total, "shard_size": self.shard_size, **self.settings}
        record, holds = self.folder / "extraction.json", f"{self.flag} {self.folder}: holds {self.kind.part}"
        if not record.exists():
            if any(self.folder.glob("shard-*")) or (self.folder / "meta.json").exists():
                raise ValueError(f"{holds} of unknown settings; give another folder")
            write_json(record, asked)
            return
        found = json.loads(record.read_text(encoding="utf-8"))
        differ = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
        if differ:
            listing = "; ".join(f"{n}: {_short(found.get(n))} there, {_short(asked.get(n))} asked for" for n in differ)
            raise ValueError(f"{holds} of other settings ({listing}); "
                             "give the same settings to continue, or another folder")  # fmt: skip

    def path(self, shard: int, part: str) -> Path:
        return self.folder / f"shard-{shard:05d}.{part}"

    def shard_rows(self, shard: int) -> range:
        """The rows of the source list that belong to a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows_total))

    @property
    def shards(self) -> int:
        return -(-self.rows_total // self.shard_size)

    def missing_shards(self) -> list[int]:
        return [shard for shard in range(self.shards) if not self.path(shard, f"{self.kind.part}.npy").exists()]

    def _write(self, shard: int, rows: np.ndarray, skipped: list[dict] | None, **parts: np.ndarray) -> None:
        """rows [items], rising, and skipped, {"row", "path", "reason", "cause"} each, must be the shard's; the main
        part comes last among the others."""
        assert list(parts)[-1] == self.kind.part
        skipped = sorted(skipped or [], key=lambda bad: bad["row"])
        rows = np.asarray(rows, np.int64)
        everything = sorted([*rows.tolist(), *(bad["row"] for bad in skipped)])
        assert (np.diff(rows) > 0).all() and everything == list(self.shard_rows(shard)), "not the shard's rows"
        for leftover in self.folder.glob(f".shard-{shard:05d}.*.part"):  # of a killed run
            leftover.unlink()
        write_json(self.path(shard, "skipped.json"), skipped)
        for part, array in {"rows": rows, **parts}.items():
            _save(self.path(shard, f"{part}.npy"), array)

    def skipped(self) -> list[dict]:
        """What could not be read of the shards that are written."""
        paths = sorted(self.folder.glob("shard-*.skipped.json"))
        return [bad for path in paths for bad in json.loads(path.read_text(encoding="utf-8"))]

    def describe(self, shard: int) -> dict[str, Any]:
        """What meta.json says of a shard: "file", kind.items, and what else its size is."""
        path = self.path(shard, f"{self.kind.part}.npy")
        return {"file": path.name, self.kind.items: len(open_array(path, self.kind))}

    def totals(self, shards: list[dict[str, Any]]) -> dict[str, Any]:
        """What meta.json says of all the shards together, beside the count."""
        return {}

    def finish(self, empty: bool = False) -> dict:
        """Once all ranks are done, on one of them: write the report and meta.json. Returns what meta.json says.

        empty: nothing but skipped rows will do, as where it is one store of many.
        """
        if missing := self.missing_shards():
            raise ValueError(f"{self.flag} {self.folder}: {len(missing)} shards are missing, the first: {missing[0]}; "
                             "run the extraction again with the same flags, it continues")  # fmt: skip
        for leftover in self.folder.glob(".*.part"):
            leftover.unlink()
        shards = [self.describe(shard) for shard in range(self.shards)]
        skipped = self.skipped()
        items = sum(shard[self.kind.items] for shard in shards)
        if not items and not empty:
            raise ValueError(f"{self.flag} {self.folder}: none of the {self.rows_total} {self.kind.items} could be "
                             f"read; the first: {skipped[0]['reason'] if skipped else 'there are none'}")  # fmt: skip
        report = "".join(json_of(bad) + "\n" for bad in skipped)
        write_atomic(self.folder / "skipped.jsonl", lambda file: file.write(report.encode()))
        meta = {"format": self.kind.format, "count": items, **self.totals(shards), **self.settings,
                "skipped": len(skipped), "shards": shards}  # fmt: skip
        write_json(self.folder / "meta.json", meta)
        return meta


def finish_stores(writers: Sequence[StoreWriter], max_bad: float, what: str) -> list[tuple[list[dict], dict]]:
    """Once all ranks are done, on one of them: what was skipped of each store, and what its meta.json says. ValueError
    where too many rows of all were skipped; one store of several may hold nothing."""
    skipped = [writer.skipped() for writer in writers]
    rows = sum(writer.rows_total for writer in writers)
    everything = [bad for each in skipped for bad in each]
    Skipped(rows, max_bad, what).add(everything)
    return [(each, writer.finish(empty=len(everything) < rows)) for each, writer in zip(skipped, writers)]


class Store:
    """A finished store, opened for reading. Items are numbered from 0 to count - 1, without gaps."""

    kind: ClassVar[Kind]

    def __init__(self, folder: str | Path, flag: str):
        self.folder, self.flag = Path(folder), flag
        self.meta = self._read_meta()
        self.count: int = self.meta["count"]
        self._starts = np.cumsum([0] + [shard[self.kind.items] for shard in self.meta["shards"]])
        self._number = next(_numbers)
        for shard in self.meta["shards"]:
            self._check_shard(shard)

    def _read_meta(self) -> dict:
        path, kind = self.folder / "meta.json", self.kind
        if not path.exists():
            if not (self.folder / "extraction.json").exists():
                raise ValueError(f"{self.flag} {self.folder}: there is no {kind.name} store (no meta.json)")
            done = len(list(self.folder.glob(f"shard-*.{kind.part}.npy")))
            raise ValueError(f"{self.flag} {self.folder}: the extraction is unfinished ({done} shards, no meta.json); "
                             f"run {kind.command} again with the same flags, it continues")  # fmt: skip
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error})") from error
        if meta.get("format") != kind.format:
            raise ValueError(f"{path}: format {meta.get('format')}, but this version reads {kind.format}: "
                             "update llamagen")  # fmt: skip
        missing = [name for name in ("count", "shards", *kind.settings) if name not in meta]
        if missing:
            raise ValueError(f"{path}: lacks {', '.join(missing)}")
        return meta

    def shard_shape(self, shard: dict) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of a shard's main part, by what meta.json says."""
        raise NotImplementedError

    def shard(self, number: int) -> np.ndarray:
        """The main part of a shard, mapped."""
        return _mapped(self._number, self.folder / self.meta["shards"][number]["file"], self.kind)

    def _check_shard(self, shard: dict) -> None:
        path = self.folder / shard["file"]
        array, (shape, dtype) = open_array(path, self.kind), self.shard_shape(shard)
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{path}: holds {array.dtype} {list(array.shape)}, but meta.json says "
                             f"{dtype} {list(shape)}; {self.kind.remake}")  # fmt: skip

    def columns(self, part: str, more: int = 0) -> list[np.ndarray]:
        """Each shard's array of another part, read into memory; it has an entry for each item, and `more`."""
        found = []
        for shard in self.meta["shards"]:
            path = self.folder / shard["file"].replace(f".{self.kind.part}.", f".{part}.")
            found.append(np.array(open_array(path, self.kind)))
            if found[-1].shape != (expected := shard[self.kind.items] + more,):
                raise ValueError(f"{path}: has {len(found[-1])} entries, not {expected}; {self.kind.remake}")
        return found

    def column(self, part: str) -> np.ndarray:
        """One entry for each item."""
        return np.concatenate(self.columns(part))

    def __reduce__(self):
        return type(self), (self.folder, self.flag)  # a worker maps the files anew instead of being sent their content


@lru_cache(MAPPED)
def _mapped(store: int, path: Path, kind: Kind) -> np.ndarray:
    return open_array(path, kind)


def open_array(path: Path, kind: Kind) -> np.ndarray:
    """An array over the mapped file."""
    try:
        # A plain one: np.memmap's own indexing is several times slower.
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: is missing; {kind.remake}") from error
    except (OSError, ValueError, EOFError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise ValueError(f"{path}: {error.strerror}; allow this process more of them (ulimit -n)") from error
        raise ValueError(f"{path}: truncated or not an .npy file ({error}); {kind.remake}") from error


def _save(path: Path, array: np.ndarray) -> None:
    write_atomic(path, lambda file: np.save(file, array, allow_pickle=False))


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
