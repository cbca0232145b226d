"""Folders that appear whole or not at all, and are made once."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.checkpoint import write_json

SETTINGS = "settings.json"  # what a folder was made from


@contextmanager
def made_once(folder: str | Path, settings: dict, flag: str) -> Iterator[Path | None]:
    """A folder aside to fill, renamed to `folder` at the end; None: `folder` is there, made by the same `settings`.

    What stops the work leaves nothing behind. A folder that other settings made, or anything else, is refused, blaming
    `flag`.
    """
    shown, folder = folder, Path(folder).resolve()
    if (folder / SETTINGS).is_file():
        refuse_others(folder / SETTINGS, settings, f"{flag} {shown}")
        yield None
        return
    with made_whole(shown, flag) as aside:
        yield aside
        write_json(aside / SETTINGS, settings)


@contextmanager
def made_whole(folder: str | Path, flag: str) -> Iterator[Path]:
    """A folder aside to fill, renamed to `folder` at the end. What stops the work leaves nothing behind; a folder that
    holds something is refused, blaming `flag`."""
    shown, folder = folder, Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{flag} {shown}: holds something else already; choose another folder or remove it")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        aside.mkdir(parents=True)
        yield aside
        os.replace(aside, folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, f"{flag} {shown}: could not be written ({error.strerror})") from error
        raise


def refuse_others(path: Path, settings: dict, which: str) -> None:
    """ValueError where the file `path` tells of other settings."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in sorted({*held, *settings}) if held.get(name) != settings.get(name)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{which}: its {path.name} is not readable ({error}); remove the folder") from error
    if different:
        told = ", ".join(f"{name} {held.get(name)}, not {settings.get(name)}" for name in different)
        raise ValueError(f"{which}: was made from other settings ({told}); choose another folder or remove it")
