"""Captioned pictures: lines found by their place, whole batches, and what cannot be used replaced and counted."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset.faults as faults_module
from dataset.augmentation import center_crop_arr
from dataset.caption_lists import CaptionLists, ListedPictures
from dataset.captioned import CAUSES, Captioned, Pixels, StoredCodes, StoredFeatures, Tokens, Unusable, known_of
from dataset.captions import line_starts, list_source, lists_in, stem_of
from dataset.code_store import CodeStoreWriter
from dataset.faults import Faults, Skipped, by_cause
from dataset.feature_store import FeatureStoreWriter, convert_features
from dataset.images import TooSmall
from dataset.loading import loader
from dataset.order import Order
from language.padding import pad_left


def words(text: str) -> list[int]:
    """A token for each word, and the end."""
    return [*(len(word) for word in text.split()), 1]


def write_lists(folder: Path, sizes: tuple[int, ...] = (5, 4), side: int = 20) -> Path:
    """Lists a.x.jsonl, b.x.jsonl, ... of random pictures, captions of 1 to 4 words."""
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    for name, size in zip("abc", sizes):
        lines = []
        for i in range(size):
            path = folder / "pictures" / f"{name}{i}.png"
            Image.fromarray(random.integers(0, 256, (side, side + 4, 3), np.uint8)).save(path)
            text = [" ".join(["word"] * (1 + i % 4)), f"long {name} {i}", f"short {name}"]
            lines.append(json.dumps({"image_path": f"pictures/{name}{i}.png", "text": text, "alt": f"alt {i}"}))
        (folder / f"{name}.x.jsonl").write_text("\n".join(lines) + "\n" * (name == "a"))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_lists(tmp_path / "lists")


def opened(folder: Path) -> CaptionLists:
    return CaptionLists(lists_in(folder))


def captioned(folder: Path, key: str = "blip", rows=None, size: int = 16) -> Captioned:
    lists = opened(folder)
    return Captioned(lists, Tokens(lists, words, key), Pixels(lists, size), pad_left, 3, rows)


# ---- lists


def test_rows_run_over_all_lists_in_sorted_order(folder):
    lists = opened(folder)
    assert len(lists) == 9 and [stem_of(file) for file in lists.files] == ["a", "b"]
    assert [lists.place(row) for row in (0, 4, 5, 8)] == [(0, 0), (0, 4), (1, 0), (1, 3)]
    assert [lists.entry(row)["alt"] for row in range(9)] == [f"alt {i}" for i in (*range(5), *range(4))]
    assert str(lists.line(6)) == f"{folder / 'b.x.jsonl'}, line 1"


@pytest.mark.parametrize("line, error", [
    ("{", "not JSON"), ("[1]", "expected an object"), ("", "not JSON"), ('{"text": "a"}', "image_path"),
])  # fmt: skip
def test_bad_lines_are_named(line, error, folder):
    (folder / "c.jsonl").write_text(f'{{"image_path": "x.png"}}\n{line}\n{{"image_path": "x.png"}}\n')
    with pytest.raises(ValueError, match=f"c.jsonl, line 1: .*{error}"):
        opened(folder).entry(10)
    assert ListedPictures(opened(folder)).path(10) == f"{folder / 'c.jsonl'}, line 1"


def test_pictures_that_would_be_enlarged_are_refused(folder):
    source = ListedPictures(opened(folder), 20)
    assert source.open(0).size == (24, 20) and source.path(0) == str(folder / "pictures/a0.png")
    source.smallest = 21
    with pytest.raises(TooSmall, match=r"a0.png: is 24 x 20 px, smaller than --image-size 21"):
        source.open(0)


# ---- samples


def test_a_batch_holds_captions_at_the_right_and_centre_crops(folder):
    batch = captioned(folder).__getitems__([(0, 1), (0, 3), (0, 6)])
    assert batch["tokens"].tolist() == [[0, 0, 4, 4, 1], [4, 4, 4, 4, 1], [0, 0, 4, 4, 1]]
    assert torch.equal(batch["held"], batch["tokens"] > 0)
    assert batch["index"].tolist() == [1, 3, 6] and batch["counts"].tolist() == [1, 1, 1]
    assert batch["faults"].shape == (3, len(CAUSES)) and not batch["faults"].any()
    for row, image in zip((1, 3, 6), batch["image"]):
        crop = center_crop_arr(ListedPictures(opened(folder)).open(row), 16)
        assert image.dtype == torch.uint8 and np.array_equal(image.permute(1, 2, 0), np.asarray(crop))


def test_the_mean_length_is_that_of_captions_that_can_be_used(folder):
    assert captioned(folder).mean_length(4) == np.mean([2, 3, 4, 5])
    spoil(folder)
    assert captioned(folder).mean_length(4) == np.mean([2, 4, 5]), "row 1 is a bad line"
    assert captioned(folder, rows=np.array([1])).mean_length(4) == 1.0


def test_captions_are_taken_by_their_key(folder):
    for key, text in (("llava", "long a 2"), ("llava_first", "short a"), ("alt", "alt 2")):
        assert captioned(folder, key).__getitems__([(0, 2)])["tokens"][0].tolist() == words(text)


def test_dropping_is_a_function_of_epoch_and_row_alone(folder):
    one, other = captioned(folder), captioned(folder, rows=np.array([7, 2]))
    a, b = one.__getitems__([(1, 2), (1, 7), (2, 2)])["drop"], other.__getitems__([(1, 0), (1, 1)])["drop"]
    assert a[0] == b[1] and a[1] == b[0] and len(set(a.tolist())) == 3 and (a >= 0).all() and (a < 1).all()


def spoil(folder: Path) -> None:
    """Row 1: a bad line; 2: torn; 3: too small; 4: no caption of that key."""
    lines = (folder / "a.x.jsonl").read_text().splitlines()
    lines[1] = "{"
    lines[4] = json.dumps({"image_path": "pictures/a4.png", "text": []})
    (folder / "a.x.jsonl").write_text("\n".join(lines))
    (folder / "pictures/a2.png").write_bytes(b"torn")
    Image.fromarray(np.zeros((9, 40, 3), np.uint8)).save(folder / "pictures/a3.png")


def test_the_next_row_takes_the_place_of_one_that_cannot_be_used_and_causes_are_counted(folder):
    spoil(folder)
    data = captioned(folder)
    with pytest.warns(UserWarning) as said:
        batch = data.__getitems__([(0, place) for place in range(5)])
    assert batch["index"].tolist() == [0, 5, 5, 5, 5] and batch["counts"].tolist() == [1] * 5
    counts = dict(zip(CAUSES, batch["faults"].sum(0).tolist()))
    assert counts == {"line": 2, "picture": 1, "size": 1, "features": 0, "codes": 0}
    assert torch.equal(batch["image"][1], data.__getitems__([(0, 5)])["image"][0])
    text = " ".join(str(each.message) for each in said)
    assert "a.x.jsonl, line 1: not JSON" in text and "a2.png: not a readable picture" in text
    assert "a3.png: is 40 x 9 px" in text and "line 4: " in text and "the next sample takes its place" in text


def test_where_nothing_can_be_used_a_sample_counts_nothing(folder):
    spoil(folder)
    data = captioned(folder, rows=np.array([1, 2, 3, 4]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = data.__getitems__([(0, 0), (0, 2)])
    assert batch["counts"].tolist() == [0, 0] and batch["index"].tolist() == [1, 3]
    assert batch["faults"].sum(1).tolist() == [1, 1] and not batch["image"].any()
    assert batch["tokens"].shape == (2, 1)


def test_a_block_of_bad_rows_counts_each_of_them_once(folder):
    spoil(folder)
    with pytest.warns(UserWarning):
        batch = captioned(folder).__getitems__([(0, place) for place in range(len(captioned(folder)))])
    assert batch["faults"].sum() == 4


def test_features_of_more_tokens_than_the_gpt_takes_are_passed_over(tmp_path, folder):
    lists = CaptionLists(lists_in(folder))
    for name, lengths in (("a", [2, 5]), ("b", [2])):
        (tmp_path / "published" / name).mkdir(parents=True)
        for i, length in enumerate(lengths):
            np.save(tmp_path / f"published/{name}/{i}.npy", np.zeros((1, length, 4), np.float32))
    stored = StoredFeatures(lists, str(tmp_path / "published"), None, 0.0, 0, most=4)
    assert len(stored.read(0, {}, 0)) == 2 and not stored.packed
    with pytest.raises(Unusable, match="its caption has 5 tokens .* more than --cls-token-num 4"):
        stored.read(1, {}, 0)


def test_batches_are_the_same_by_any_number_of_workers(folder):
    order = Order(9, 4, 0)
    for one, two in zip(*(loader(captioned(folder), order, 0, 1, 0, 2, workers) for workers in (0, 2)), strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_published_file_that_is_torn_or_not_finite_is_one_caption_less(tmp_path, folder):
    for name, count in (("a", 5), ("b", 4)):
        (tmp_path / "published" / name).mkdir(parents=True)
        for i in range(count):
            np.save(tmp_path / f"published/{name}/{i}.npy", np.ones((1, 2, 4), np.float32))
    lists, published = opened(folder), tmp_path / "published"
    (published / "a/0.npy").write_bytes(b"torn")
    np.save(published / "a/1.npy", np.full((1, 2, 4), np.nan, np.float32))
    stored = StoredFeatures(lists, str(published), None, 0.0, 0, most=4)
    assert stored.width == 4 and len(stored.read(2, {}, 0)) == 2
    for row, words in ((0, "0.npy: truncated"), (1, "1.npy: holds features that are not finite")):
        with pytest.raises(Unusable, match=words):
            stored.read(row, {}, 0)
    for path in (published / "a").iterdir():
        path.write_bytes(b"torn")
    with pytest.raises(ValueError, match="npy: truncated"):
        StoredFeatures(lists, str(published), None, 0.0, 0, most=4)


def features(folder: Path, source: dict, checksum: str | None = "1") -> None:
    """A feature store of five captions."""
    settings = {"width": 4, "dtype": "bf16", "encoder": {"name": "t", "checksum": checksum}, "cleaning": True,
                "max_length": 120, "caption_key": "blip", "trunc_caption": False, "source": source}  # fmt: skip
    writer = FeatureStoreWriter(folder, settings, 5)
    writer.write_shard(0, torch.ones(5, 4), np.ones(5, int), np.arange(5))
    writer.finish()


EDITED = "(was made of a list of 5 lines, .*has 6: items would|.*a.x.jsonl was edited or reordered since)"


def test_stores_of_a_list_that_was_edited_since_are_refused(tmp_path):
    """Otherwise lines would meet the features and codes of others."""
    file = write_lists(tmp_path / "lists", (5,)) / "a.x.jsonl"
    source = list_source(file, line_starts(file))
    for name in ("long/a", "short/a"):
        features(tmp_path / name, source)
    store(tmp_path / "codes/a", list(range(5)), 5, source=source)

    def open_all(lists: CaptionLists) -> None:
        StoredFeatures(lists, str(tmp_path / "long"), str(tmp_path / "short"), 0.5, 0, 120)
        StoredCodes(lists, str(tmp_path / "codes"))

    open_all(CaptionLists([file]))
    lines = file.read_text().splitlines()
    for number, edited in enumerate((lines[::-1], [*lines[1:], lines[0]], [*lines, lines[0]])):
        file.write_text("\n".join(edited) + "\n")
        lists = CaptionLists([file])
        with pytest.raises(ValueError, match=f"--code-path .*codes/a: {EDITED}"):
            StoredCodes(lists, str(tmp_path / "codes"))
        features(tmp_path / str(number) / "a", list_source(file, lists.starts[0]))
        for long, short, flag in (("long", None, "--t5-feat-path"), (str(number), "short", "--short-t5-feat-path")):
            with pytest.raises(ValueError, match=f"{flag} .*a: {EDITED}"):
                StoredFeatures(lists, str(tmp_path / long), short and str(tmp_path / short), 0.5, 0, 120)
    for ending in ("\n", ""):  # the last line may lack its end
        file.write_text("\n".join(lines) + ending)
        open_all(CaptionLists([file]))


def test_lines_of_equal_lengths_that_change_their_places_are_another_list(tmp_path):
    file, found = tmp_path / "list.jsonl", set()
    for text in ("ab\ncd\nef\n", "ab\nef\ncd\n", "ab\ncd\nef", "abc\nd\nef\n"):
        file.write_text(text)
        found.add(list_source(file, line_starts(file))["fingerprint"])
    assert len(found) == 3


def test_features_that_were_converted_without_their_list_belong_to_it_up_to_the_last(tmp_path):
    lists = CaptionLists([write_lists(tmp_path / "lists", (5,)) / "a.x.jsonl"])
    (tmp_path / "published/a").mkdir(parents=True)
    for line in range(3):
        np.save(tmp_path / f"published/a/{line}.npy", np.ones((1, 2, 4), np.float32))
    convert_features(tmp_path / "published/a", tmp_path / "features/a", {"dtype": "bf16"})
    stored = StoredFeatures(lists, str(tmp_path / "features"), None, 0.0, 0, 120)
    assert len(stored.read(2, {}, 0)) == 2
    with pytest.raises(Unusable, match="no features of its caption"):
        stored.read(4, {}, 0)


def test_encoders_are_the_same_as_far_as_is_known(tmp_path):
    """A float16 encoder has no checksum."""
    known = {"name": "t", "checksum": "1", "width": 4}
    assert known_of([None, None]) is None and known_of([None, known]) == known
    assert known_of([{**known, "checksum": None}, None, known]) == known
    assert known_of([{**known, "checksum": "2"}, known])["checksum"] == "2"
    lists = CaptionLists([write_lists(tmp_path / "lists", (5,)) / "a.x.jsonl"])
    for name, checksum in (("long", None), ("short", "1"), ("other", "2")):
        features(tmp_path / name / "a", {}, checksum)
    stored = StoredFeatures(lists, str(tmp_path / "long"), str(tmp_path / "short"), 0.5, 0, 120)
    assert stored.encoder["checksum"] == "1", "what one knows is known of both"
    with pytest.raises(ValueError, match="--short-t5-feat-path .*another encoder"):
        StoredFeatures(lists, str(tmp_path / "short"), str(tmp_path / "other"), 0.5, 0, 120)


def test_three_lists_of_which_one_does_not_know_its_encoder(tmp_path):
    lists = CaptionLists(lists_in(write_lists(tmp_path / "lists", (5, 5, 5))))
    for name, checksum in zip("abc", (None, "1", "2")):
        features(tmp_path / "features" / name, {}, checksum)
    with pytest.raises(ValueError, match="--t5-feat-path .*features/c: holds features of another encoder"):
        StoredFeatures(lists, str(tmp_path / "features"), None, 0.0, 0, 120)


# ---- codes


def store(folder: Path, rows: list[int], lines: int, **changed) -> None:
    settings = {"grid": [2, 2], "crops": 1, "vocab_size": 9, "tokenizer": {"name": "VQ", "checksum": "1"},
                "image_size": 16, "class_names": None, "source": {}, **changed}  # fmt: skip
    writer = CodeStoreWriter(folder, settings, lines)
    skipped = [{"row": row, "path": None, "reason": "torn"} for row in range(lines) if row not in rows]
    codes = np.array(rows)[:, None, None] % 9 + np.zeros((1, 1, 4), int)
    writer.write_shard(0, codes, np.full(len(rows), -1), np.array(rows), skipped)
    writer.finish()


def test_an_unfinished_store_of_a_list_names_its_command(folder, tmp_path):
    store(tmp_path / "codes/a", list(range(5)), 5)
    (tmp_path / "codes/a/meta.json").unlink()
    with pytest.raises(ValueError, match="run extract_codes_t2i.py again with the same flags"):
        StoredCodes(CaptionLists([folder / "a.x.jsonl"]), str(tmp_path / "codes"))


def test_codes_are_those_of_the_line_in_our_store_and_in_the_published_layout(folder, tmp_path):
    store(tmp_path / "codes/a", [0, 2, 3, 4], 5)
    (tmp_path / "codes/b").mkdir()
    for line in (0, 1, 3):
        np.save(tmp_path / f"codes/b/{line}.npy", np.full((1, 4), line + 5))
    lists = opened(folder)
    with pytest.raises(ValueError, match="--code-path .*b holds codes of another image_size than .*a"):
        StoredCodes(lists, str(tmp_path / "codes"))
    for name, changed in (("ours", [0, 1, 3]), ("theirs", None)):
        if changed:
            store(tmp_path / name / "b", changed, 4)
            store(tmp_path / name / "a", [0, 2, 3, 4], 5)
        else:
            (tmp_path / name).mkdir()
            (tmp_path / "codes/b").rename(tmp_path / name / "b")
            (tmp_path / name / "a").mkdir()
            for line in (0, 2, 3, 4):
                np.save(tmp_path / name / f"a/{line}.npy", np.full((1, 4), line))
        codes = StoredCodes(lists, str(tmp_path / name))
        assert codes.grid == (2, 2)
        data = Captioned(lists, Tokens(lists, words, "blip"), codes, pad_left, 3)
        with pytest.warns(UserWarning, match="no codes of its picture in"):
            batch = data.__getitems__([(0, 0), (0, 1), (0, 4), (0, 7), (0, 8)])
        assert batch["index"].tolist() == [0, 2, 4, 8, 8]
        wanted = [0, 2, 4, *([3, 3] if changed else [8, 8])]
        assert batch["codes"].tolist() == [[value] * 4 for value in wanted] and batch["codes"].dtype == torch.int64
        assert batch["faults"].sum(0).tolist() == [0, 0, 0, 0, 2]


# ---- faults


def test_faults_are_said_once_a_cause_and_too_many_end_the_run(monkeypatch):
    monkeypatch.setattr(faults_module, "FAIR_SAMPLE", 100)
    found = Faults(["bad lines", "torn pictures"], 0.05)
    found.add(60, torch.tensor([0, 0]))
    assert found.check(1) is None
    found.add(30, torch.tensor([5, 0]))
    assert found.check(2).startswith("step 2: 5 of 90 samples cannot be used (5 bad lines; warnings name them)")
    assert found.check(3) is None
    found.add(30, torch.tensor([0, 1]))
    assert "(5 bad lines, 1 torn pictures;" in found.check(4)
    found.add(1, torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"7 of the 121 samples seen .*\(6 bad lines, 1 torn pictures\), more than "
                                         "--max-bad 0.05 allows"):  # fmt: skip
        found.check(5)


def test_a_store_that_was_begun_without_causes_is_finished():
    found = [{"row": 0, "path": "a.png", "reason": "torn"}, {"row": 1, "path": "b", "reason": "b: c", "cause": "small"}]
    assert by_cause(found) == "1 unreadable, 1 small"
    with pytest.raises(ValueError, match=r"(?s)2 of 10 pictures cannot be used .*\n  a.png, row 0: torn\n  b: c\n"):
        Skipped(10, 0.1, "pictures").add(found)


def test_samples_that_count_nothing_are_counted():
    found = Faults(["bad lines"], 1.0)
    found.add(40, torch.tensor([7]), torch.tensor(3))
    said = "7 bad lines, 3 of them among so many others that nothing took their places"
    assert f"7 of 40 samples cannot be used ({said}; warnings" in found.check(1)
    assert found.conclude(lambda value: [value]) == f"7 of 40 samples could not be used: {said}"


def test_ten_times_as_many_faults_are_said_again():
    found = Faults(["bad lines"], 1.0)
    said = []
    for step in range(120):
        found.add(1, torch.tensor([1]))
        said.append(found.check(step))
    assert [step for step, message in enumerate(said) if message] == [0, 9, 99]


def test_at_the_end_all_processes_count_and_a_run_without_any_sample_fails():
    found = Faults(["bad lines", "torn pictures"], 1.0)
    assert found.conclude(lambda value: [value]) is None
    found.add(8, torch.tensor([1, 0]))
    said = found.conclude(lambda value: [value, (8, 0, 1, 2)])
    assert said == "4 of 16 samples could not be used: 2 bad lines, 2 torn pictures"
    strict = Faults(["bad lines"], 0.01)
    strict.add(999, torch.tensor([9]))
    assert strict.conclude(lambda value: [value]), "too few to judge by"
    with pytest.raises(ValueError, match=r"18 of the 1998 samples .*\(18 bad lines\), more than --max-bad 0.001"):
        strict.max_bad = 0.001
        strict.conclude(lambda value: [value, value])
    found.add(8, torch.tensor([7, 8]))
    with pytest.raises(ValueError, match=r"not one of the 16 samples could be used \(8 bad lines, 8 torn pictures"):
        found.conclude(lambda value: [value])
