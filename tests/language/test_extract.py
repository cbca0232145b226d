"""Extraction of caption features: what is stored is what the encoder gives, by any ranks, however often stopped."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT, environment
from tiny_t5 import SENTENCES, write_t5

from dataset.feature_store import FeatureStore, PublishedFeatures, open_features
from engine.config import parse
from language import extract_task
from language.clean import clean_caption
from language.extract_task import convert, extract_features
from language.options import ConvertFeatures, ExtractFeatures
from language.t5 import TextEncoder

WORDS = [f"{first} of {number}: {second}" for number, first in enumerate(SENTENCES) for second in SENTENCES]
TEXTS = [[f"short {text}", f"<b>Long</b>  {text}. And more", f"First {text}"] for text in WORDS]  # 16


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """An encoder; two lists, of 10 and 6 captions and of two bad lines."""
    root = tmp_path_factory.mktemp("extract")
    write_t5(root / "t5" / "tiny", WORDS)
    lines = [json.dumps({"image_path": "a.jpg", "text": text, "alt": f"alt {text[0]}"}) for text in TEXTS]
    (root / "lists").mkdir()
    (root / "lists" / "b.more.jsonl").write_text("\n".join(lines[10:]))
    (root / "lists" / "a.jsonl").write_text("\n".join([lines[0], "{torn", *lines[1:10], '{"image_path": "b.jpg"}\n']))
    (root / "lists" / "c.jsonl").write_text(json.dumps({"text": "not chosen"}))
    (root / "empty").mkdir()
    return {"root": root, "lists": root / "lists", "t5": root / "t5", "empty": root / "empty"}


ROWS = [[0, *range(2, 11)], list(range(6))]  # of the good lines


def flags(places: dict[str, Path], out: Path, more: str = "") -> list[str]:
    return (f"--data-path {places['lists']} --data-start 0 --data-end 1 --t5-path {out} --t5-model-path {places['t5']} "
            "--t5-model-type tiny --precision none --device cpu --num-workers 0 --batch-size 2 --shard-size 4 "
            f"--max-bad 0.2 {more}").split()  # fmt: skip


def extract(places: dict[str, Path], out: Path, more: str = "") -> Path:
    extract_features(parse(ExtractFeatures, flags(places, out, more)))
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


@pytest.fixture(scope="module")
def extracted(places) -> Path:
    return extract(places, places["root"] / "extracted")


@pytest.mark.parametrize(
    "more, caption",
    [
        ("", lambda text: clean_caption(text[0])),
        ("--caption-key llava", lambda text: clean_caption(text[1])),
        ("--caption-key llava_first --no-clean", lambda text: text[2]),
        ("--caption-key llava --trunc-caption", lambda text: clean_caption(text[1].split(".")[0])),
        ("--caption-key alt --dtype-of-store fp16 --num-workers 1", lambda text: clean_caption(f"alt {text[0]}")),
    ],
)
def test_the_store_holds_what_the_encoder_gives(places, tmp_path, monkeypatch, more, caption):
    monkeypatch.setattr(extract_task, "SORTED_BATCHES", 1)
    extract(places, tmp_path, more)
    encoder = TextEncoder.load("tiny", places["t5"], clean=False)
    dtype = torch.float16 if "fp16" in more else torch.bfloat16
    expected = iter(encoder.encode([caption(text) for text in TEXTS]))
    for stem, rows in zip("ab", ROWS, strict=True):
        store = open_features(tmp_path, stem)
        assert isinstance(store, FeatureStore) and store.rows.tolist() == rows and store.width == 32
        for row in rows:
            torch.testing.assert_close(store.features(row), next(expected).to(dtype), atol=1e-2, rtol=1e-2)
    assert not (tmp_path / "c").exists()


def test_the_description_and_what_was_skipped(extracted, places):
    meta = json.loads((extracted / "a" / "meta.json").read_text())
    encoder = TextEncoder.load("tiny", places["t5"])
    told = {"width": 32, "dtype": "bf16", "encoder": {"name": "tiny", "checksum": encoder.checksum}, "cleaning": True,
            "max_length": 120, "caption_key": "blip", "trunc_caption": False, "count": 10, "skipped": 2}  # fmt: skip
    assert told.items() <= meta.items()
    assert (meta["source"]["list"], meta["source"]["lines"]) == ("a.jsonl", 12)
    tokens = sum(len(encoder.tokenize(text[0])) for text in TEXTS[:10])
    assert (meta["tokens"], meta["bytes"]) == (tokens, tokens * 32 * 2)
    skipped = [json.loads(line) for line in (extracted / "a" / "skipped.jsonl").read_text().splitlines()]
    assert [(bad["row"], bad["path"], bad["cause"]) for bad in skipped] == [
        (1, "a.jsonl", "not JSON"),
        (11, "a.jsonl", "no caption"),
    ]


def test_the_need_of_disk_is_said_before_and_the_sums_after(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extract_task, "SAMPLE", 10**6)
    extract(places, tmp_path)
    said = capsys.readouterr().out
    metas = [json.loads((tmp_path / stem / "meta.json").read_text()) for stem in "ab"]
    tokens = sum(meta["tokens"] for meta in metas) / 16
    assert f"18 captions in 2 lists, {tokens:.1f} tokens each by a sample of 16" in said
    each = tokens * 64 + 16
    room = f"{each / 1000:.3g} GB per million captions, {each * 18 / 1000:.3g} kB in all"
    assert f"32 x 2 bytes a token: {room}; free there: " in said
    assert "2 lines were skipped (1 not JSON, 1 no caption)" in said
    assert f"16 captions, {sum(meta['tokens'] for meta in metas)} tokens, " in said


def test_two_ranks_write_what_one_process_writes_by_the_published_script(places, extracted, tmp_path):
    script = ROOT / "scripts/language/extract_flan_t5_feat_laion_coco_stage1.sh"
    env = {**environment(), "nproc_per_node": "2", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script), *flags(places, tmp_path)], env=env, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert content(tmp_path) == content(extracted)
    assert "18 captions in 2 lists" in done.stdout and "16 captions, " in done.stdout


def test_a_killed_extraction_continues(places, extracted, tmp_path, monkeypatch):
    write, written = extract_task.write_shard, []

    def killed_at_the_third(writer, shard, *more):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append((writer.folder.name, shard))
        return write(writer, shard, *more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extract_task, "write_shard", killed_at_the_third)
        extract(places, tmp_path)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"unfinished \(2 shards, no meta.json\); run extract_t5_feature.py again"):
        open_features(tmp_path, "a")

    def noted(writer, shard, *more):
        written.append((writer.folder.name, shard))
        return write(writer, shard, *more)

    monkeypatch.setattr(extract_task, "write_shard", noted)
    extract(places, tmp_path)
    assert written == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert before.items() <= content(tmp_path).items() and content(tmp_path) == content(extracted)


def test_a_store_of_other_captions_is_not_continued(places, extracted, tmp_path):
    for more, words in (("--caption-key llava", 'caption_key: "blip" there'), ("--trunc-caption", "trunc_caption"),
                        ("--no-clean", "cleaning"), ("--dtype-of-store fp16", "dtype"),
                        ("--precision bf16", "precision"), ("--shard-size 5", "shard_size")):  # fmt: skip
        with pytest.raises(ValueError, match=f"--t5-path .*holds features of other settings .*{words}"):
            extract(places, extracted, more)
    edited = tmp_path / "lists"
    edited.mkdir()
    (edited / "a.jsonl").write_text((places["lists"] / "a.jsonl").read_text().replace("short", "longer", 1))
    with pytest.raises(ValueError, match=r"other settings \(source: "):
        extract(places, extracted, f"--data-path {edited} --data-end 0")


def test_too_many_bad_lines_end_it_and_a_larger_share_goes_on(places, extracted, tmp_path):
    with pytest.raises(ValueError) as error:
        extract(places, tmp_path, "--max-bad 0.1")
    said = str(error.value)
    assert "2 of 18 lines cannot be used (1 not JSON, 1 no caption), more than --max-bad 0.1 allows" in said
    assert "a.jsonl, row 1: not JSON (" in said and "a.jsonl, row 11: no 'text' in it" in said
    assert not list(tmp_path.rglob("meta.json"))
    before = content(tmp_path)
    assert len(list(tmp_path.rglob("shard-*.features.npy"))) == 3
    assert content(extract(places, tmp_path)) == content(extracted) and before.items() <= content(tmp_path).items()


def test_too_many_are_known_before_the_end(places, tmp_path):
    with pytest.raises(ValueError, match=r"1 of 18 lines cannot be used \(1 not JSON\), more than --max-bad 0.05"):
        extract(places, tmp_path, "--max-bad 0.05")
    assert [path.name for path in tmp_path.rglob("shard-*.features.npy")] == ["shard-00000.features.npy"]


def test_what_a_bad_line_holds_cannot_end_it_nor_can_a_list_of_bad_lines(places, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "a.jsonl").write_text('{"text": "a red cube"}\n{"text": "half a \\ud83d pair"}\n')
    (lists / "b.jsonl").write_text('{"\\udc00": 1}\n{"text": ["\\udc00", 3], "alt": "\\udc00"}\n' + "[" * 9999)
    extract(places, tmp_path / "out", f"--data-path {lists} --caption-key llava --max-bad 1.0")
    stored = [open_features(tmp_path / "out", stem) for stem in "ab"]
    assert [store.count for store in stored] == [2, 0] and not stored[1].has(0)
    skipped = [json.loads(line) for line in (tmp_path / "out/b/skipped.jsonl").read_text().splitlines()]
    assert [bad["cause"] for bad in skipped] == ["no caption", "no caption", "not JSON"]
    assert "\udc00" in skipped[0]["reason"]
    with pytest.raises(ValueError, match="none of 3 lines looked at has a caption"):
        extract(places, tmp_path / "alone", f"--data-path {lists / 'b.jsonl'} --caption-key llava --max-bad 1.0")


def test_what_was_cut_is_counted(places, tmp_path, capsys):
    long = tmp_path / "lists"
    long.mkdir()
    (long / "a.jsonl").write_text("\n".join(json.dumps({"text": "a cat " * n}) for n in (3, 300, 400)))
    with pytest.warns(UserWarning, match="have more than 120 tokens"):
        extract(places, tmp_path / "out", f"--data-path {long} --data-end 0")
    assert "2 captions had more than 120 tokens and were cut" in capsys.readouterr().out
    assert open_features(tmp_path / "out", "a").lengths.tolist()[1:] == [120, 120]


@pytest.mark.parametrize(
    "more, words",
    [
        ("--data-path {nowhere}", "--data-path .*nowhere: there is no such file or folder"),
        ("--data-path {empty}", "--data-path .*empty: no .jsonl lists in it"),
        ("--data-start 5 --data-end 9", "--data-start 5: .* holds 3 lists"),
        ("--data-start 2", "--data-start 2, --data-end 1: must be from 0 up, the end not before the start"),
        ("--caption-key nothing", "none of 18 lines looked at has a caption; .*no 'nothing' in it, but image_path,"),
        ("--t5-model-type huge", "--t5-model-type huge: neither a folder"),
        ("--t5-model-path {lists} --t5-model-type {empty}", "--t5-model-type .*empty: lacks the config .config.json"),
        ("--precision fp64", "--precision fp64: choose auto or one of"),
        ("--device tpu", "--device tpu: unknown"),
        ("--batch-size 0", "--batch-size 0: must be at least 1"),
        ("--shard-size 0", "--shard-size 0: must be at least 1"),
        ("--max-bad 1.5", "--max-bad 1.5: is a share"),
        ("--t5-path {lists}/a.jsonl", "[Nn]ot a directory|is a file"),
    ],
)
def test_a_wrong_flag_ends_in_a_sentence(places, tmp_path, capsys, more, words):
    with pytest.raises((ValueError, OSError, SystemExit)) as error:  # the last by the parser, which prints
        extract(places, tmp_path, more.format(**places, nowhere=tmp_path / "nowhere"))
    assert re.search(words, f"{error.value} {capsys.readouterr().err}")


def test_a_list_without_lines_is_named(places, tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match="--data-path: .*a.jsonl has no lines"):
        extract(places, tmp_path / "out", f"--data-path {tmp_path} --data-end 0")


# ---- the published layout


@pytest.fixture(scope="module")
def published(places, extracted) -> Path:
    """The same features, one file each."""
    for stem, rows in zip("ab", ROWS, strict=True):
        (places["root"] / "published" / stem).mkdir(parents=True)
        for row in rows:
            features = open_features(extracted, stem).features(row).float().numpy()
            np.save(places["root"] / "published" / stem / f"{row}.npy", features[None])
    return places["root"] / "published"


def converted(published: Path, out: Path, more: str = "") -> Path:
    convert(parse(ConvertFeatures, f"--published {published} --t5-path {out} --shard-size 4 {more}".split()))
    return out


def test_converted_features_are_the_extracted_ones(places, extracted, published, tmp_path):
    out = converted(published, tmp_path, f"--data-path {places['lists']}")
    assert converted(published, tmp_path, f"--data-path {places['lists']}") == out  # again
    for stem, lines in (("a", 12), ("b", 6)):
        one, other, plain = (open_features(folder, stem) for folder in (extracted, out, published))
        assert isinstance(plain, PublishedFeatures) and other.meta["source"]["lines"] == lines
        assert one.rows.tolist() == other.rows.tolist()
        assert all(torch.equal(one.features(row), other.features(row)) for row in one.rows.tolist())
        assert (out / stem / "shard-00000.features.npy").read_bytes() == (
            extracted / stem / "shard-00000.features.npy"
        ).read_bytes()


def test_conversions_that_cannot_be(places, published, tmp_path):
    for folder, more, words in (
        (tmp_path / "nowhere", "", "--published .*nowhere: there is no such folder"),
        (places["empty"], "", "--published .*empty: no folders LIST of LINE.npy"),
        (places["t5"], "", "--published .*tiny: no caption features in it"),
        (published, f"--data-path {places['lists'] / 'a.jsonl'}", "holds no list b.jsonl"),
    ):
        with pytest.raises(ValueError, match=words):
            converted(folder, tmp_path / "out", more)
