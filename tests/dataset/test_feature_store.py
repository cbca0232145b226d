"""Caption features: what is stored is what was written, by any ranks, and equals the published layout."""

import errno
import json
import os
import pickle
import resource
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset.store as store_module
from dataset.feature_store import (
    FeatureStore,
    FeatureStoreWriter,
    PublishedFeatures,
    convert_features,
    open_features,
)

ROWS, WIDTH, SHARD = 23, 6, 5
BAD = (4, 11, 20, 21, 22)  # the last shard has nothing else
SETTINGS = {
    "width": WIDTH,
    "dtype": "bf16",
    "encoder": {"name": "tiny", "checksum": "abc"},
    "cleaning": True,
    "max_length": 120,
    "caption_key": "blip",
    "trunc_caption": False,
    "source": {"list": "a.jsonl", "lines": ROWS},
}
random = np.random.default_rng(0)
LENGTHS = random.integers(1, 9, ROWS)
FEATURES = [torch.from_numpy(random.normal(size=(length, WIDTH))).to(torch.bfloat16) for length in LENGTHS]
GOOD = [row for row in range(ROWS) if row not in BAD]


def write(writer: FeatureStoreWriter, shard: int) -> None:
    rows = np.array([row for row in writer.shard_rows(shard) if row not in BAD], np.int64)
    skipped = [{"row": row, "path": f"line {row}", "reason": "torn"} for row in writer.shard_rows(shard) if row in BAD]
    features = torch.cat([torch.empty(0, WIDTH, dtype=torch.bfloat16), *(FEATURES[row] for row in rows)])
    writer.write_shard(shard, features, LENGTHS[rows], rows, skipped)


def make_store(folder: Path, **settings) -> FeatureStore:
    writer = FeatureStoreWriter(folder, {**SETTINGS, **settings}, ROWS, SHARD)
    for shard in writer.missing_shards():
        write(writer, shard)
    writer.finish()
    return FeatureStore(folder)


def publish(folder: Path, rows=GOOD) -> Path:
    folder.mkdir(parents=True)
    for row in rows:
        np.save(folder / f"{row}.npy", FEATURES[row].float().numpy()[None])
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_store_gives_back_what_was_written(tmp_path):
    store = make_store(tmp_path)
    assert store.rows.tolist() == GOOD and store.lengths.tolist() == LENGTHS[GOOD].tolist()
    assert (store.count, store.width, store.dtype, store.encoder) == (18, WIDTH, torch.bfloat16, SETTINGS["encoder"])
    for row in range(ROWS):
        assert store.has(row) == (row not in BAD)
        if row not in BAD:
            assert store.features(row).dtype == torch.bfloat16 and torch.equal(store.features(row), FEATURES[row])
    assert not store.has(-1) and not store.has(ROWS)
    with pytest.raises(ValueError, match=r"--t5-feat-path .*: no features of line 11 \(skipped.jsonl says why\)"):
        store.features(11)
    tokens = int(LENGTHS[GOOD].sum())
    assert (store.meta["tokens"], store.meta["bytes"], store.meta["skipped"]) == (tokens, 2 * WIDTH * tokens, len(BAD))


def test_more_shards_than_a_process_may_open_are_read(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    assert store_module._mapped.cache_info().maxsize < 1024, "of files that a process often may have open"
    monkeypatch.setattr(store_module, "_mapped", lru_cache(2)(store_module._mapped.__wrapped__))
    opened = []
    open_array = store_module.open_array
    monkeypatch.setattr(store_module, "open_array", lambda path, kind: opened.append(path) or open_array(path, kind))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for row in GOOD * 2:
        assert torch.equal(store.features(row), FEATURES[row])
    assert len(opened) == 8, "two shards of four stay open"
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_too_many_open_files_are_not_taken_for_damage(tmp_path):
    store = make_store(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(ValueError, match="Too many open files; allow this process more") as said:
            store.features(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "delete" not in str(said.value)


def test_fp16_is_stored_as_such_and_what_it_cannot_hold_is_refused(tmp_path):
    store = make_store(tmp_path, dtype="fp16")
    assert store.dtype == torch.float16 and torch.equal(store.features(0), FEATURES[0].half())
    writer = FeatureStoreWriter(tmp_path / "more", {**SETTINGS, "dtype": "fp16"}, 1, SHARD)
    with pytest.raises(ValueError, match="not finite in fp16: encode and store them as bf16"):
        writer.write_shard(0, torch.full((1, WIDTH), 1e5), np.ones(1), np.zeros(1))
    assert writer.missing_shards() == [0]


def test_any_number_of_ranks_in_any_order_writes_the_same_folder(tmp_path):
    make_store(tmp_path / "one")
    ranks = [FeatureStoreWriter(tmp_path / "three", SETTINGS, ROWS, SHARD) for _ in range(3)]
    for rank, shard in ((2, 2), (1, 4), (0, 3), (1, 1), (0, 0)):
        write(ranks[rank], shard)
    ranks[2].finish()
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_an_unfinished_store_continues_with_its_own_settings_alone(tmp_path):
    make_store(tmp_path / "whole")
    folder = tmp_path / "lists" / "a"
    writer = FeatureStoreWriter(folder, SETTINGS, ROWS, SHARD)
    write(writer, 3)
    with pytest.raises(ValueError, match=r"--t5-feat-path .*unfinished \(1 shards.*extract_t5_feature.py again"):
        open_features(tmp_path / "lists", "a")
    for changed in ({"caption_key": "llava"}, {"dtype": "fp16"}, {"encoder": {"name": "tiny", "checksum": "abd"}}):
        with pytest.raises(ValueError, match=f"--t5-path .*holds features of other settings .{next(iter(changed))}: "):
            FeatureStoreWriter(folder, {**SETTINGS, **changed}, ROWS, SHARD)
    assert FeatureStoreWriter(folder, SETTINGS, ROWS, SHARD).missing_shards() == [0, 1, 2, 4]
    assert content(make_store(folder).folder) == content(tmp_path / "whole")


def test_a_store_is_sent_to_workers_as_a_path(tmp_path):
    store = make_store(tmp_path)
    sent = pickle.dumps(store)
    assert len(sent) < 500 and torch.equal(pickle.loads(sent).features(7), FEATURES[7])


def test_damage_is_named(tmp_path):
    make_store(tmp_path)
    for part, wrong, words in (
        ("features", np.zeros((3, WIDTH), np.uint16), r"holds uint16 \[3, 6\], but meta.json says uint16"),
        ("rows", np.zeros(2, np.int64), "has 2 entries, not 4"),
        ("offsets", np.zeros(4, np.int64), "has 4 entries, not 5"),
        ("offsets", np.zeros(5, np.int64), r"does not cut \d+ tokens into captions"),
    ):
        path = tmp_path / f"shard-00000.{part}.npy"
        whole = path.read_bytes()
        np.save(path, wrong)
        with pytest.raises(ValueError, match=rf"shard-00000\.{part}\.npy: {words}.*delete this shard's .features.npy"):
            FeatureStore(tmp_path)
        path.write_bytes(whole[:-3])
        with pytest.raises(ValueError, match=rf"shard-00000\.{part}\.npy: truncated"):
            FeatureStore(tmp_path)
        path.write_bytes(whole)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "dtype": "int8"}))
    with pytest.raises(ValueError, match="dtype int8, expected bf16 or fp16"):
        FeatureStore(tmp_path)


def test_published_features_equal_their_conversion(tmp_path):
    publish(tmp_path / "old" / "a")
    published = open_features(tmp_path / "old", "a")
    assert isinstance(published, PublishedFeatures)
    meta = convert_features(tmp_path / "old" / "a", tmp_path / "new" / "a", {"dtype": "bf16"}, ROWS, SHARD)
    assert (meta["count"], meta["skipped"], meta["encoder"], meta["source"]) == (18, 5, None, {"lines": ROWS})
    store = open_features(tmp_path / "new", "a")
    assert isinstance(store, FeatureStore)
    for each in (published, store):
        assert each.width == WIDTH and each.count == 18
        assert each.rows.tolist() == GOOD and each.lengths.tolist() == LENGTHS[GOOD].tolist()
        assert all(each.has(row) == (row not in BAD) for row in range(ROWS))
        assert all(torch.equal(each.features(row).to(torch.bfloat16), FEATURES[row]) for row in GOOD)
        assert torch.equal(pickle.loads(pickle.dumps(each)).features(3), each.features(3))


def test_a_conversion_continues(tmp_path):
    publish(tmp_path / "old")

    def killed_after_one(shards):
        yield shards[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_features(
            tmp_path / "old", tmp_path / "parts", {"dtype": "bf16"}, ROWS, SHARD, progress=killed_after_one
        )
    for out in ("parts", "whole"):
        convert_features(tmp_path / "old", tmp_path / out, {"dtype": "bf16"}, ROWS, SHARD)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_faults_of_published_features_are_named(tmp_path):
    folder = publish(tmp_path / "old" / "a")
    with pytest.raises(ValueError, match="--published .*features of line 19, but its list has 19 lines"):
        convert_features(folder, tmp_path / "new", {"dtype": "bf16"}, 19)
    features = PublishedFeatures(folder)
    with pytest.raises(ValueError, match=r"--t5-feat-path .*no features of line 4 \(4\.npy\)"):
        features.features(4)
    np.save(folder / "3.npy", np.zeros((1, 2, WIDTH + 1), np.float32))
    with pytest.raises(ValueError, match=r"3\.npy: features of width 7, others of the folder are of 6"):
        features.features(3)
    np.save(folder / "3.npy", np.zeros((2, WIDTH), np.float32))
    with pytest.raises(ValueError, match=r"3\.npy: expected floats \[1, tokens, width\], found float32 \[2, 6\]"):
        features.features(3)
    (folder / "3.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"3\.npy: truncated .*delete it to leave it out"):
        features.features(3)


def test_what_cannot_be_converted_is_skipped(tmp_path):
    folder = publish(tmp_path / "old")
    np.save(folder / "3.npy", np.full((1, 2, WIDTH), np.inf, np.float32))
    (folder / "7.npy").write_bytes(b"torn")
    with pytest.raises(ValueError, match=rf"2 of {ROWS} captions cannot be used \(2 unreadable\), more than --max-bad"):
        convert_features(folder, tmp_path / "new", {"dtype": "bf16"}, ROWS, SHARD)
    meta = convert_features(folder, tmp_path / "new", {"dtype": "bf16"}, ROWS, SHARD, max_bad=0.1)
    assert (meta["count"], meta["skipped"]) == (16, 7)
    skipped = [json.loads(line) for line in (tmp_path / "new/skipped.jsonl").read_text().splitlines()]
    reasons = {bad["row"]: (bad["cause"], bad["reason"]) for bad in skipped}
    assert {row for row, (cause, _) in reasons.items() if cause == "without features"} == set(BAD)
    assert "3.npy: holds features that are not finite" in reasons[3][1] and "7.npy: truncated" in reasons[7][1]
    store = FeatureStore(tmp_path / "new")
    assert torch.equal(store.features(8), FEATURES[8].to(torch.bfloat16)) and not store.has(7)


def test_a_disk_that_cannot_be_read_now_is_no_fault_of_a_caption(tmp_path, monkeypatch):
    folder = publish(tmp_path / "old")
    load, failing = np.load, [True]

    def loaded(path, *more, **options):
        if failing[0] and path.name == "3.npy":
            raise OSError(errno.EIO, "Input/output error")
        return load(path, *more, **options)

    monkeypatch.setattr(np, "load", loaded)
    with pytest.raises(OSError, match="Input/output"):
        convert_features(folder, tmp_path / "new", {"dtype": "bf16"}, ROWS, SHARD, max_bad=1.0)
    failing[0] = False
    assert convert_features(folder, tmp_path / "new", {"dtype": "bf16"}, ROWS, SHARD)["count"] == 18


def test_features_that_cannot_be_opened(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, stem, words in (
        (tmp_path / "nowhere", "a", "--short-t5-feat-path .*nowhere: there is no such folder"),
        (tmp_path, "a", "--short-t5-feat-path .*: no folder a in it.*extract_t5_feature.py"),
        (tmp_path, "empty", "--short-t5-feat-path .*empty: no caption features in it"),
    ):
        with pytest.raises(ValueError, match=words):
            open_features(path, stem, "--short-t5-feat-path")
