"""Lists of captions -> a small T5 of their own, as a folder that the samplers and the trainer take."""

import hashlib
import json
from functools import cache
from pathlib import Path

from dataset.captions import BadLine, caption_of, line_starts, lists_in, read_line
from engine.folders import made_once
from language.clean import clean_caption
from language.small_t5 import save, train
from language.small_t5_options import SmallT5


def train_small_t5(options: SmallT5) -> None:
    captions = read_captions(options.data_path, options.clean)
    settings = {name: getattr(options, name) for name in options.__dataclass_fields__ if name not in PLACES}
    with made_once(options.output, {"captions": checksum(captions), **settings}, "--output") as folder:
        if folder:
            model, pieces, share = train(captions, options)
            save(folder, model, pieces)
            print(f"{share:.0%} of the masked words of held-out captions are filled in rightly")
    print(f"a T5 with features of width {options.width} {'->' if folder else 'is there already:'} {options.output}")


PLACES = {"data_path", "output"}  # where things lie makes no other model


def read_captions(path: str | Path, clean: bool = True) -> list[list[str]]:
    """Of each line of a list, or of a folder's lists in sorted order, all captions under "text"."""
    found = []
    cleaned = cache(clean_caption)  # generated captions repeat
    for file in lists_in(path):
        starts = line_starts(file)
        for number in range(len(starts) - 1):
            try:
                entry = read_line(file, starts, number)
                texts = entry["text"] if isinstance(entry, dict) and isinstance(entry.get("text"), list) else []
                line = [caption_of({"text": text}) for text in texts] or [caption_of(entry)]
            except BadLine as bad:
                raise ValueError(f"--data-path {file}, line {number}: {bad}") from bad
            found.append([cleaned(text) if clean else text for text in line])
    if len(found) < 2:
        raise ValueError(f"--data-path {path}: {len(found)} captions, too few to train on some and hold out others")
    return found


def checksum(captions: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(captions).encode()).hexdigest()[:16]
