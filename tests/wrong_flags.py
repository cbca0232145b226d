"""Tables of wrong flags: each command with flags that work, of which a fault gives some again, otherwise."""

import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

from support import ROOT


class Commands:
    """Commands in this process; `good`: flags that work, with {places} in them and {out}."""

    def __init__(self, good: Mapping[str, str]):
        self.good = good

    def call(self, entry: str, more: str = "", *, places: Mapping[str, Path], out: Path) -> int:
        """The exit code."""
        previous, sys.argv = sys.argv, [str(ROOT / entry), *self.arguments(entry, more, places, out)]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        finally:
            sys.argv = previous
        return 0

    def arguments(self, entry: str, more: str, places: Mapping[str, Path], out: Path) -> list[str]:
        """The good flags, but for those that are given once more; files without a flag come first."""
        words = f"{self.good[entry]} {more}".format(**places, out=out)
        files = words.partition("--")[0].split()
        values = dict(re.findall(r"(--\S+)((?: (?!--)\S+)*)", words))
        return [*files, *(word for flag, given in values.items() for word in (flag, *given.split()))]


def assert_sentence(said: str, words: str) -> None:
    """What a command said of a fault is no trace but a sentence with these words (a pattern)."""
    unboxed = re.sub(r"[\s│]+", " ", said)  # tyro breaks its lines, within a box
    assert re.search(words, unboxed) and "Traceback" not in said, said


def named(each: str) -> str:
    """The name of a table's cell in a test's."""
    return Path(each).stem if ".py" in each else each
