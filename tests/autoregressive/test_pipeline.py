"""One pipeline for every weight file in circulation, and grids of its pictures."""

import argparse
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_gpts import packs_half
from tiny_pipeline import MACHINE, options

from autoregressive.hub import save_pretrained
from autoregressive.models.generate import Sampling
from autoregressive.models.ways import precision_of
from autoregressive.options import GPTOptions, MachineOptions, SamplingOptions
from autoregressive.sample.grid import now, sample_grid
from autoregressive.sample.options import GridOptions, SampleC2I
from autoregressive.sample.pipeline import gpt_precision, load_pipeline
from engine.checkpoint import read_weights, save_safetensors
from engine.config import parse
from tokenizer.tokenizer_image.vq_model import VQ_models
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

SAMPLING = Sampling(cfg_scale=2.0, top_k=100)


def pictures(gpt: GPTOptions, vq: TokenizerOptions) -> np.ndarray:
    return load_pipeline(gpt, vq, MACHINE).sample([3, 9], SAMPLING, seed=1)


@pytest.fixture(scope="module")
def expected(files) -> np.ndarray:
    found = pictures(*options(files))
    assert found.shape == (2, 16, 16, 3) and found.dtype == np.uint8 and found.std() > 10
    return found


# ---- weight files


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


WRAPPERS = {
    "model": lambda state: {"model": state},
    "training checkpoint": lambda state: {
        "model": state,
        "optimizer": {},
        "steps": 7,
        "args": argparse.Namespace(lr=1e-4),
    },
    "DeepSpeed": lambda state: {"module": state},
    "Lightning": lambda state: {"state_dict": state},
    "bare": lambda state: state,
    "bare with freqs_cis": lambda state: {**state, "freqs_cis": torch.zeros(3)},
    "DDP": lambda state: {"model": prefixed(state, "module.")},
    "compiled DDP": lambda state: {"model": prefixed(state, "module._orig_mod.")},
    "ema beside": lambda state: {"model": state, "ema": {name: value * 0 for name, value in state.items()}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_published_wrappers_give_the_same_pictures(wrapper, files, expected, tmp_path):
    for name in ("gpt", "vq"):
        state = torch.load(files / f"{name}.pt")["model"]
        torch.save(WRAPPERS[wrapper](state), tmp_path / f"{name}.pt")
    given = options(tmp_path, {"image_size": 16, "num_classes": 10}, {"vq_model": "VQ-4-tiny"})
    assert np.array_equal(pictures(*given), expected)


@pytest.mark.parametrize("with_meta", [True, False])
def test_safetensors_give_the_same_pictures(with_meta, files, expected, tmp_path):
    for name in ("gpt", "vq"):
        held = torch.load(files / f"{name}.pt")
        save_safetensors(tmp_path / f"{name}.safetensors", held["model"], held["meta"] if with_meta else {})
    gpt = {"gpt_ckpt": str(tmp_path / "gpt.safetensors"), "image_size": 16}
    vq = {"vq_ckpt": str(tmp_path / "vq.safetensors"), "vq_model": "VQ-4-tiny"}
    assert np.array_equal(pictures(*options(files, gpt, vq)), expected)


def test_an_fsdp_folder_gives_the_same_pictures(files, expected, tmp_path):
    folder = tmp_path / "0000500"
    folder.mkdir()
    torch.save(torch.load(files / "gpt.pt")["model"], folder / "consolidated.pth")
    given = options(files, {"gpt_ckpt": str(folder), "image_size": 16, "from_fsdp": True})
    assert np.array_equal(pictures(*given), expected)


def test_the_moving_average_is_taken_on_request(files, expected, tmp_path):
    held = torch.load(files / "gpt.pt")
    torch.save(
        {**held, "model": {k: v * 0 for k, v in held["model"].items()}, "ema": held["model"]}, tmp_path / "gpt.pt"
    )
    given = {"gpt_ckpt": str(tmp_path / "gpt.pt")}
    assert np.array_equal(pictures(*options(files, {**given, "use_ema": True})), expected)
    assert not np.array_equal(pictures(*options(files, given)), expected)


# ---- what does not fit is named


def test_flags_that_contradict_the_files_are_refused(files):
    cases = [
        ({"gpt_model": "GPT-5M"}, {}, r"--gpt-model GPT-5M: .*gpt\.pt holds a GPT-1M"),
        ({"gpt_model": "GPT-Z"}, {}, r"--gpt-model GPT-Z: unknown; choose auto or one of GPT-B"),
        ({"image_size": 32}, {}, r"--image-size 32: .* trained on pictures of 16 px"),
        ({"num_classes": 1000}, {}, r"--num-classes 1000: .*gpt\.pt has 10"),
        ({"gpt_type": "t2i"}, {}, r"--gpt-type t2i: .* is a c2i model"),
        ({"cls_token_num": 120}, {}, r"--cls-token-num 120: .* has 1"),
        ({"downsample_size": 16}, {}, r"--downsample-size 16: the tokenizer's is 4"),
        ({"gpt_ckpt": None}, {}, r"--gpt-ckpt: give"),
        ({"gpt_ckpt": "nowhere.pt"}, {}, r"--gpt-ckpt nowhere\.pt: there is no such file"),
        ({"gpt_ckpt": str(files / "vq.pt")}, {}, r"--gpt-ckpt .*vq\.pt: holds a tokenizer, not a GPT"),
        ({}, {"vq_ckpt": str(files / "gpt.pt")}, r"--vq-ckpt .*gpt\.pt: holds a gpt, not a tokenizer"),
        ({}, {"vq_ckpt": None}, r"--vq-ckpt: give"),
        ({}, {"vq_model": "VQ-16"}, r"--vq-model VQ-16: .*vq\.pt holds VQ-4-tiny"),
        ({}, {"codebook_size": 512}, r"--codebook-size 512: .*vq\.pt has 256"),
    ]
    for gpt, vq, message in cases:
        with pytest.raises(ValueError, match=message):
            load_pipeline(*options(files, gpt, vq), MACHINE)


def test_published_files_of_another_size_are_refused(files, tmp_path):
    """They say nothing about themselves: the layers and widths do."""
    torch.save(torch.load(files / "gpt.pt")["model"], tmp_path / "gpt.pt")
    gpt = {"gpt_ckpt": str(tmp_path / "gpt.pt"), "image_size": 16}
    with pytest.raises(ValueError, match=r"--gpt-model GPT-B: .* holds a GPT-1M"):
        load_pipeline(*options(files, {**gpt, "gpt_model": "GPT-B"}), MACHINE)
    with pytest.raises(ValueError, match=r"--image-size 18: must be a multiple of .* 4"):
        load_pipeline(*options(files, {**gpt, "image_size": 18}), MACHINE)
    torch.save(torch.load(files / "gpt.pt")["model"], tmp_path / "c2i_B_384.pt")
    with pytest.raises(ValueError, match=r"--image-size 16: .*c2i_B_384\.pt .* pictures of 384 px; .* rename the file"):
        load_pipeline(*options(files, {**gpt, "gpt_ckpt": str(tmp_path / "c2i_B_384.pt")}), MACHINE)
    partial = {k: v for k, v in torch.load(files / "gpt.pt")["model"].items() if "layers.2" not in k}
    torch.save(partial, tmp_path / "gpt.pt")
    with pytest.raises(ValueError, match=r"--gpt-ckpt .*gpt\.pt: .* missing \(layers\.2\..*Is it a GPT-1M"):
        load_pipeline(*options(files, gpt), MACHINE)


def test_a_truncated_file_is_named(files, tmp_path):
    whole = (files / "gpt.pt").read_bytes()
    for share in (0, 0.3, 0.99):
        (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"--gpt-ckpt .*cut\.pt: truncated or not a weight file"):
            load_pipeline(*options(files, {"gpt_ckpt": str(tmp_path / "cut.pt")}), MACHINE)


def test_another_tokenizer_or_vocabulary_is_refused(files, tmp_path):
    held = torch.load(files / "vq.pt")
    held["model"]["quantize.embedding.weight"][0] += 1
    torch.save(held, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match=r"--vq-ckpt .*another tokenizer than the one .*VQ-4-tiny, checksum"):
        load_pipeline(*options(files, vq={"vq_ckpt": str(tmp_path / "vq.pt")}), MACHINE)
    small = VQ_models["VQ-4-tiny"](codebook_size=64)
    torch.save({"model": small.state_dict()}, tmp_path / "vq.pt")
    given = {"vq_ckpt": str(tmp_path / "vq.pt"), "vq_model": "VQ-4-tiny"}
    with pytest.raises(ValueError, match=r"has 64 codes, the GPT in .* draws from 256"):
        load_pipeline(*options(files, vq=given), MACHINE)


def test_a_tokenizer_s_usage_statistics_do_not_make_it_another_one(files, expected, tmp_path):
    held = torch.load(files / "vq.pt")
    held["model"]["quantize.codebook_used"] += 5
    torch.save(held, tmp_path / "vq.pt")
    assert np.array_equal(pictures(*options(files, vq={"vq_ckpt": str(tmp_path / "vq.pt")})), expected)


def test_classes_are_found_by_number_and_name(files):
    pipeline = load_pipeline(*options(files), MACHINE)
    assert pipeline.labels([3, "Three", "3", "grey whale"]).tolist() == [3, 3, 3, 9]
    with pytest.raises(ValueError, match="'whale'.*grey whale"):
        pipeline.labels(["whale"])
    with pytest.raises(ValueError, match="'sevven'.*seven"):
        pipeline.labels(["sevven"])
    for outside in (10, -1):
        with pytest.raises(ValueError, match="0 to 9"):
            pipeline.labels([outside])


# ---- sampling


def test_codes_are_reported_as_they_are_chosen(files):
    pipeline = load_pipeline(*options(files), MACHINE)
    seen = []
    codes = pipeline.codes(pipeline.labels([1, 2]), SAMPLING, on_code=lambda i, out: seen.append((i, out.clone())))
    assert [i for i, _ in seen] == list(range(16))
    for i, out in seen:
        assert torch.equal(out[:, : i + 1], codes[:, : i + 1])


def test_a_grid_and_single_files_are_written(files, expected, tmp_path, capsys):
    grid = GridOptions(
        labels=["three", "grey whale"],
        num_images=5,
        batch_size=2,
        seed=1,
        output=str(tmp_path / "grid.png"),
        single_dir=str(tmp_path / "single"),
    )
    gpt, vq = options(files)
    sample_grid(SampleC2I(gpt, vq, MACHINE, SamplingOptions(cfg_scale=2.0, top_k=100), grid))
    singles = [np.asarray(Image.open(tmp_path / "single" / f"{i:06d}.png")) for i in range(5)]
    assert np.array_equal(np.stack(singles[:2]), expected)
    assert json.loads(Image.open(tmp_path / "single" / "000003.png").text["settings"])["class"] == "grey whale"
    assert Image.open(tmp_path / "grid.png").size[0] > 4 * 16
    assert "codes/s" in capsys.readouterr().out


def test_where_pictures_go_is_checked_before_anything_is_loaded(files, tmp_path):
    with pytest.raises(ValueError, match=r"--output grid\.jpg: must end in \.png"):
        GridOptions(output="grid.jpg")
    (tmp_path / "file").write_text("")
    for flag, given in (("output", tmp_path / "file" / "grid.png"), ("single_dir", tmp_path / "file")):
        grid = GridOptions(**{"output": str(tmp_path / "grid.png"), flag: str(given)})
        nothing = options(files, {"gpt_ckpt": "nowhere.pt"})
        with pytest.raises(ValueError, match=rf"--{flag.replace('_', '-')}: cannot write into the folder .*file"):
            sample_grid(SampleC2I(*nothing, MACHINE, grid=grid))


@pytest.mark.parametrize("flag", ["--num-images", "--per-row", "--batch-size"])
def test_counts_below_one_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        parse(SampleC2I, [flag, "0"])
    assert f"{flag} 0: must be at least 1" in capsys.readouterr().err


def test_the_clock_waits_for_the_device_s_own_stream(monkeypatch):
    """And for no other: a thread beside may be capturing a graph, which a wait for the whole device would spoil."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    monkeypatch.setattr(torch.cuda, "current_stream",
                        lambda device: SimpleNamespace(synchronize=lambda: waited.append(device)))  # fmt: skip
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    for name in ("cpu", "cuda", "mps"):
        now(torch.device(name))
    assert waited == [torch.device("cuda"), "mps"]


def test_the_machine_s_flags_reach_the_steps(files):
    labels, sampling = torch.tensor([1, 2]), Sampling(cfg_scale=2.0)
    plain = load_pipeline(*options(files), replace(MACHINE, runner="eager"))
    expected, looks = plain.codes(labels, sampling), []
    for flags in ({}, {"look_ahead": 5}):
        pipeline = load_pipeline(*options(files), replace(MACHINE, **flags))
        look = pipeline.runner.look
        pipeline.runner.look = lambda codes, look=look: looks.append(codes.shape[1]) or look(codes)
        assert torch.equal(pipeline.codes(labels, sampling), expected)
        assert max(looks) == flags.get("look_ahead", 1)
    assert pipeline.gpt.checksum() == plain.gpt.checksum(), "laid out otherwise, the weights are the same"
    fewer = load_pipeline(*options(files), replace(MACHINE, int8=True))
    assert precision_of(fewer.gpt.model) == "float32, int8" and fewer.gpt.checksum() != plain.gpt.checksum()
    with pytest.raises(ValueError, match="--look-ahead 0: must be at least 1"):
        replace(MACHINE, look_ahead=0)


@pytest.mark.parametrize("bf16, half, flags, dtype", [
    (True, True, {}, torch.bfloat16),
    (False, True, {}, torch.float16),
    (False, True, {"runner": "compiled"}, torch.float16),
    (False, True, {"runner": "eager"}, torch.float32),
    (False, True, {"precision": "none"}, torch.float32),
    (False, True, {"precision": "bf16", "int8": True}, torch.float16),
    (False, True, {"precision": "bf16", "runner": "eager"}, torch.bfloat16),
    (False, False, {"precision": "bf16"}, torch.bfloat16),
    (False, False, {}, torch.float32),
])  # fmt: skip
def test_where_bf16_is_only_played_matrices_are_float16(bf16, half, flags, dtype, monkeypatch):
    monkeypatch.setattr("engine.distributed.cpu_has_bf16", lambda: bf16)
    monkeypatch.setattr("autoregressive.sample.pipeline.multiplies_bf16", lambda: bf16)
    monkeypatch.setattr("autoregressive.models.packed.has_half_kernels", lambda: half)
    assert gpt_precision(MachineOptions(**flags), torch.device("cpu")) == dtype
    assert gpt_precision(MachineOptions(precision="bf16"), torch.device("cuda")) == torch.bfloat16


@packs_half
def test_a_gpt_with_float16_matrices_is_the_float32_one_of_those_weights(files, monkeypatch, tmp_path):
    gpt, vq = options(files)
    monkeypatch.setattr("autoregressive.sample.pipeline.multiplies_bf16", lambda: False)
    pipeline = load_pipeline(gpt, vq, replace(MACHINE, precision="bf16"))
    exact = load_pipeline(gpt, vq, replace(MACHINE, runner="eager"))
    assert precision_of(pipeline.gpt.model) == "float32, fp16 matrices"
    exact.gpt.model.half().float()
    codes, expected = (each.codes(torch.tensor([1, 2]), SAMPLING) for each in (pipeline, exact))
    assert torch.equal(codes, expected)
    with pytest.raises(ValueError, match="save_pretrained: .* float32, fp16 matrices .* --precision none"):
        save_pretrained(pipeline.gpt, tmp_path / "saved")


def test_weights_that_float16_cannot_hold_are_refused(files, tmp_path):
    weights = read_weights(options(files)[0].gpt_ckpt)
    state, path = weights.state | {"norm.weight": torch.full((128,), 1e5)}, tmp_path / "gpt.safetensors"
    save_safetensors(path, state, weights.meta)
    gpt, vq = options(files, {"gpt_ckpt": str(path)})
    with pytest.raises(ValueError, match="gpt.safetensors: norm.weight .* 65504, .* --precision none"):
        load_pipeline(gpt, vq, replace(MACHINE, precision="fp16"))
    load_pipeline(gpt, vq, MACHINE)


def test_pictures_are_decoded_so_many_at_a_time(files, monkeypatch):
    pipeline = load_pipeline(*options(files), MACHINE)
    decode, batches = pipeline.tokenizer.model.decode_code, []

    def counted(codes, shape):
        batches.append(len(codes))
        return decode(codes, shape)

    monkeypatch.setattr(pipeline.tokenizer.model, "decode_code", counted)
    codes = torch.arange(20 * 16).reshape(20, 16) % 256
    assert pipeline.to_pictures(codes, batch=15).shape == (20, 16, 16, 3) and batches == [15, 5]
