"""Names of classes: found by number, name, or part of a name."""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path


@cache
def imagenet_classes() -> list[str]:
    """The 1000 class names of ImageNet-1k, by label."""
    return json.loads((Path(__file__).parent / "imagenet_classes.json").read_text())


def class_names_for(names: Sequence[str] | None, count: int) -> list[str]:
    """`names` if known; else ImageNet's for 1000 classes, else the numbers themselves."""
    if names is not None:
        return list(names)
    return imagenet_classes() if count == 1000 else [str(i) for i in range(count)]


def find_label(label: int | str, names: Sequence[str]) -> int:
    """The number of a class given by number or name (any case); ValueError with near names where there is none.

    An int is a number. A string of digits is a number unless a class has that name.
    """
    text = str(label).strip()
    lowered = [name.lower() for name in names]
    if isinstance(label, str):
        found = [i for i, name in enumerate(lowered) if name == text.lower()]
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise ValueError(f"class {text!r}: the classes {numbers} have this name; give the number")
        if found:
            return found[0]
    if re.fullmatch(r"-?\d+", text):
        if 0 <= int(text) < len(names):
            return int(text)
        raise ValueError(f"class {text}: this model has classes 0 to {len(names) - 1}")
    near = [names[i] for i, name in enumerate(lowered) if text.lower() in name][:5]
    near = near or [names[lowered.index(n)] for n in get_close_matches(text.lower(), lowered)]
    raise ValueError(f"class {text!r}: unknown; " + (f"did you mean {', '.join(near)}?" if near else
                     f"the classes are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"))  # fmt: skip
