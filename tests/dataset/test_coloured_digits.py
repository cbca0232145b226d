"""Coloured digits: every picture a function of its number, told by its captions, written whole and once."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from support import ROOT, run_script

from dataset.coloured_digits import COLOURS, KINDS, PHRASINGS, WORDS, kind_of, make, phrase, prompts, write_pictures
from dataset.text import read_prompts


def test_a_picture_is_a_function_of_seed_split_and_number():
    a, b = make(0, "train", 7), make(0, "train", 7)
    assert np.array_equal(a.picture, b.picture) and a[1:] == b[1:]
    for other in (make(1, "train", 7), make(0, "test", 7), make(0, "train", 8)):
        assert not np.array_equal(other.picture, a.picture)


def test_every_kind_is_shown_equally_often():
    assert len(set(KINDS)) == 10 * len(COLOURS) * (len(COLOURS) - 1)
    counts = Counter(kind_of(3, "train", number)[0] for number in range(2 * len(KINDS)))
    assert set(counts.values()) == {2} and len(counts) == len(KINDS)
    assert all(kind.colour != kind.ground for kind in KINDS)


@pytest.mark.parametrize("number", range(0, 240, 17))
def test_the_frame_is_ground_and_the_digit_is_of_its_colour(number):
    sample = make(0, "train", number)
    picture, kind = sample.picture.astype(int), sample.kind
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == COLOURS[kind.ground]).all()
    strokes = (np.abs(picture - COLOURS[kind.colour]).max(-1) <= 1).sum()
    assert strokes > 8, "clearly of one colour"


@pytest.mark.parametrize("number", range(0, 200, 23))
def test_captions_tell_digit_colour_and_ground(number):
    sample = make(0, "train", number)
    for text in sample.text:
        words = text.lower().replace(",", " ").replace(".", " ").split()
        assert {str(sample.kind.digit), WORDS[sample.kind.digit]} & set(words)
        assert sample.kind.colour in words and sample.kind.ground in words
        assert not {"small", "large"} - {sample.size} & set(words), "the size, if any, is the right one"


def test_only_the_words_around_a_colour_say_whose_it_is():
    """In half of the phrasings or so the ground comes first."""
    kind = next(kind for kind in KINDS if (kind.colour, kind.ground) == ("red", "blue"))
    first = [phrase(template, kind, True, "").index("blue") < phrase(template, kind, True, "").index("red")
             for template in PHRASINGS]  # fmt: skip
    assert 0.3 < np.mean(first) < 0.7


def test_prompts_are_balanced():
    found = prompts(0)
    assert len(found) == 400 and set(Counter(kind.digit for _, kind in found).values()) == {40}
    for part in ("colour", "ground"):
        assert set(Counter(getattr(kind, part) for _, kind in found).values()) == {400 / len(COLOURS)}
    assert set(Counter(kind for _, kind in found).values()) == {3, 4} and len(set(found)) == 400
    assert sum("small" in text or "large" in text for text, _ in found) == 200


def test_other_kinds_are_left_out_and_the_rest_is_the_same(tmp_path):
    """The test list has all of them: the judge learns from it."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    kinds = [kind for kind in KINDS if kind.digit < 2]
    for folder, chosen in ((whole, KINDS), (part, kinds)):
        folder.mkdir()
        write_pictures(folder, 30, 20, 0, chosen)
    lines = [(folder / "lists/train.jsonl").read_text().splitlines() for folder in (whole, part)]
    assert lines[1] == [line for line in lines[0] if json.loads(line)["digit"] < 2] != lines[0]
    assert (whole / "lists/test.jsonl").read_text() == (part / "lists/test.jsonl").read_text()
    head, *rows = (whole / "prompts.tsv").read_text().splitlines()
    assert (part / "prompts.tsv").read_text().splitlines() == [head, *(r for r in rows if r.split("\t")[1] in "01")]
    for picture in (part / "pictures").iterdir():
        assert picture.read_bytes() == (whole / "pictures" / picture.name).read_bytes()
    assert len(list((part / "pictures").iterdir())) == len(lines[1]) + 20


def test_the_command_writes_a_folder_once_and_refuses_other_settings(tmp_path):
    entry, flags = ROOT / "dataset/write_coloured_digits.py", ["--train-pictures", 20, "--test-pictures", 6]
    run_script(entry, "--output", tmp_path / "data", *flags)
    rows = [json.loads(line) for line in (tmp_path / "data/lists/test.jsonl").read_text().splitlines()]
    sample = make(0, "test", 5)
    assert len(rows) == 6 and rows[5]["text"] == sample.text and rows[5]["digit"] == sample.kind.digit
    with Image.open(tmp_path / "data/lists" / rows[5]["image_path"]) as picture:
        assert np.array_equal(np.asarray(picture), sample.picture)
    assert read_prompts(tmp_path / "data/prompts.tsv") == [text for text, _ in prompts(0)]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run_script(entry, "--output", tmp_path / "data", *flags)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    refused = run_script(entry, "--output", tmp_path / "data", *flags, "--seed", 1, code=2)
    assert "made from other settings (seed 0, not 1)" in refused.stderr
