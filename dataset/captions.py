"""Lists of captions: .jsonl files, a caption a line, lines counted from 0.

    {"image_path": "0001.jpg", "text": ["a red cube", "A red cube on a table. It casts a shadow.", "A red cube"]}

`text` may be one caption, too, and --caption-key may name another entry of the line.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

# Of the published list under "text": captions by BLIP and by LLaVA, and the first sentence of the latter.
CAPTION_KEYS = {"blip": 0, "llava": 1, "llava_first": 2}
PART = 2**24  # bytes that are searched for line ends at once
SAMPLE = 1000  # lines whose text goes into a list's fingerprint


class BadLine(ValueError):
    """A line that cannot be used, by cause ("not JSON", "no caption", "no picture")."""

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


def caption_of(entry: object, key: str = "blip", trunc: bool = False) -> str:
    """The caption of a line's object: `text`, or the published key's of the list there; else, or without a `text`, the
    entry `key`.

    `trunc`: what stands before the first full stop.
    """
    if not isinstance(entry, dict):
        raise BadLine("no caption", f'expected an object such as {{"text": "a red cube"}}, found {_short(entry)}')
    name = "text" if key in CAPTION_KEYS and ("text" in entry or key not in entry) else key
    if name not in entry:
        raise BadLine("no caption", f"no '{name}' in it, but {', '.join(entry) or 'nothing'}; name the captions' by "
                                    "--caption-key")  # fmt: skip
    found = entry[name]
    if name == "text" and isinstance(found, list):
        number = CAPTION_KEYS.get(key, 0)
        if number >= len(found):
            raise BadLine("no caption", f"'text' holds {len(found)} captions, --caption-key {key} takes number "
                                        f"{number}, from 0")  # fmt: skip
        found = found[number]
    if not isinstance(found, str):
        raise BadLine("no caption", f"'{name}' is {_short(found)}, expected text")
    caption = found.partition(".")[0] if trunc else found
    if not caption.strip():
        raise BadLine("no caption", f"'{name}' is {_short(found)}: nothing to read")
    return caption


def lists_in(path: str | Path, start: int = 0, end: int | None = None, flag: str = "--data-path") -> list[Path]:
    """The .jsonl file itself, or those of a folder from number `start` to number `end`, included, as sorted."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{flag} {path}: there is no such file or folder")
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise ValueError(f"{flag} {path}: no .jsonl lists in it")
    last = len(files) - 1 if end is None else end
    if not 0 <= start <= last:
        raise ValueError(f"--data-start {start}, --data-end {last}: must be from 0 up, the end not before the start")
    if start >= len(files):
        raise ValueError(f"--data-start {start}: {path} holds {len(files)} lists, numbered from 0")
    chosen = files[start : last + 1]
    stems = [stem_of(file) for file in chosen]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f"{flag} {path}: several lists are called {', '.join(twice)} up to their first dot, which is "
                         "how their features and codes are found; rename them")  # fmt: skip
    return chosen


def stem_of(file: Path) -> str:
    """What a list's features and codes are called by: its name up to the first dot."""
    return file.name.partition(".")[0]


def line_starts(file: Path) -> np.ndarray:
    """int64 [lines + 1]: where each line begins, and the file's end."""
    starts, at = [np.zeros(1, np.int64)], 0
    with open(file, "rb") as data:
        while part := data.read(PART):
            starts.append(np.flatnonzero(np.frombuffer(part, np.uint8) == ord("\n")) + at + 1)
            at += len(part)
    found = np.concatenate(starts)
    return found if found[-1] == at else np.append(found, at)  # the last line may lack its end


def list_source(file: Path, starts: np.ndarray) -> dict:
    """What a store says of the list that it was made of; the fingerprint tells if that was edited or reordered since:
    a hash of where lines begin, and of what some stand there."""
    lines = len(starts) - 1
    digest = hashlib.sha256(starts[:-1].astype("<i8").tobytes())
    with open(file, "rb") as data:
        for number in np.unique(np.linspace(0, lines - 1, min(SAMPLE, lines)).astype(np.int64)):
            data.seek(int(starts[number]))
            digest.update(data.read(int(starts[number + 1] - starts[number])).rstrip(b"\r\n") + b"\n")
    return {"list": file.name, "lines": lines, "fingerprint": digest.hexdigest()[:16]}


def check_source(stored: dict | None, file: Path, starts: np.ndarray, flag: str, folder: Path, remake: str) -> None:
    """ValueError where a store's items are by the lines of another list than this one, or of what it was before."""
    now, stored = list_source(file, starts), stored or {}
    if stored.get("lines") not in (None, now["lines"]):
        raise ValueError(f"{flag} {folder}: was made of a list of {stored['lines']} lines, {file} has {now['lines']}: "
                         f"items would meet other lines. Give the list as it was, or {remake}")  # fmt: skip
    if stored.get("fingerprint") not in (None, now["fingerprint"]):
        raise ValueError(f"{flag} {folder}: {file} was edited or reordered since this was made of it: items might meet "
                         f"other lines. Give the list as it was, or {remake}; if the lines still have their order and "
                         f"what this holds of them, take the fingerprint out of {folder / 'meta.json'}")  # fmt: skip


def read_line(file: Path, starts: np.ndarray, number: int) -> object:
    """What the JSON of a line holds; BadLine where it is none."""
    begin, end = starts[number : number + 2].tolist()
    with open(file, "rb") as data:
        data.seek(begin)
        text = data.read(end - begin)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter of a thousand brackets
        raise BadLine("not JSON", f"not JSON ({error})") from error


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
