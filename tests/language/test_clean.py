"""Captions are cleaned as the published text encoder was fed with them."""

import json
import time
import warnings

import pytest
from support import ROOT

from language import clean
from language.clean import clean_caption

GOLDEN = [json.loads(line) for line in (ROOT / "tests/golden/captions.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("line", GOLDEN, ids=lambda line: line["caption"][:24])
def test_captions_are_cleaned_as_published(line):
    assert clean_caption(line["caption"]) == line["cleaned"]


# What the golden lines do not reach, from the published steps.
@pytest.mark.parametrize(
    "caption, cleaned",
    [
        ("at site.com/a/b and x.edu, then home", "at and , then home"),
        ("three-dashes-are-kept here", "three-dashes-are-kept here"),
        ("a \u2e3b dash, a \uff0d dash", "a - dash, a - dash"),
        ("12\u00d734 and 1.5\u00d72.25 sizes", "and sizes"),
        ("a word : another", "a word: another"),
        ("#12 of #1234 of #12345", "of 1234 of"),
        ("'tis", "tis"),
        ("ends with +", "ends with"),
        ("a free   download free here", "a free here"),
        ("\u3200 a \u4dff b \ua000", "a b \ua000"),
        ("one\u00a0two", "one two"),
        ("a&nbsp;b &#39;c", "a b 'c"),
        ("ascii <3 hearts", "ascii <3 hearts"),
        ("a cat <![foo bar", "a cat <! foo bar"),
        ("\ufb01ne \uff4coud", "fine loud"),
    ],
)
def test_steps(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_a_long_text_costs_little_and_what_is_read_of_it_stays():
    """Some steps take the square of the length of a text without spaces; 120 tokens of it are read at most."""
    text = "a red cube, " * 100 + "x" * 10**6
    began = time.monotonic()
    assert clean_caption(text).startswith(clean_caption("a red cube, " * 100))
    assert time.monotonic() - began < 60, "hours, if all of it were looked at"


def test_a_caption_like_a_file_is_no_warning():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        clean._libraries.cache_clear()
        clean_caption("a&b.jpg")
    clean._libraries.cache_clear()
    assert not said
