"""Packed matrices and their cache: the same weights, laid out otherwise, or in eight bits."""

import subprocess
import sys

import pytest
import torch
from support import ROOT, environment
from tiny_gpts import KINDS, SETTINGS, conditions, model_of, packs, packs_bf16, packs_half, sampled

from autoregressive.hub import save_pretrained
from autoregressive.load import GPT
from autoregressive.models.generate import decode_codes
from autoregressive.models.gpt import ModelArgs, build_gpt
from autoregressive.models.packed import (
    GrowingCache,
    HalfLinear,
    Int8Linear,
    PackedLinear,
    PackedRunner,
    has_half_kernels,
    pack,
    steps_of_inputs,
)
from autoregressive.models.runners import EagerRunner
from autoregressive.models.ways import make_runner, precision_of
from engine.checkpoint import checksum


class Packed(PackedRunner):
    BUCKET = 16


@packs
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=packs_bf16)])
def test_packed_matrices_replace_the_plain_ones_and_are_saved_as_they_were(dtype):
    model, plain = model_of("t2i", dtype), model_of("t2i", dtype)
    PackedRunner(model)
    blocks = [module for layer in model.layers for module in layer.modules()]
    assert not any(isinstance(module, torch.nn.Linear) for module in (*blocks, model.output)), "one copy in memory"
    assert len([module for module in model.modules() if isinstance(module, PackedLinear)]) == 2 * 5 + 1
    assert {name: value.dtype for name, value in model.state_dict().items()} == dict.fromkeys(plain.state_dict(), dtype)
    assert checksum(model.state_dict()) == checksum(plain.state_dict())
    assert torch.equal(model.output.weight, plain.output.weight)
    packed = model.layers[0]
    PackedRunner(model)
    assert model.layers[0] is packed and precision_of(model) == str(dtype).removeprefix("torch.")


@packs_bf16
@pytest.mark.parametrize("kind", KINDS)
def test_packed_steps_in_bf16_are_the_plain_ones_up_to_rounding(kind):
    cond, valid = conditions(kind)
    codes = torch.randint(96, (3, 35), generator=torch.Generator().manual_seed(0))

    def logits(runner):
        with torch.inference_mode():
            steps = [runner.start(cond, 36, valid), *(runner.step(codes[:, i]) for i in range(35))]
        return torch.stack(steps)

    exact = logits(EagerRunner(model_of(kind)))
    plain, packed = (logits(way(model_of(kind, torch.bfloat16))) for way in (EagerRunner, Packed))
    assert (packed - exact).norm() < 1.1 * (plain - exact).norm() + 1e-6
    assert (plain - exact).norm() < 0.05 * exact.norm()


@packs_half
@pytest.mark.parametrize("kind", KINDS)
def test_matrices_in_float16_compute_in_float32(kind):
    """What a float32 model of the same weights draws; nothing but weights is rounded."""
    model, plain = model_of(kind, torch.float16), model_of(kind, torch.float16).float()
    runner = make_runner("auto", model)
    layer = model.layers[0]
    assert precision_of(model) == "float32, fp16 matrices" and isinstance(model.output, HalfLinear)
    assert len([each for each in layer.modules() if isinstance(each, HalfLinear)]) == 5
    x = torch.randn(7, 64)
    torch.testing.assert_close(layer.attention.wo(x), plain.layers[0].attention.wo(x), atol=1e-5, rtol=0)
    for setting in SETTINGS.values():
        expected = sampled(EagerRunner(plain), kind, setting)
        assert all(torch.equal(sampled(runner, kind, setting, window=window), expected) for window in (1, 5))
    saved = model.state_dict()
    assert saved["output.weight"].dtype == torch.float16 and saved["norm.weight"].dtype == torch.float32
    assert all(torch.equal(saved[name].float(), value) for name, value in plain.state_dict().items())
    runner.start(*conditions(kind)[:1], 36)
    assert {part.dtype for part in runner.cache.memory} == {torch.float32}
    with pytest.raises(ValueError, match="--int8: this model is packed already"):
        pack(model, int8=True)


@packs_half
@packs
def test_eight_bits_of_a_float16_model_compute_in_float32():
    fewer, exact = model_of(dtype=torch.float16), model_of(dtype=torch.float16).float()
    found, wanted = (sampled(make_runner("auto", model, int8=True), "c2i", SETTINGS["guided"])
                     for model in (fewer, exact))  # fmt: skip
    assert precision_of(fewer) == "float32, int8" and torch.equal(found, wanted)


@packs
def test_matrices_of_eight_bits_are_near_and_no_picture_depends_on_its_batch():
    model, exact = model_of(), model_of()
    runner = make_runner("auto", model, int8=True)
    assert isinstance(model.output, Int8Linear) and precision_of(model) == "float32, int8"
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    for name in ("wqkv", "wo"):
        found, plain = (getattr(m.layers[0].attention, name) for m in (model, exact))
        assert (found.weight - plain.weight).abs().max() <= plain.weight.abs().max() / 127
        assert (found(x) - plain(x)).norm() < 2.5 / steps_of_inputs() * plain(x).norm()
        assert torch.equal(found(x)[3:4], found(x[3:4]))
        assert torch.equal(found(x * 0), x.new_zeros(7, len(plain.weight)))
    saved = model.state_dict()
    assert saved["output.weight"].dtype == torch.int8 and saved["output.scales"].shape == (96,)
    together = sampled(runner, "c2i", SETTINGS["guided"])
    for picture in range(3):
        alone = decode_codes(runner, torch.tensor([picture]), 36, SETTINGS["guided"], 5, torch.tensor([picture]))
        assert torch.equal(alone[0], together[picture])


@packs
def test_a_packed_model_is_saved_as_the_plain_one_and_one_of_eight_bits_is_not(tmp_path):
    model = build_gpt("GPT-1M", block_size=16)
    save_pretrained(GPT(model, "GPT-1M", 16, 4), tmp_path / "plain", "USER/same")
    pack(model)
    save_pretrained(GPT(model, "GPT-1M", 16, 4), tmp_path / "packed", "USER/same")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "packed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    fewer = build_gpt("GPT-1M", block_size=16)
    pack(fewer, int8=True)
    with pytest.raises(ValueError, match="without --int8"):
        save_pretrained(GPT(fewer, "GPT-1M", 16, 4), tmp_path / "fewer")
    assert not (tmp_path / "fewer").exists()


@packs
def test_a_packed_model_says_that_it_only_samples():
    model = model_of()
    pack(model)
    with pytest.raises(RuntimeError, match="--runner eager"):
        model(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))


@packs
def test_bf16_is_not_packed_where_the_processor_has_no_kernels_for_it(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert type(make_runner("auto", model_of().bfloat16())) is EagerRunner
    assert type(make_runner("auto", model_of())) is PackedRunner


@packs
def test_fused_products_are_the_separate_ones():
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 40, bias=False).requires_grad_(False)
    x, other = torch.randn(5, 24), torch.randn(5, 40)
    for kind, near in ((PackedLinear, 1e-5), (HalfLinear, 1e-3), (Int8Linear, 0.05)):
        if kind is HalfLinear and not has_half_kernels():
            continue
        packed, plain = kind(linear), linear(x)
        for found, expected in ((packed(x), plain), (packed.silu(x), torch.nn.functional.silu(plain)),
                                (packed.times(x, other), plain * other),
                                (packed.plus(x, other), plain + other)):  # fmt: skip
            torch.testing.assert_close(found, expected, atol=near, rtol=0)


def test_a_growing_cache_has_no_gaps_and_keeps_what_was_written():
    args = ModelArgs(dim=16, n_layer=2, n_head=2, vocab_size=8, num_classes=2, block_size=64)
    cache, written = GrowingCache(args, 4, 48, torch.float32), torch.randn(2, 4, 2, 48, 8)
    for length in (16, 32, 48):
        view = cache.view(length=length)
        for layer in (0, 1):
            for part in (view.keys[layer], view.values[layer]):
                assert part.shape == (4, 2, length, 8) and part.is_contiguous()
            view.keys[layer][:, :, length - 16 : length] = written[layer, :, :, length - 16 : length]
            assert torch.equal(view.keys[layer], written[layer, :, :, :length])
    rest = cache.view(batch=2).view(length=48)
    for layer in (0, 1):
        assert torch.equal(rest.keys[layer], written[layer, :2]) and rest.keys[layer].is_contiguous()
    assert cache.view(length=20).keys[0].shape[2] == 20


@packs
def test_eight_bits_round_to_the_nearest_step():
    linear, x = torch.nn.Linear(32, 32, bias=False).requires_grad_(False), torch.randn(9, 32)
    torch.nn.init.eye_(linear.weight)
    steps = x.abs().amax(-1, keepdim=True) / steps_of_inputs()
    assert ((Int8Linear(linear)(x) - x).abs() <= 0.501 * steps).all()


PRODUCT = """
import torch
from autoregressive.models.packed import Int8Linear, steps_of_inputs
linear = torch.nn.Linear(1024, 8, bias=False).requires_grad_(False)
torch.nn.init.ones_(linear.weight)
print(steps_of_inputs(), Int8Linear(linear)(torch.ones(1, 1024)).sub(1024).abs().max().item())
"""


@packs
@pytest.mark.parametrize("processor, steps", [("DEFAULT", {127, 63}), ("AVX2", {63})])
def test_sums_of_eight_bits_overflow_on_no_processor(processor, steps):
    """Without instructions for them oneDNN adds pairs of products in 16 bits, and cuts off what does not fit."""
    if not torch.cpu._is_avx2_supported():
        pytest.skip("oneDNN can play an older processor on x86 alone")
    done = subprocess.run([sys.executable, "-c", PRODUCT], cwd=ROOT, capture_output=True, text=True, check=True,
                          env=environment() | {"ONEDNN_MAX_CPU_ISA": processor})  # fmt: skip
    found, off = done.stdout.split()
    assert int(found) in steps and float(off) < 0.01
