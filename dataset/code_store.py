"""The code store: a folder of codes with everything that one must know about them.

    meta.json                  format, count, grid, crops, vocab_size, tokenizer, image_size, class_names, source,
                               shards, skipped; written last: a folder without it is unfinished
    extraction.json            the settings of the extraction; it can only be continued with the same ones
    shard-00000.codes.npy      unsigned integers [pictures, K crops, N codes in raster order], memory-mapped when read
    shard-00000.labels.npy     int64 [pictures]; -1: unknown
    shard-00000.rows.npy       int64 [pictures]: each picture's row in the source list
    shard-00000.skipped.json   the shard's unreadable pictures: [{"row", "path", "reason"}, ...]
    skipped.jsonl              all of them, one a line

What a shard holds depends on the number of rows and the shard size alone, so the folder is the same, byte for byte,
whichever ranks wrote it in whichever order.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dataset.files import write_atomic, write_json

FORMAT = 1
SHARD_SIZE = 8192
SETTINGS = ("grid", "crops", "vocab_size", "tokenizer", "image_size", "class_names", "source")


def code_dtype(vocab_size: int) -> np.dtype:
    """The narrowest unsigned integer that holds every code."""
    return np.dtype(np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32)


class CodeStoreWriter:
    """Fills a code store shard by shard, by any number of ranks at once; each shard must be one rank's.

    `settings`: grid [h, w], crops, vocab_size, tokenizer {"name", "checksum"} or None, image_size, class_names or None,
    source, and whatever else decides the codes. All must be JSON-able. They stand in meta.json.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], rows_total: int, shard_size: int = SHARD_SIZE):
        missing = [name for name in SETTINGS if name not in settings]
        assert not missing, f"settings without {missing}"
        self.folder, self.rows_total, self.shard_size = Path(folder), rows_total, shard_size
        self.settings = json.loads(json.dumps(settings))  # tuples become lists, as they are read back
        height, width = self.settings["grid"]
        self.shape = (self.settings["crops"], height * width)
        self.dtype = code_dtype(self.settings["vocab_size"])
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--code-path {folder}: is a file; give a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._continue()

    def _continue(self) -> None:
        """Make sure that shards which lie there already come from the same extraction."""
        asked = {"rows_total": self.rows_total, "shard_size": self.shard_size, **self.settings}
        record = self.folder / "extraction.json"
        if not record.exists():
            if any(self.folder.glob("shard-*")) or (self.folder / "meta.json").exists():
                raise ValueError(f"--code-path {self.folder}: holds codes of unknown settings; give another folder")
            write_json(record, asked)
            return
        found = json.loads(record.read_text(encoding="utf-8"))
        differ = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
        if differ:
            listing = "; ".join(f"{n}: {_short(found.get(n))} there, {_short(asked.get(n))} asked for" for n in differ)
            raise ValueError(f"--code-path {self.folder}: holds codes of other settings ({listing}); "
                             "give the same settings to continue, or another folder")  # fmt: skip

    def path(self, shard: int, part: str) -> Path:
        return self.folder / f"shard-{shard:05d}.{part}"

    def shard_rows(self, shard: int) -> range:
        """The rows of the source list that belong to a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows_total))

    def missing_shards(self) -> list[int]:
        shards = -(-self.rows_total // self.shard_size)
        return [shard for shard in range(shards) if not self.path(shard, "codes.npy").exists()]

    def write_shard(
        self, shard: int, codes: np.ndarray, labels: np.ndarray, rows: np.ndarray, skipped: list[dict] | None = None
    ) -> None:
        """codes [pictures, K, N]; labels, rows [pictures], rows rising; skipped: {"row", "path", "reason"} each."""
        skipped = sorted(skipped or [], key=lambda bad: bad["row"])
        rows = np.asarray(rows, np.int64)
        everything = sorted([*rows.tolist(), *(bad["row"] for bad in skipped)])
        assert codes.shape == (len(rows), *self.shape) and len(labels) == len(rows), "codes, labels, rows do not match"
        assert (np.diff(rows) > 0).all() and everything == list(self.shard_rows(shard)), "not the shard's rows"
        outside = _outside(codes, self.settings["vocab_size"])
        if outside is not None:
            raise ValueError(f"code {outside} is not below the vocabulary size, {self.settings['vocab_size']}: "
                             "give the --codebook-size (--vocab-size) of the tokenizer that made it")  # fmt: skip
        for leftover in self.folder.glob(f".shard-{shard:05d}.*.part"):  # of a killed run
            leftover.unlink()
        write_json(self.path(shard, "skipped.json"), skipped)
        _save(self.path(shard, "labels.npy"), np.asarray(labels, np.int64))
        _save(self.path(shard, "rows.npy"), rows)
        # The codes come last: where they stand, the shard is whole.
        _save(self.path(shard, "codes.npy"), np.ascontiguousarray(codes, self.dtype))

    def skipped(self) -> list[dict]:
        """The unreadable pictures of the shards that are written."""
        paths = sorted(self.folder.glob("shard-*.skipped.json"))
        return [bad for path in paths for bad in json.loads(path.read_text(encoding="utf-8"))]

    def finish(self) -> dict:
        """Once all ranks are done, on one of them: write the report and meta.json. Returns what meta.json says."""
        if missing := self.missing_shards():
            raise ValueError(f"--code-path {self.folder}: {len(missing)} shards are missing, the first: {missing[0]}; "
                             "run the extraction again with the same flags, it continues")  # fmt: skip
        for leftover in self.folder.glob(".*.part"):
            leftover.unlink()
        shards = []
        for shard in range(-(-self.rows_total // self.shard_size)):
            path = self.path(shard, "codes.npy")
            shards.append({"file": path.name, "pictures": len(_open(path))})
        skipped = self.skipped()
        count = sum(shard["pictures"] for shard in shards)
        if not count:
            raise ValueError(f"--code-path {self.folder}: none of the {self.rows_total} pictures could be read; "
                             f"the first: {skipped[0]['reason'] if skipped else 'there are none'}")  # fmt: skip
        report = "".join(json.dumps(bad, ensure_ascii=False) + "\n" for bad in skipped)
        write_atomic(self.folder / "skipped.jsonl", lambda file: file.write(report.encode()))
        meta = {"format": FORMAT, "count": count, **self.settings, "skipped": len(skipped), "shards": shards}
        write_json(self.folder / "meta.json", meta)
        return meta


class CodeStore:
    """A finished code store, opened for reading. Pictures are numbered from 0 to count - 1, without gaps."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.meta = meta = _read_meta(self.folder)
        self.count: int = meta["count"]
        self.grid: tuple[int, int] = tuple(meta["grid"])
        self.crops: int = meta["crops"]
        self.vocab_size: int = meta["vocab_size"]
        self.tokenizer: dict | None = meta["tokenizer"]
        self.image_size: int = meta["image_size"]
        self.class_names: list[str] | None = meta["class_names"]
        self._starts = np.cumsum([0] + [shard["pictures"] for shard in meta["shards"]])
        self._shards = [self._open_shard(shard) for shard in meta["shards"]]
        self._labels = self._column("labels")
        self.source_rows = self._column("rows")  # int64 [count]: each picture's row in the source list

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
            result[places] = self._shards[shard][local if crop is None else (local, crop[places])]
        return result

    def labels(self, pictures: np.ndarray) -> np.ndarray:
        """int64 [n]."""
        return self._labels[pictures]

    def _open_shard(self, shard: dict) -> np.ndarray:
        path = self.folder / shard["file"]
        codes = _open(path)
        expected = (shard["pictures"], self.crops, self.grid[0] * self.grid[1])
        if codes.shape != expected or codes.dtype != code_dtype(self.vocab_size):
            raise ValueError(f"{path}: holds {codes.dtype} {list(codes.shape)}, but meta.json says "
                             f"{code_dtype(self.vocab_size)} {list(expected)}; {_REMAKE}")  # fmt: skip
        return codes

    def _column(self, name: str) -> np.ndarray:
        parts = []
        for shard in self.meta["shards"]:
            path = self.folder / shard["file"].replace(".codes.", f".{name}.")
            parts.append(np.array(_open(path)))
            if parts[-1].shape != (shard["pictures"],):
                raise ValueError(f"{path}: has {len(parts[-1])} entries, not {shard['pictures']}; {_REMAKE}")
        return np.concatenate(parts)

    def first_outside(self, vocab_size: int) -> tuple[Path, int] | None:
        """The first shard with a code that is not below vocab_size, and that code; reads everything once."""
        for shard, codes in zip(self.meta["shards"], self._shards):
            if (outside := _outside(codes, vocab_size)) is not None:
                return self.folder / shard["file"], outside
        return None

    def __reduce__(self):
        return CodeStore, (self.folder,)  # a worker process maps the files anew instead of being sent their content


_REMAKE = "delete this shard's .codes.npy and meta.json, and run the extraction again with the same flags"


def _read_meta(folder: Path) -> dict:
    path = folder / "meta.json"
    if not path.exists():
        if not (folder / "extraction.json").exists():
            raise ValueError(f"--code-path {folder}: there is no code store (no meta.json)")
        done = len(list(folder.glob("shard-*.codes.npy")))
        raise ValueError(f"--code-path {folder}: the extraction is unfinished ({done} shards, no meta.json); "
                         "run extract_codes_c2i.py again with the same flags, it continues")  # fmt: skip
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path}: format {meta.get('format')}, but this version reads {FORMAT}: update llamagen")
    missing = [name for name in ("count", "shards", *SETTINGS) if name not in meta]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    return meta


def _open(path: Path) -> np.ndarray:
    try:
        # A plain array over the mapped file: np.memmap's own indexing is several times slower.
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: is missing; {_REMAKE}") from error
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: truncated or not an .npy file ({error}); {_REMAKE}") from error


def _save(path: Path, array: np.ndarray) -> None:
    write_atomic(path, lambda file: np.save(file, array, allow_pickle=False))


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


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
