"""Codes: the store is the same whoever wrote it, survives a kill, and says what is wrong with it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import files
from dataset.code_store import code_dtype
from dataset.codes import (
    Codes,
    CodeStore,
    CodeStoreWriter,
    check,
    open_codes,
    split,
)
from dataset.loading import loader
from dataset.order import DROP_CONDITION, WHICH_CROP, Order, draw

ROWS, GRID, CROPS, VOCAB = 23, (2, 3), 2, 300
BAD = (4, 11)
SETTINGS = {
    "grid": GRID,
    "crops": CROPS,
    "vocab_size": VOCAB,
    "tokenizer": {"name": "VQ-tiny", "checksum": "abc"},
    "image_size": 32,
    "class_names": ["ant", "bee", "cat"],
    "source": {"dataset": "folder"},
    "crop_range": 1.1,
}
CODES = np.random.default_rng(0).integers(0, VOCAB, (ROWS, CROPS, 6))
LABELS = np.arange(ROWS) % 3
GOOD = np.array([row for row in range(ROWS) if row not in BAD])


def write(writer: CodeStoreWriter, shard: int) -> None:
    rows = np.array([row for row in writer.shard_rows(shard) if row not in BAD], np.int64)
    skipped = [{"row": row, "path": f"{row}.png", "reason": "torn"} for row in writer.shard_rows(shard) if row in BAD]
    writer.write_shard(shard, CODES[rows], LABELS[rows], rows, skipped)


def make_store(folder: Path, **settings) -> CodeStore:
    writer = CodeStoreWriter(folder, {**SETTINGS, **settings}, ROWS, shard_size=5)
    for shard in writer.missing_shards():
        write(writer, shard)
    writer.finish()
    return CodeStore(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_number_of_ranks_in_any_order_writes_the_same_folder(tmp_path):
    make_store(tmp_path / "one")
    ranks = [CodeStoreWriter(tmp_path / "three", SETTINGS, ROWS, 5) for _ in range(3)]
    shards = ranks[0].missing_shards()
    assert shards == [0, 1, 2, 3, 4]
    for rank, shard in ((2, 2), (1, 4), (0, 3), (1, 1), (0, 0)):
        write(ranks[rank], shard)
    ranks[2].finish()
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_a_store_gives_back_what_was_written(tmp_path):
    store = make_store(tmp_path)
    assert (store.count, store.grid, store.crops, store.vocab_size, store.image_size) == (21, GRID, CROPS, VOCAB, 32)
    assert (store.class_names, store.num_classes, store.tokenizer) == (["ant", "bee", "cat"], 3, SETTINGS["tokenizer"])
    pictures = np.array([20, 0, 7, 7, 13, 3])
    assert np.array_equal(store.codes(pictures), CODES[GOOD[pictures]]) and store.codes(pictures).dtype == np.uint16
    crop = np.array([0, 1, 1, 0, 0, 1])
    assert np.array_equal(store.codes(pictures, crop), CODES[GOOD[pictures], crop])
    assert np.array_equal(store.labels(pictures), LABELS[GOOD[pictures]])
    assert np.array_equal(store.source_rows, GOOD)
    assert store.meta["crop_range"] == 1.1 and store.meta["skipped"] == 2


def test_unreadable_pictures_are_reported(tmp_path):
    make_store(tmp_path)
    report = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert report == [{"row": row, "path": f"{row}.png", "reason": "torn"} for row in BAD]


def test_a_shard_without_a_readable_picture(tmp_path):
    writer = CodeStoreWriter(tmp_path, SETTINGS, 4, shard_size=2)
    torn = [{"row": row, "path": None, "reason": "torn"} for row in range(2)]
    writer.write_shard(0, CODES[:0], LABELS[:0], np.arange(0), torn)
    writer.write_shard(1, CODES[2:4], LABELS[2:4], np.arange(2, 4))
    writer.finish()
    assert np.array_equal(CodeStore(tmp_path).codes([1, 0]), CODES[[3, 2]])
    check(CodeStore(tmp_path), VOCAB, GRID, 3)
    nothing = CodeStoreWriter(tmp_path / "none", SETTINGS, 2, shard_size=2)
    nothing.write_shard(0, CODES[:0], LABELS[:0], np.arange(0), torn)
    with pytest.raises(ValueError, match="none of the 2 pictures could be read.*torn"):
        nothing.finish()


def test_a_killed_extraction_continues(tmp_path, monkeypatch):
    make_store(tmp_path / "whole")
    broken = tmp_path / "broken"
    writer = CodeStoreWriter(broken, SETTINGS, ROWS, 5)
    write(writer, 0)
    written = content(broken)
    calls = iter(range(100))
    replace = files.os.replace

    def fail_at_the_last_file(*names):
        if next(calls) == 3:
            raise OSError(28, "No space left on device")
        replace(*names)

    monkeypatch.setattr(files.os, "replace", fail_at_the_last_file)
    with pytest.raises(OSError, match=r"shard-00001\.codes\.npy: No space left"):
        write(writer, 1)
    monkeypatch.undo()
    assert not list(broken.glob(".*"))  # what failed by itself cleans up; what was killed cannot:
    for leftover in (".shard-00001.codes.npy.1234.part", ".extraction.json.1234.part"):
        (broken / leftover).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"unfinished \(1 shards.*extract_codes_c2i.py again with the same flags"):
        open_codes(broken)
    again = CodeStoreWriter(broken, SETTINGS, ROWS, 5)
    assert again.missing_shards() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="4 shards are missing"):
        again.finish()
    make_store(broken)
    assert content(broken) == content(tmp_path / "whole")
    assert written.items() <= content(broken).items()


def test_a_finished_store_can_be_finished_again(tmp_path):
    make_store(tmp_path)
    before = content(tmp_path)
    assert CodeStoreWriter(tmp_path, SETTINGS, ROWS, 5).missing_shards() == []
    make_store(tmp_path)
    assert content(tmp_path) == before


def test_other_settings_do_not_mix(tmp_path):
    make_store(tmp_path)
    with pytest.raises(ValueError, match="crop_range: 1.1 there, 1.05 asked for.*or another folder"):
        CodeStoreWriter(tmp_path, {**SETTINGS, "crop_range": 1.05}, ROWS, 5)
    with pytest.raises(ValueError, match="rows_total: 23 there, 24 asked for"):
        CodeStoreWriter(tmp_path, SETTINGS, 24, 5)
    (tmp_path / "extraction.json").unlink()
    with pytest.raises(ValueError, match="unknown settings"):
        CodeStoreWriter(tmp_path, SETTINGS, ROWS, 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--code-path .*file: is a file"):
        CodeStoreWriter(tmp_path / "file", SETTINGS, ROWS, 5)


def test_a_code_outside_the_vocabulary_is_not_written(tmp_path):
    writer = CodeStoreWriter(tmp_path, SETTINGS, 3, shard_size=3)
    for code in (VOCAB, -1):
        codes = CODES[:3].copy()
        codes[1, 1, 2] = code
        with pytest.raises(ValueError, match=f"code {code} is not"):
            writer.write_shard(0, codes, LABELS[:3], np.arange(3))
    assert writer.missing_shards() == [0]


def test_the_narrowest_integers_are_stored():
    assert [code_dtype(size) for size in (256, 257, 65536, 65537)] == [np.uint8, np.uint16, np.uint16, np.uint32]


@pytest.mark.parametrize("part", ["codes", "labels", "rows"])
def test_damaged_shards_are_named(tmp_path, part):
    make_store(tmp_path)
    path = tmp_path / f"shard-00001.{part}.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match=rf"shard-00001\.{part}\.npy: truncated.*run the extraction again"):
        CodeStore(tmp_path)
    np.save(path, np.load(tmp_path / f"shard-00000.{part}.npy")[:2])
    with pytest.raises(ValueError, match=rf"shard-00001\.{part}\.npy: (has 2 entries|holds uint16 \[2, 2, 6\], but)"):
        CodeStore(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=rf"shard-00001\.{part}\.npy: is missing"):
        CodeStore(tmp_path)


def test_the_remedy_for_a_damaged_shard_works(tmp_path):
    make_store(tmp_path)
    before = content(tmp_path)
    for name in ("shard-00001.codes.npy", "meta.json"):
        (tmp_path / name).unlink()
    make_store(tmp_path)
    assert content(tmp_path) == before


def test_stores_that_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match="--code-path .*nowhere: there is no such folder"):
        open_codes(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no code store"):
        open_codes(tmp_path)
    make_store(tmp_path)
    with pytest.raises(ValueError, match="--image-size 64: the codes in .* are of pictures of 32 px"):
        open_codes(tmp_path, 64)
    meta = json.loads((tmp_path / "meta.json").read_text())
    for change, message in (({"format": 2}, "format 2, but this version reads 1"), ({"format": 1}, "lacks count")):
        (tmp_path / "meta.json").write_text(json.dumps({**meta, **change} if change["format"] == 2 else change))
        with pytest.raises(ValueError, match=message):
            open_codes(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="meta.json: not JSON"):
        open_codes(tmp_path)


def test_check_says_what_does_not_fit(tmp_path):
    store = make_store(tmp_path)
    check(store, VOCAB, GRID, 3)
    check(store, VOCAB + 5, GRID, 7, SETTINGS["tokenizer"])
    for arguments, message in (
        ((VOCAB, (3, 2), 3), "grid of 2x3, the model's is 3x2"),
        ((VOCAB - 1, GRID, 3), "--vocab-size 299: .* vocabulary of 300"),
        ((VOCAB, GRID, 2), "--num-classes 2: .* label 2, allowed are 0 to 1; give --num-classes 3"),
        (
            (VOCAB, GRID, 3, {"name": "VQ-other", "checksum": "x"}),
            r"--vq-ckpt: VQ-other .*VQ-tiny \(checksum abc\) did",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check(store, *arguments)
    damaged = np.lib.format.open_memmap(tmp_path / "shard-00003.codes.npy", mode="r+")
    damaged[2, 1, 5] = VOCAB
    damaged.flush()
    with pytest.raises(ValueError, match=r"shard-00003\.codes\.npy holds the code 300"):
        check(CodeStore(tmp_path), VOCAB, GRID, 3)


def test_codes_without_labels_are_refused(tmp_path):
    labels = np.load(make_store(tmp_path).folder / "shard-00000.labels.npy")
    np.save(tmp_path / "shard-00000.labels.npy", np.full_like(labels, -1))
    with pytest.raises(ValueError, match="without a label"):
        check(CodeStore(tmp_path), VOCAB, GRID, 3)


def test_batches_are_functions_of_seed_epoch_and_picture(tmp_path):
    store = make_store(tmp_path)
    train, held_out = split(store, 0.3, seed=5)
    dataset = Codes(store, seed=1, pictures=train)
    keys = [(epoch, place) for epoch in range(3, 7) for place in (0, 5, 2, 9)]
    batch = dataset.__getitems__(keys)
    epochs, pictures = np.repeat(np.arange(3, 7), 4), np.tile(train[[0, 5, 2, 9]], 4)
    crop = (draw(1, epochs, pictures, WHICH_CROP) * CROPS).astype(int)
    assert batch["codes"].dtype == torch.int64 and np.array_equal(batch["codes"], CODES[GOOD[pictures], crop])
    assert np.array_equal(batch["label"], LABELS[GOOD[pictures]]) and batch["index"].tolist() == pictures.tolist()
    assert (
        np.allclose(batch["drop"], draw(1, epochs, pictures, DROP_CONDITION)) and batch["drop"].dtype == torch.float32
    )
    for number, key in enumerate(keys):
        alone = dataset.__getitems__([key])
        assert all(torch.equal(alone[name][0], batch[name][number]) for name in batch)
    whole = list(loader(dataset, Order(len(dataset), 4, 0), 0, 1, 0, 6, workers=0))
    halves = [list(loader(dataset, Order(len(dataset), 4, 0), rank, 2, 0, 6, workers=1)) for rank in range(2)]
    for one, *two in zip(whole, *halves, strict=True):
        assert all(torch.equal(one[name], torch.cat([half[name] for half in two])) for name in one)
        assert not set(one["index"].tolist()) & set(held_out.tolist())


def test_all_crops_are_drawn_alike_often(tmp_path):
    store = make_store(tmp_path)
    codes = torch.cat([Codes(store, 0).__getitems__([(epoch, 9)])["codes"] for epoch in range(400)])
    first = (codes.numpy() == CODES[GOOD[9], 0]).all(1).sum()
    assert 150 < first < 250


def test_a_store_is_sent_to_workers_as_a_path(tmp_path):
    store = make_store(tmp_path)
    sent = pickle.dumps(store)
    assert len(sent) < 500 and np.array_equal(pickle.loads(sent).codes([4]), store.codes([4]))


def test_split_parts(tmp_path):
    store = make_store(tmp_path)
    for fraction in (0.001, 0.25, 0.999):
        train, held_out = split(store, fraction, seed=0)
        assert len(train) and len(held_out) and sorted([*train, *held_out]) == list(range(store.count))
    assert len(split(store, 0, 0)[1]) == 0
    assert any(not np.array_equal(split(store, 0.3, 0)[1], split(store, 0.3, seed)[1]) for seed in (1, 2))
    with pytest.raises(ValueError, match="--val-fraction 1.0: must be"):
        split(store, 1.0, 0)
    # A picture that could be read now does not move the others between the parts.
    kept = set(GOOD[split(store, 0.3, 0)[1]])
    writer = CodeStoreWriter(tmp_path / "all", SETTINGS, ROWS, ROWS)
    writer.write_shard(0, CODES, LABELS, np.arange(ROWS))
    writer.finish()
    assert kept == set(split(CodeStore(tmp_path / "all"), 0.3, 0)[1]) - set(BAD)


def test_reading_ahead_gives_the_same_batches(tmp_path):
    store = make_store(tmp_path)
    dataset, order = Codes(store, seed=3), Order(store.count, 2, 3)
    plain = list(loader(dataset, order, 0, 1, 1, 21, workers=0))  # more than are read ahead at once
    ahead = list(loader(dataset, order, 0, 1, 1, 21, workers=4))
    assert len(plain) == len(ahead) == 20
    for one, other in zip(plain, ahead):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
