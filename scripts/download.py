"""Fetch published weights from the Hub into pretrained_models/.

    python3 scripts/download.py vq_ds16_c2i.pt c2i_B_384.pt
    python3 scripts/download.py --list
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from engine.config import run


@dataclass
class Download:
    files: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of published files."""
    list: bool = False
    """Print the names and where each is published."""
    folder: str = "pretrained_models"
    """Where the files go."""


def main(options: Download) -> None:
    from engine.hub import PUBLISHED, download, repository

    if options.list:
        print("\n".join(f"{name:24}{repo}" for name, repo in PUBLISHED.items()))
    elif not options.files:
        raise ValueError("give the names of files to fetch; --list shows them")
    for name in options.files:
        repository(name)  # a wrong name is said before anything is fetched
    for name in options.files:
        print(f"{name} -> {download(name, options.folder)}")


if __name__ == "__main__":
    run(main, Download)
