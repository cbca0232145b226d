"""Weight files: written whole or not at all, read in every format in circulation, and nothing in them is run."""

import argparse
import errno
import json
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from support import environment
from torch import nn

from engine.checkpoint import (
    CheckpointFolder,
    Weights,
    checksum,
    load_strict,
    newest_checkpoint,
    read_file,
    read_weights,
    save_safetensors,
    write_atomic,
    write_json,
    write_text,
)

STATE = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.bias": torch.ones(2, dtype=torch.bfloat16),
    "count": torch.tensor(3),
}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- writing


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed"), KeyboardInterrupt()],
)
def test_a_failing_write_keeps_the_old_file_and_leaves_nothing_aside(error, tmp_path):
    path = tmp_path / "weights.pt"
    write_atomic(path, lambda file: file.write(b"old"))

    def write(file):
        file.write(b"half of the n")
        raise error

    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError) as caught:
        write_atomic(path, write)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    if not isinstance(error, KeyboardInterrupt):
        assert str(path) in str(caught.value) and "what stood there before is whole" in str(caught.value)


FULL_DISK = """
import resource, signal, sys, torch
from engine.checkpoint import CheckpointFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = CheckpointFolder(sys.argv[1])
store.save(1, {"model": {"w": torch.zeros(10)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for step in (1, 2):
    try:
        store.save(step, {"model": {"w": torch.ones(100_000)}})
    except OSError as error:
        print("said:", error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_full_disk_costs_no_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.count("said: ") == 2 and "0000002.pt" in done.stdout, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["0000001.pt"]
    assert torch.equal(read_weights(tmp_path / "0000001.pt").state["w"], torch.zeros(10))


def test_text_and_json_are_written_as_utf8(tmp_path):
    write_text(tmp_path / "deep" / "note.txt", "größer")
    write_json(tmp_path / "deep" / "note.json", {"name": "größer"})
    assert (tmp_path / "deep" / "note.txt").read_text(encoding="utf-8") == "größer"
    assert "größer" in (tmp_path / "deep" / "note.json").read_text(encoding="utf-8")


# ---- reading


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.safetensors", "old.pt"])
def test_each_format_gives_back_what_was_written(name, tmp_path):
    path, meta = tmp_path / name, {"kind": "gpt", "class_names": ["größer"]}
    if path.suffix == ".safetensors":
        save_safetensors(path, STATE, meta)
    else:
        torch.save({"model": STATE, "meta": meta}, path, _use_new_zipfile_serialization=name != "old.pt")
    found = read_weights(path)
    assert same(found.state, STATE) and found.meta == meta and found.key == "model"
    assert checksum(found.state) == checksum(STATE)


def test_a_disk_that_does_not_answer_is_not_taken_for_a_damaged_checkpoint(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save(step, {"model": STATE})

    def fail(path, **given):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError, match=r"0000002\.pt: cannot be read now \(Input/output error\)"):
        newest_checkpoint([folder])


def test_values_in_safetensors_lie_at_multiples_of_their_size(tmp_path):
    """So that others map them into memory without a copy."""
    save_safetensors(tmp_path / "weights.safetensors", STATE, {})
    data = (tmp_path / "weights.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begins = {name: 8 + length + header[name]["data_offsets"][0] for name in STATE}
    assert all(begins[name] % value.element_size() == 0 for name, value in STATE.items())
    assert same(load(data), STATE)


@pytest.mark.parametrize(
    "content, key",
    [
        ({"model": STATE, "optimizer": {}, "steps": 3, "args": argparse.Namespace(lr=1e-4, compile=True)}, "model"),
        ({"module": STATE}, "module"),
        ({"state_dict": STATE}, "state_dict"),
        (STATE, "bare"),
        ({**STATE, "freqs_cis": torch.zeros(4)}, "bare"),
        ({"model": {f"module.{name}": value for name, value in STATE.items()}}, "model"),
        ({"model": {f"_orig_mod.{name}": value for name, value in STATE.items()}}, "model"),
        ({"model": {f"module._orig_mod.{name}": value for name, value in STATE.items()}}, "model"),
        ({"model": {}, "ema": STATE}, "ema"),
        ({"model": {"a": torch.zeros(1)}, "ema": STATE}, "ema"),
    ],
)
def test_published_wrappers_are_opened(content, key, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    found = read_weights(tmp_path / "weights.pt", ("ema",) if key == "ema" else ())
    assert same(found.state, STATE) and found.key == key


@pytest.mark.parametrize("content, told", [
    ({"steps": 30, "order": {"samples": 47, "global_batch_size": 8}}, {"steps": 30, "epochs": 6.0}),
    ({"steps": 30}, {"steps": 30}),  # as published
    ({}, {}),
])  # fmt: skip
def test_a_checkpoint_tells_how_long_it_was_trained(content, told, tmp_path):
    torch.save({"model": STATE, **content}, tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").trained == told


def test_a_published_training_folder_is_opened(tmp_path):
    torch.save(STATE, tmp_path / "consolidated.pth")
    (tmp_path / "resume_step.txt").write_text("500")
    assert same(read_weights(tmp_path).state, STATE)


def test_a_torchscript_program_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "inception.pt", "w") as archive:  # as torch.jit.save lays it out
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"inception/{name}", b"")
    with pytest.raises(ValueError, match="inception.pt: is a TorchScript program; give a file of the weights alone"):
        read_file(tmp_path / "inception.pt")


def test_what_is_no_weight_file_is_named_with_its_flag(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save({"model": {"w": torch.randn(5000)}}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:-30], b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"--gpt-ckpt .*cut\.pt: truncated or not a weight file"):
            read_weights(path, flag="--gpt-ckpt")
    cut = tmp_path / "cut.safetensors"
    save_safetensors(cut, STATE, {})
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(ValueError, match="truncated or not a weight file"):
        read_weights(cut)
    with pytest.raises(ValueError, match=r"--vq-ckpt .*none\.pt: there is no such file"):
        read_weights(tmp_path / "none.pt", flag="--vq-ckpt")
    torch.save({"epoch": 3, "optimizer": {}}, path)
    with pytest.raises(ValueError, match="no weights in it; its entries are epoch, optimizer"):
        read_weights(path)


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_file_s_code_is_not_run(tmp_path, capsys):
    torch.save({"model": {"w": Harmful()}}, tmp_path / "bad.pt")
    with pytest.raises(
        ValueError, match="holds objects that are not weights, which is not safe to load: .*print"
    ) as caught:
        read_file(tmp_path / "bad.pt")
    assert "weights_only" not in str(caught.value), "no advice to load it all the same"
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"model": {"w": "text"}}])
def test_files_of_something_else_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt: "):
        load_strict(nn.Linear(3, 2), read_weights(tmp_path / "odd.pt"), "--x")


def test_loading_is_strict_and_names_what_differs():
    module = nn.Linear(3, 2)
    good = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    load_strict(module, Weights(good, Path("x.pt")), "--x")
    assert torch.equal(module.weight, good["weight"]) and module.weight is not good["weight"]
    cases = [
        ({"weight": good["weight"]}, r"1 missing \(bias\)"),
        ({**good, "gain": good["bias"]}, r"1 unknown \(gain\)"),
        ({**good, "weight": torch.ones(3, 3)}, r"1 of another shape \(weight is \(3, 3\), the model has \(2, 3\)"),
    ]
    for state, message in cases:
        with pytest.raises(ValueError, match=rf"--x x\.pt: not the weights of this model: {message}.*\. Try another"):
            load_strict(module, Weights(state, Path("x.pt")), "--x", "Try another")
    with torch.device("meta"):
        empty = nn.Linear(3, 2)
    load_strict(empty, Weights({name: value.bfloat16() for name, value in good.items()}, Path("x.pt")), "--x")
    assert empty.weight.dtype == torch.bfloat16 and not empty.weight.is_meta


def test_checksums_tell_weights_apart_and_formats_do_not():
    base = {"a": torch.arange(4.0), "b": torch.zeros(2, 2)}
    turned = {"b": torch.zeros(2, 2), "a": torch.arange(8.0)[::2] / 2}  # another order and other strides
    assert checksum(base) == checksum(turned)
    others = [
        {**base, "a": base["a"] + 1},
        {**base, "b": torch.zeros(4)},
        {"a": base["a"]},
        {**base, "a": base["a"].double()},
        {"c": base["a"], "b": base["b"]},
    ]
    assert len({checksum(state) for state in (base, *others)}) == 6


# ---- a run's checkpoints


def test_only_the_newest_and_the_milestones_are_kept(tmp_path):
    for keep, every, left in (
        (0, 0, [5, 10, 15, 20, 25]),
        (2, 0, [20, 25]),
        (2, 10, [10, 20, 25]),
        (1, 5, [5, 10, 15, 20, 25]),
    ):
        store = CheckpointFolder(tmp_path / f"{keep}-{every}", keep, every)
        for step in (5, 10, 15, 20, 25):
            store.save(step, {"steps": step})
        assert store.steps() == left


def test_damaged_checkpoints_are_named_and_passed_over(tmp_path):
    near, far = CheckpointFolder(tmp_path / "near"), CheckpointFolder(tmp_path / "far")
    assert newest_checkpoint([near, far]) is None
    for step in (1, 2, 3):
        near.save(step, {"steps": step, "model": {"w": torch.randn(1000)}})
    for step in (2, 3):
        near.path(step).write_bytes(near.path(step).read_bytes()[: 1000 * (step - 2)])
    (tmp_path / "near/.0000009.pt.123.part").write_bytes(b"left by kill -9")
    (tmp_path / "near/best.pt").write_bytes(b"somebody's own")
    said = []
    assert newest_checkpoint([near, far], said.append) == near.path(1)
    assert ["0000003.pt" in said[0], "0000002.pt" in said[1], len(said)] == [True, True, 2]
    far.save(2, {"steps": 2})
    assert newest_checkpoint([near, far], said.append) == far.path(2)  # such as a bucket, on another machine
    near.path(1).write_bytes(b"torn")
    with pytest.raises(ValueError, match="--resume: none of the 3 checkpoints"):
        newest_checkpoint([near], said.append)


def test_a_checkpoint_of_which_one_bit_has_changed_is_passed_over(tmp_path):
    store, said = CheckpointFolder(tmp_path), []
    for step in (1, 2):
        store.save(step, {"steps": step, "model": {"w": torch.randn(1000)}})
    data = bytearray(store.path(2).read_bytes())
    data[len(data) // 2] ^= 1
    store.path(2).write_bytes(data)
    assert newest_checkpoint([store], said.append) == store.path(1)
    assert "0000002.pt: damaged (the checksum of" in said[0]


def test_a_damaged_later_step_does_not_cost_the_newest(tmp_path):
    store = CheckpointFolder(tmp_path, keep=1)
    store.path(500).parent.mkdir(parents=True, exist_ok=True)
    store.path(500).write_bytes(b"damaged")
    (tmp_path / ".0000400.pt.7.part").write_bytes(b"left by kill -9")
    (tmp_path / ".0000450.part").mkdir()  # of a sharded run
    for step in (400, 450):
        store.save(step, {"steps": step})
    assert store.steps() == [450, 500]
    assert not list(tmp_path.glob(".*.part"))
