"""Handwritten digits in one colour on a ground of another, with captions: a small data set for text-to-image models.

Each picture is a function of (seed, split, number), whatever else is made. Axes: H and W pixels, 32 of each.
"""

import csv
import io
import json
from collections.abc import Collection, Iterator
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.digits import digits_arrays
from dataset.files import write_atomic
from dataset.order import draw

SIDE = 32
# Far apart, so that neither a person nor the mean of some blurred pixels takes one for another.
COLOURS = {
    "black": (20, 20, 20),
    "red": (220, 30, 30),
    "blue": (50, 80, 235),
    "yellow": (250, 205, 0),
}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Sides in pixels that a scan of 8 x 8 is enlarged to, in the middle of the picture: codes of a few pixels' side are far
# fewer, and learnt far sooner, where strokes do not move by single pixels. A frame of one pixel is always ground.
SIZES = {"small": 22, "large": 30}
PROMPTS = 400

# Colour and ground come in either order, so that only the words around a colour say whose it is. The size is told in
# half of the captions.
PHRASINGS = (
    "a {size}{colour} {digit} on a {ground} background",
    "{a_size_digit}, drawn in {colour} on {ground}",
    "the {size}number {digit} in {colour}, the background is {ground}",
    "on {ground} ground: a {size}{colour} {digit}",
    "a {ground} picture with a {size}{colour} {digit} in it",
    "{colour} digit {digit}{comma_size} against {ground}",
    "{a_size_digit} written in {colour} ink on {ground} paper",
    "against {ground} stands a {size}{colour} {digit}",
    "{ground} background, {size}{colour} {digit}",
    "the background is {ground} and the {size}{digit} is {colour}",
)
LONGER = (
    "The picture shows {a_size_digit} that was written by hand. The digit is {colour} and the background is {ground}.",
    "This is a {ground} square. In its middle stands a {size}{digit}, which is {colour} all over.",
    "There is a {size}{colour} digit in the picture, the number {digit}. All around it the picture is {ground}.",
    "Somebody took {colour} paint and wrote {a_size_digit} with it. The paper below is {ground}.",
)
SHORTER = ("a {colour} {digit} on {ground}", "{digit} in {colour} on {ground}", "on {ground}, a {colour} {digit}")

# Kinds of choices, as in dataset/order.py, whose own end below 100.
KIND, SCAN, SIZE, PHRASING, FIGURE, TOLD, PROMPT = range(100, 107)
SPLITS = {"train": 0, "test": 1, "prompts": 2}


class Kind(NamedTuple):
    """What a picture shows."""

    digit: int
    colour: str
    ground: str


class Sample(NamedTuple):
    picture: np.ndarray  # uint8 [H, W, 3]
    kind: Kind
    size: str
    scan: int  # the row of digits_arrays(split)
    text: list[str]  # a caption, a longer one, a short one


KINDS = [Kind(*each) for each in product(range(10), COLOURS, COLOURS) if each[1] != each[2]]


def chance(seed: int, split: str, number, choice: int) -> np.ndarray:
    """Uniform in [0, 1), a function of all its arguments; `number` may be an array."""
    return draw(seed, SPLITS[split], number, choice)


def kind_of(seed: int, split: str, number: int) -> tuple[Kind, int]:
    """Every len(KINDS) pictures in a row show every kind once. Also how many pictures before have the kind's digit."""
    round_, place = divmod(number, len(KINDS))
    order = _order(seed, split, round_)
    kind = KINDS[order[place]]
    before = sum(KINDS[i].digit == kind.digit for i in order[:place])
    return kind, round_ * (len(KINDS) // 10) + before


@lru_cache(64)
def _order(seed: int, split: str, round_: int) -> list[int]:
    keys = chance(seed, split, round_ * len(KINDS) + np.arange(len(KINDS)), KIND)
    return np.argsort(keys, kind="stable").tolist()


@cache
def scans(split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each digit: the rows of its scans, and the scans from 0 to 1, float32 [N, 8, 8]."""
    features, labels = digits_arrays(split)
    grey = features.reshape(-1, 8, 8).astype(np.float32) / 16
    return [(np.flatnonzero(labels == digit), grey[labels == digit]) for digit in range(10)]


def make(seed: int, split: str, number: int) -> Sample:
    """One picture of the split, with its captions."""
    kind, before = kind_of(seed, split, number)
    rows, shapes = scans(split)[kind.digit]
    # All scans of a digit have been used once before one is used again.
    use, turn = divmod(before, len(rows))
    keys = chance(seed, split, (use * 10 + kind.digit) * 1000 + np.arange(len(rows)), SCAN)
    place = int(np.argsort(keys, kind="stable")[turn])
    name = "small" if chance(seed, split, number, SIZE) < 0.5 else "large"
    picture = painted(shapes[place], SIZES[name], COLOURS[kind.colour], COLOURS[kind.ground])
    ways = chance(seed, split, 3 * number + np.arange(3)[:, None], np.array([PHRASING, FIGURE, TOLD]))
    text = captions(kind, name, ways)
    return Sample(picture, kind, name, int(rows[place]), text)


def painted(scan: np.ndarray, side: int, colour: tuple, ground: tuple) -> np.ndarray:
    """The scan [8, 8], from 0 to 1, as strokes with smooth edges."""
    grown = np.asarray(Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC))
    # A little more than half of full ink is within the stroke, so that loops stay open. Edges are a good pixel wide.
    steepness = side / 8 * 0.6
    cover = np.pad(np.clip(0.5 + (grown - 0.54) * steepness, 0, 1), (SIDE - side) // 2)[..., None]
    mixed = cover * np.array(colour) + (1 - cover) * np.array(ground)
    return np.rint(mixed).astype(np.uint8)


def captions(kind: Kind, size: str, chances: np.ndarray) -> list[str]:
    """A caption, a longer one and a short one; chances [3, 3]: of each, the phrasing, a figure or a word, size told."""
    texts = []
    for templates, (which, figure, told) in zip((PHRASINGS, LONGER, SHORTER), chances):
        template = templates[int(which * len(templates))]
        texts.append(phrase(template, kind, figure < 0.5, size if told < 0.5 else ""))
    return texts


def phrase(template: str, kind: Kind, figure: bool, size: str) -> str:
    """The template's words, with the digit as a figure or a word; size "" is not told."""
    digit = str(kind.digit) if figure else WORDS[kind.digit]
    size_digit = f"{size} {digit}".strip()
    a_size_digit = f"{'an' if size_digit[0] in '8e' else 'a'} {size_digit}"
    return template.format(digit=digit, colour=kind.colour, ground=kind.ground, size=size and f"{size} ",
                           comma_size=size and f", {size},", a_size_digit=a_size_digit)  # fmt: skip


def prompts(seed: int) -> list[tuple[str, Kind]]:
    """400 captions, three or four of every kind, the digits in turn; digits, colours, grounds, phrasings, words and
    figures are equally frequent, and sizes are told in half of them."""
    names, columns = list(COLOURS), []
    for digit in range(10):
        # The ground is so many names further on than the colour.
        further = [*(1, 2, 3) * 3, 1 + digit % 3]
        kinds = [Kind(digit, names[i], names[(i + step) % 4]) for step in further for i in range(4)]
        keys = chance(seed, "prompts", digit * 1000 + np.arange(2 * len(kinds)), PROMPT).reshape(2, -1)
        kinds = [kinds[i] for i in np.argsort(keys[0], kind="stable")]
        ways = np.argsort(keys[1], kind="stable")  # 10 phrasings x 2 x 2
        columns.append([(way_of(int(way), kind), kind) for way, kind in zip(ways, kinds)])
    return [column[i] for i in range(PROMPTS // 10) for column in columns]


def way_of(way: int, kind: Kind) -> str:
    """The caption in the phrasing way % 10; above, bits: a figure or a word, which size or none."""
    template, rest = PHRASINGS[way % len(PHRASINGS)], way // len(PHRASINGS)
    size = "" if rest < 2 else ("small", "large")[(way + kind.digit) % 2]
    return phrase(template, kind, rest % 2 == 0, size)


def write_pictures(folder: Path, train: int, test: int, seed: int, kinds: Collection[Kind] = KINDS) -> None:
    """pictures/, lists/ and prompts.tsv within the folder; the test list's pictures are numbered after train's. Of the
    train list and the prompts, all but these kinds are left out; the judge learns every kind from the test list."""
    (folder / "pictures").mkdir()
    (folder / "lists").mkdir()
    for split, count, first, shown in (("train", train, 0, kinds), ("test", test, train, KINDS)):
        lines = "".join(_written(folder, split, count, first, seed, shown))
        write_atomic(folder / "lists" / f"{split}.jsonl", lambda file, lines=lines: file.write(lines.encode()))
    table = io.StringIO()
    rows = csv.writer(table, delimiter="\t", lineterminator="\n")
    rows.writerow(["Prompt", "digit", "colour", "ground"])
    rows.writerows([text, *kind] for text, kind in prompts(seed) if kind in kinds)
    write_atomic(folder / "prompts.tsv", lambda file: file.write(table.getvalue().encode()))


def _written(folder: Path, split: str, count: int, first: int, seed: int, kinds: Collection[Kind]) -> Iterator[str]:
    """Write a split's pictures; its list's lines."""
    for number in range(count):
        if kind_of(seed, split, number)[0] not in kinds:
            continue
        sample = make(seed, split, number)
        name = f"pictures/{first + number:06d}.png"
        Image.fromarray(sample.picture).save(folder / name)
        line = {"image_path": f"../{name}", "text": sample.text, **sample.kind._asdict(), "size": sample.size,
                "scan": sample.scan}  # fmt: skip
        yield json.dumps(line) + "\n"
