"""Lists of captions: which lists, which lines, and which caption of a line."""

import json

import pytest

from dataset import captions
from dataset.captions import BadLine, caption_of, line_starts, lists_in, read_line, stem_of

TEXT = ["by blip", "by llava. And more.", "by llava"]


@pytest.mark.parametrize(
    "entry, key, trunc, caption",
    [
        ({"text": TEXT}, "blip", False, "by blip"),
        ({"text": TEXT}, "llava", False, "by llava. And more."),
        ({"text": TEXT}, "llava", True, "by llava"),
        ({"text": TEXT}, "llava_first", False, "by llava"),
        ({"text": TEXT}, "text", False, "by blip"),
        ({"text": "plain. text"}, "llava", False, "plain. text"),
        ({"text": "plain. text"}, "text", True, "plain"),
        ({"text": TEXT, "alt": "another"}, "alt", False, "another"),
        ({"blip": "by blip", "llava": "by llava. More."}, "llava", True, "by llava"),
        ({"llava_first": "by llava", "text": TEXT[:1]}, "blip", False, "by blip"),
    ],
)
def test_the_caption_of_a_line(entry, key, trunc, caption):
    assert caption_of(entry, key, trunc) == caption


@pytest.mark.parametrize(
    "entry, key, trunc, words",
    [
        (3, "blip", False, "expected an object such as .*found 3"),
        ({"caption": "a", "url": "b"}, "blip", False, "no 'text' in it, but caption, url; .*--caption-key"),
        ({"text": TEXT[:2]}, "llava_first", False, "holds 2 captions, --caption-key llava_first takes number 2"),
        ({"text": [None]}, "blip", False, "'text' is null, expected text"),
        ({"alt": ["a"]}, "alt", False, r"'alt' is \[\"a\"\], expected text"),
        ({"text": " "}, "blip", False, "nothing to read"),
        ({"blip": ["a"]}, "blip", False, r"'blip' is \[\"a\"\], expected text"),
        ({"text": TEXT[:1], "llava": "own"}, "llava", False, "holds 1 captions"),
        ({"text": ".hidden"}, "blip", True, "nothing to read"),
    ],
)
def test_a_line_without_a_caption(entry, key, trunc, words):
    with pytest.raises(BadLine, match=words) as bad:
        caption_of(entry, key, trunc)
    assert bad.value.cause == "no caption"


@pytest.mark.parametrize("part", [3, 2**24])
@pytest.mark.parametrize("end", ["", "\n"])
def test_every_line_is_found_by_its_number(tmp_path, monkeypatch, part, end):
    monkeypatch.setattr(captions, "PART", part)
    texts = ["a", "", "caf\u00e9 \u2028 not an end", "d" * 50]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    lines[1:1] = ["", "{torn"]
    file = tmp_path / "list.jsonl"
    file.write_text("\n".join(lines) + end, encoding="utf-8")
    starts = line_starts(file)
    assert len(starts) - 1 == len(lines)
    for number, line in enumerate(lines):
        if number in (1, 2):
            with pytest.raises(BadLine, match="not JSON") as bad:
                read_line(file, starts, number)
            assert bad.value.cause == "not JSON"
        else:
            assert read_line(file, starts, number) == json.loads(line)


def test_brackets_without_end_are_a_bad_line(tmp_path):
    file = tmp_path / "list.jsonl"
    file.write_text("[" * 100_000 + "\n")
    with pytest.raises(BadLine, match="not JSON"):
        read_line(file, line_starts(file), 0)


def test_an_empty_list_has_no_lines(tmp_path):
    (tmp_path / "list.jsonl").write_text("")
    assert len(line_starts(tmp_path / "list.jsonl")) == 1


def test_lists_are_chosen_by_number(tmp_path):
    for name in ("c.jsonl", "a.b.jsonl", "b.jsonl", "d.txt"):
        (tmp_path / name).write_text("{}")
    assert [stem_of(file) for file in lists_in(tmp_path)] == ["a", "b", "c"]
    assert [file.name for file in lists_in(tmp_path, 1, 2)] == ["b.jsonl", "c.jsonl"]
    assert [file.name for file in lists_in(tmp_path, 2, 9)] == ["c.jsonl"]
    assert lists_in(tmp_path / "d.txt") == [tmp_path / "d.txt"]
    for start, end, words in (
        (3, None, "--data-start 3, --data-end 2: must be from 0 up"),
        (2, 1, "the end not before the start"),
        (-1, 1, "must be from 0 up"),
        (4, 9, "--data-start 4: .* holds 3 lists"),
    ):
        with pytest.raises(ValueError, match=words):
            lists_in(tmp_path, start, end)
    (tmp_path / "b.more.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="several lists are called b up to their first dot"):
        lists_in(tmp_path)
    with pytest.raises(ValueError, match="--data-path .*nowhere: there is no such file or folder"):
        lists_in(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no .jsonl lists in it"):
        lists_in(tmp_path / "empty")
