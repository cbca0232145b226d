"""Lists of prompts: csv, tsv or jsonl with a column of prompts, or plain text with a prompt a line."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

COLUMNS = ("prompt", "caption", "text")  # in any case; the first of them that is there
FORMATS = (".csv", ".tsv", ".jsonl", ".txt")


def read_prompts(path: str | Path, flag: str = "") -> list[str]:
    """The prompts of a file, in its order, without the white space around them. An empty cell is an empty prompt (in a
    table of one column it is written ""); blank lines, and rows whose cells are all empty, are passed over.

    `flag`: who named the file, to be blamed for what cannot be read.

    Delimiter of .csv and .tsv: the tab where the header has one, else the comma. A header of one column alone has none,
    as published lists are: commas then belong to the prompts, unless the whole file is a well-formed csv of one column.
    """
    try:
        return _read_prompts(Path(path))
    except ValueError as error:
        raise ValueError(f"{flag} {error}".strip()) from error


def _read_prompts(path: Path) -> list[str]:
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: not a list of prompts by its name; expected {', '.join(FORMATS)}")
    lines = read_lines(path)
    if path.suffix.lower() == ".txt":
        prompts = [line.strip() for line in lines if line.strip()]
    else:
        found = _of_objects if path.suffix.lower() == ".jsonl" else _of_table
        prompts = [prompt.strip() for prompt in found(path, lines)]
    if not prompts:
        raise ValueError(f"{path}: no prompts in it")
    return prompts


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without their ends; a last empty one is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; expected a file of text") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    lines = text.split("\n")  # str.splitlines() would end a line at rare characters within captions, too
    return lines if lines[-1] else lines[:-1]


def _column(names: list[str], where: str) -> int:
    lower = [name.strip().lower() for name in names]
    for column in COLUMNS:
        if column in lower:
            return lower.index(column)
    raise ValueError(f"{where}: no column of prompts; expected one named {', '.join(COLUMNS)} (in any case), found "
                     f"{', '.join(names) or 'none'}")  # fmt: skip


def _of_table(path: Path, lines: list[str]) -> Iterator[str]:
    """The prompt of each row below the header."""
    header = next((line for line in lines if line.strip()), "")
    by_comma = "\t" not in header and ("," in header or _is_one_column(path, lines))
    # One column alone is read by the tab as well: in it, a comma ends nothing.
    rows = _rows_by_comma(path, lines) if by_comma else _rows_by_tab(lines)
    names: list[str] = []
    for number, row in rows:
        where = f"{path}, line {number}"
        if not any(cell.strip() for cell in row) and row != [""]:
            continue
        if not names:
            names, column = row, _column(row, where)
        elif column >= len(row) or len(row) > len(names):
            raise ValueError(f"{where}: has {len(row)} columns, the header {len(names)} ({', '.join(names)}); a prompt "
                             "that holds the delimiter stands in double quotes")  # fmt: skip
        else:
            yield " ".join(row[column].split("\n"))


def _is_one_column(path: Path, lines: list[str]) -> bool:
    """Whether all is written as csv writers do it, with quotes around prompts that hold commas, quotes or new lines."""
    try:
        return path.suffix.lower() == ".csv" and all(len(row) <= 1 for _, row in _rows_by_comma(path, lines))
    except ValueError:
        return False


def _rows_by_tab(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """A row is a line. Where its quotes enclose no column, they belong to the prompt: `"Hello" on a sign`."""
    for number, line in enumerate(lines, 1):
        try:
            yield number, next(csv.reader([line], delimiter="\t", strict=True), [])
        except csv.Error:
            yield number, line.split("\t")


def _rows_by_comma(path: Path, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Columns in quotes may hold commas and run over several lines."""
    rows, number = csv.reader((line + "\n" for line in lines), strict=True), 1
    try:
        for row in rows:
            yield number, row
            number = rows.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {number}: not readable as a table ({error}); a prompt that holds quotes stands "
                         "in quotes itself, and those within are doubled") from error  # fmt: skip


def _of_objects(path: Path, lines: list[str]) -> Iterator[str]:
    """The prompt of each JSON object."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error})") from error
        if not isinstance(entry, dict):
            raise ValueError(f'{where}: expected an object such as {{"prompt": "a red cube"}}')
        prompt = list(entry.values())[_column(list(entry), where)]
        if not isinstance(prompt, str):
            raise ValueError(f"{where}: its prompt is {json.dumps(prompt)[:60]}, expected text")
        yield prompt
