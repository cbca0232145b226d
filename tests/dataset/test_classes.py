"""A class is found by what a person would call it, and never silently another one."""

import numpy as np
import pytest

from dataset.classes import find_label, imagenet_classes

DIGITS = ["one", "0", "7"]  # names that are other classes' numbers


def test_an_int_is_a_number_and_a_string_is_a_name_first():
    given = {"One": 0, "0": 1, "2": 2, "7": 2}
    assert [find_label(text, DIGITS) for text in given] == list(given.values())
    assert [find_label(number, DIGITS) for number in (0, 1, np.int64(1), 2)] == [0, 1, 1, 2]
    for outside in (7, 3, -1, "-1"):
        with pytest.raises(ValueError, match=f"class {outside}: this model has classes 0 to 2"):
            find_label(outside, DIGITS)
    for nonsense in ("--1", "\u00b2", ""):
        with pytest.raises(ValueError, match="unknown"):
            find_label(nonsense, DIGITS)


def test_a_name_of_two_classes_is_refused():
    with pytest.raises(ValueError, match="'Cardigan': the classes 264 and 474 have this name; give the number"):
        find_label("Cardigan", imagenet_classes())
    assert find_label(474, imagenet_classes()) == find_label("474", imagenet_classes()) == 474
