"""A checkpoint becomes vLLM's folder once, whole or not at all."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import filled
from tiny_pipeline import GPT, TEXT_GPT, options, write_files, write_gpt, write_text_files

from autoregressive.models.gpt import build_gpt
from autoregressive.options import GPTOptions
from autoregressive.serve import convert as module
from autoregressive.serve.convert import cache_folder, convert


@pytest.fixture
def files(tmp_path) -> Path:
    return write_files(tmp_path)


def converted(files: Path, gpt: GPTOptions | None = None) -> module.Converted:
    return convert(gpt or options(files)[0], 4, files / "cache")


def test_the_folder_holds_the_weights_and_what_they_are(files):
    folder = converted(files).folder
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "unguided"]
    held = load_file(folder / "model.safetensors")
    assert held.keys() == GPT.state_dict().keys()
    assert all((held[name] == value).all() for name, value in filled(GPT).state_dict().items())
    guided, unguided = (json.loads((folder / path / "config.json").read_text()) for path in (".", "unguided"))
    args = GPT.config
    assert (guided["num_attention_heads"], guided["num_key_value_heads"]) == (2 * args.n_head, 2 * args.n_kv_head)
    assert (unguided["num_attention_heads"], unguided["num_key_value_heads"]) == (args.n_head, args.n_kv_head)
    assert {name for name in guided if guided[name] != unguided[name]} == {
        "num_attention_heads", "num_key_value_heads", "cfg_streams"}  # fmt: skip
    assert guided["max_position_embeddings"] == 17 and guided["dtype"] == "float32"
    assert guided["head_dim"] == 32 >= guided["head_width"] == args.dim // args.n_head


@pytest.mark.parametrize("name, width", [("GPT-B", 64), ("GPT-3B", 112), ("GPT-7B", 128)])
def test_heads_are_as_wide_as_vllm_has_kernels_for(name, width):
    with torch.device("meta"):
        model = build_gpt(name)
    config = module.config_of(module.GPT(model, name, 256, 16), streams=2)
    assert config["head_dim"] == width and config["head_width"] == model.config.dim // model.config.n_head


def test_it_is_made_once(files, monkeypatch):
    first = converted(files)
    monkeypatch.setattr(module, "write", None)
    again = converted(files)
    assert again.folder == first.folder and first.folder.parent == files / "cache"
    assert {value.device.type for value in again.gpt.model.layers.parameters()} == {"meta"}, "vLLM has them"


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_the_same_weights_in_any_wrapper_are_one_folder(files, wrapper):
    first = converted(files).folder
    state = filled(GPT).state_dict()
    torch.save({wrapper: state} if wrapper else state, files / "bare.pt")
    bare = GPTOptions(gpt_ckpt=str(files / "bare.pt"), gpt_model="GPT-1M", image_size=16, num_classes=10)
    assert converted(files, bare).folder == first
    assert len(list((files / "cache").iterdir())) == 1


def test_other_weights_are_another_folder(files):
    folders = [converted(files).folder]
    state = filled(GPT).state_dict()
    for changed in ({**state, "norm.weight": state["norm.weight"] * 2}, {k: v.half() for k, v in state.items()}):
        held = torch.load(files / "gpt.pt")
        torch.save({**held, "model": changed}, files / "gpt.pt")
        folders.append(converted(files).folder)
    assert len(set(folders)) == 3
    assert json.loads((folders[2] / "config.json").read_text())["dtype"] == "float16"


def test_captions(tmp_path):
    files = write_text_files(tmp_path)
    folder = converted(files, replace(options(files)[0], gpt_type="t2i", cls_token_num=120)).folder
    config = json.loads((folder / "config.json").read_text())
    assert config["gpt_type"] == "t2i" and config["max_position_embeddings"] == 136
    assert load_file(folder / "model.safetensors").keys() == TEXT_GPT.state_dict().keys()


@pytest.mark.parametrize("wrong", ["is a tokenizer", "is cut off", "is not there", "has layers too few"])
def test_what_is_no_gpt_leaves_nothing(files, wrong):
    path = files / "gpt.pt"
    if wrong == "is a tokenizer":
        shutil.copy(files / "vq.pt", path)
    elif wrong == "is cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif wrong == "is not there":
        path.unlink()
    else:
        held = torch.load(path)
        last = f"layers.{GPT.config.n_layer - 1}."
        torch.save({**held, "model": {k: v for k, v in held["model"].items() if not k.startswith(last)}}, path)
    with pytest.raises(ValueError, match="--gpt-ckpt"):
        converted(files)
    assert not (files / "cache").exists()


@pytest.mark.parametrize("at", ["save_safetensors", "write_json"])
def test_a_full_disk_leaves_nothing(files, monkeypatch, at):
    inner = getattr(module, at)

    def full(path, *given):
        inner(path, *given)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(module, at, full)
        converted(files)
    assert not list((files / "cache").iterdir())
    assert load_file(converted(files).folder / "model.safetensors")


def test_another_process_may_have_been_faster(files, monkeypatch):
    inner = module.write_json

    def slow(path, content):
        inner(path, content)
        if path.parent.name == "unguided":
            shutil.copytree(path.parents[1], path.parents[1].with_name(path.parents[1].name[1:].partition(".")[0]))

    monkeypatch.setattr(module, "write_json", slow)
    folder = converted(files).folder
    assert list((files / "cache").iterdir()) == [folder] and (folder / "unguided/config.json").exists()


def test_what_a_killed_process_left_is_cleared_away_in_time(files):
    old, new = files / "cache/.GPT.a.part", files / "cache/.GPT.b.part"
    for left in (old, new):
        (left / "unguided").mkdir(parents=True)
    os.utime(old, (0, 0))
    converted(files)
    assert not old.exists() and new.exists()


def test_the_cache_is_where_the_system_has_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "llamagen/vllm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/llamagen/vllm"


def test_a_gpt_of_its_own_config_is_written_too(files):
    write_gpt(files / "gpt.pt", build_gpt("GPT-1M", block_size=16, n_kv_head=2), class_names=None)
    config = json.loads((converted(files).folder / "config.json").read_text())
    assert config["num_key_value_heads"] == 4 and config["n_kv_head"] == 2
