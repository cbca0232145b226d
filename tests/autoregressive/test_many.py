"""Pictures by the thousand: the same files on any number of processes, never mixed with other models' pictures."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT, run_script
from tiny_pipeline import MACHINE, options

from autoregressive.options import SamplingOptions
from autoregressive.sample.many import labels_for, sample_many
from autoregressive.sample.options import ManyOptions, SampleC2IMany
from autoregressive.sample.pipeline import Pipeline
from engine.checkpoint import write_json
from engine.distributed import Context


def many(files: Path, folder: Path, **changed) -> SampleC2IMany:
    gpt, vq = options(files)
    numbers = ManyOptions(
        image_size_eval=24, sample_dir=str(folder), per_proc_batch_size=3, num_fid_samples=10, decode_batch_size=2
    )
    return SampleC2IMany(gpt, vq, MACHINE, SamplingOptions(cfg_scale=1.5, top_k=0), replace(numbers, **changed))


@pytest.fixture(scope="module")
def one_process(files, tmp_path_factory) -> Path:
    return sample_many(many(files, tmp_path_factory.mktemp("one")))


def contents(npz: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in npz.with_suffix("").glob("*.png")}


NAME = "GPT-1M-gpt-size-16-size-24-VQ-4-tiny-topk-0-topp-1.0-temperature-1.0-cfg-1.5-seed-0"


def test_files_have_the_published_names_and_arrays(one_process):
    assert one_process.name == f"{NAME}.npz"
    folder = one_process.parent / NAME
    assert sorted(path.name for path in folder.glob("*.png")) == [f"{i:06d}.png" for i in range(10)]
    data = np.load(one_process)
    assert data["arr_0"].shape == (10, 24, 24, 3) and data["arr_0"].dtype == np.uint8
    assert np.array_equal(data["labels"], labels_for(10, 10, 0, False))
    for i in range(10):
        assert np.array_equal(np.asarray(Image.open(folder / f"{i:06d}.png")), data["arr_0"][i])
    assert not list(folder.glob(".*")) and not list(one_process.parent.glob(".*")), "nothing aside is left"


def test_two_processes_and_another_batch_make_the_same_files(one_process, files, tmp_path):
    flags = [
        "--vq-ckpt",
        files / "vq.pt",
        "--gpt-ckpt",
        files / "gpt.pt",
        "--image-size-eval",
        "24",
        "--sample-dir",
        tmp_path,
        "--per-proc-batch-size",
        "4",
        "--num-fid-samples",
        "10",
        "--precision",
        "none",
        "--device",
        "cpu",
    ]
    run_script(ROOT / "autoregressive/sample/sample_c2i_ddp.py", *flags, ranks=2)
    again = tmp_path / one_process.name
    assert contents(again) == contents(one_process)
    assert np.array_equal(np.load(again)["arr_0"], np.load(one_process)["arr_0"])


def test_a_stopped_run_goes_on(one_process, files, capsys):
    before = contents(one_process)
    folder = one_process.with_suffix("")
    for i in (0, 4, 9):
        (folder / f"{i:06d}.png").unlink()
    os.utime(folder / "000001.png", (1, 1))
    assert sample_many(many(files, one_process.parent)) == one_process
    assert "7 pictures are there, 3 to go" in capsys.readouterr().out
    assert contents(one_process) == before
    assert (folder / "000001.png").stat().st_mtime == 1, "what is there is not sampled again"


def test_a_folder_with_pictures_of_other_settings_is_refused(one_process, files, tmp_path):
    with pytest.raises(ValueError, match=r"--sample-dir .*other settings.*balance False"):
        sample_many(many(files, one_process.parent, balance=True))
    (tmp_path / NAME).mkdir()
    Image.new("RGB", (24, 24)).save(tmp_path / NAME / "000000.png")
    with pytest.raises(ValueError, match=r"--sample-dir .*unknown settings"):
        sample_many(many(files, tmp_path))


def test_pictures_of_other_weights_are_refused(one_process, files, tmp_path):
    """A training run writes its checkpoints under the same name again and again."""
    held = torch.load(files / "gpt.pt")
    held["model"]["output.weight"][0] += 1
    torch.save({**held, "ema": held["model"]}, tmp_path / "gpt.pt")
    other = replace(many(files, one_process.parent).gpt, gpt_ckpt=str(tmp_path / "gpt.pt"))
    for gpt, named in ((other, "gpt_checksum"), (replace(other, use_ema=True), "gpt_checksum .*use_ema False")):
        with pytest.raises(ValueError, match=rf"--sample-dir .*other settings \({named}"):
            sample_many(replace(many(files, one_process.parent), gpt=gpt))
    machine = replace(MACHINE, decode_precision="bf16")
    with pytest.raises(ValueError, match=r"other settings \(decode_precision float32\)"):
        sample_many(replace(many(files, one_process.parent), machine=machine))


def test_how_long_the_gpt_was_trained_goes_into_the_npz_and_decides_nothing(one_process, files, tmp_path):
    """Folders that were begun before it was noted down go on, and so do those of the same weights without papers."""
    shutil.copytree(one_process.with_suffix(""), tmp_path / NAME)
    held = torch.load(files / "gpt.pt")
    (tmp_path / "weights").mkdir()
    torch.save({**held, "steps": 30, "order": {"samples": 47, "global_batch_size": 8}}, tmp_path / "weights" / "gpt.pt")
    assert "steps" not in (tmp_path / NAME / "settings.json").read_text()
    longer = replace(many(files, tmp_path).gpt, gpt_ckpt=str(tmp_path / "weights" / "gpt.pt"))
    npz = sample_many(replace(many(files, tmp_path), gpt=longer))
    meta = json.loads(str(np.load(npz)["meta"]))
    assert (meta["steps"], meta["epochs"]) == (30, 6.0)
    assert contents(npz) == contents(one_process)
    write_json(tmp_path / NAME / "settings.json", meta)
    assert "steps" not in json.loads(str(np.load(sample_many(many(files, tmp_path)))["meta"]))


def test_rank_0_says_which_pictures_are_missing(files, tmp_path, monkeypatch):
    """Its list goes to all: on a network folder another rank may see fewer files, and leave some to nobody."""
    monkeypatch.setattr(Context, "on_main", lambda self, work: seen_by_rank_0(work()))
    asked, seen_by_rank_0 = [], lambda found: found and (found[0][:2], found[1])
    monkeypatch.setattr("autoregressive.sample.many.sample_missing", lambda *given: asked.extend(given[5]))
    with pytest.raises(ValueError, match="000000.png: not a readable picture"):  # the npz, as nothing was sampled
        sample_many(many(files, tmp_path))
    assert asked == [0, 1]


def test_the_decode_batch_is_heard(files, tmp_path, monkeypatch):
    batches = []

    def decode(self, codes, batch=8):
        batches.append(len(codes))
        return torch.zeros(len(codes), 3, 16, 16)

    monkeypatch.setattr(Pipeline, "decode", decode)
    sample_many(many(files, tmp_path, per_proc_batch_size=10, decode_batch_size=9))
    assert batches == [9, 1]


@pytest.mark.parametrize("field", ["num_fid_samples", "per_proc_batch_size", "image_size_eval", "decode_batch_size"])
def test_counts_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} 0: must be at least 1"):
        ManyOptions(**{field: 0})


def test_labels_are_uniform_independent_and_balanced_on_request():
    drawn, even = labels_for(50_000, 1000, 0, False), labels_for(50_000, 1000, 0, True)
    counts = np.bincount(drawn, minlength=1000)
    assert ((counts - 50) ** 2 / 50).sum() == pytest.approx(999, abs=4 * np.sqrt(2 * 999))
    assert (np.bincount(even, minlength=1000) == 50).all()
    for labels in (drawn, even):
        assert abs(np.corrcoef(labels[:-1], labels[1:])[0, 1]) < 0.02, (
            "the order matters to the Inception Score's splits"
        )
    assert np.array_equal(labels_for(100, 1000, 0, False), drawn[:100]), "a label does not depend on how many are drawn"
    assert not np.array_equal(labels_for(100, 1000, 1, False), drawn[:100])
    assert np.array_equal(labels_for(2500, 1000, 0, True), even[:2500]), "nor does a balanced one"
    assert (np.sort(even.reshape(50, 1000), axis=1) == np.arange(1000)).all(), "a block holds each class once"
    assert not np.array_equal(even[:1000], even[1000:2000]) and not np.array_equal(labels_for(9, 9, 1, True), even[:9])
