"""Compiled steps: how often they are compiled, and what Inductor, torch.compile's own compiler, makes of them."""

import re
import shutil
from ast import literal_eval
from functools import partial
from math import prod

import pytest
import torch
from tiny_gpts import KINDS, SETTINGS, conditions, model_of, packs, sampled
from torch._inductor.utils import run_and_get_code

from autoregressive.models.draw import Sampling, gumbel_noise
from autoregressive.models.packed import CompiledPackedRunner, attend_one
from autoregressive.models.runners import CompiledRunner, EagerRunner

inductor = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


class Buckets(CompiledRunner):
    BUCKET = 24  # two of them in 1 + 35 positions, one in a part of them


class Packed(CompiledPackedRunner):
    BUCKET = 16


@pytest.fixture
def graphs(monkeypatch):
    """What torch.compile is given to compile, and runs as it is."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_buckets_and_their_masks_change_nothing(kind, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    runner, expected = Buckets(model_of(kind)), sampled(EagerRunner(model_of(kind)), kind, SETTINGS["guided"])
    assert torch.equal(sampled(runner, kind, SETTINGS["guided"]), expected)
    assert torch.equal(sampled(runner, kind, SETTINGS["guided"]), expected), "a second batch reads nothing of the first"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_compiles_once_a_bucket_and_equals_eager(dtype, graphs):
    model, sampling = model_of(dtype=dtype), Sampling(cfg_scale=2.0, top_p=0.9)
    runner = Buckets(model)
    found = sampled(runner, "c2i", sampling)
    if dtype == torch.float32:
        assert torch.equal(found, sampled(EagerRunner(model), "c2i", sampling))
    assert len(graphs) == 2 + 2  # positions 1..23 and 24..35, for both blocks, guidance and the choice of a code
    for rows in range(2, 7):  # the last batch of a sampler, guided and not: torch would give up after eight
        for scale in (1.0, 2.0):
            heat, share = 0.5 + 0.1 * rows, 0.1 * rows + 0.1 * scale  # are but numbers
            sampled(runner, "c2i", Sampling(cfg_scale=scale, temperature=heat, top_p=share), rows)
    shapes = {rows * guided for rows in range(2, 7) for guided in (1, 2)} - {6}
    assert len(graphs) == 2 * (1 + len(shapes)) + 5 * 2 > 16


@inductor
def test_the_noise_s_hash_is_the_same_bit_by_bit():
    """Its products overflow, its shifts are arithmetic ones, and 1 - (1 - x) must stay what it is."""
    keys = torch.tensor([[0, 1, -1, 2**31 - 1, -(2**31), 123456789]], dtype=torch.int32)
    vocabulary = torch.arange(0, 16384, 97, dtype=torch.int32)
    found = torch.compile(gumbel_noise, dynamic=False)(keys, vocabulary)
    torch.testing.assert_close(found, gumbel_noise(keys, vocabulary), atol=1e-6, rtol=1e-6)


@packs
def test_attention_between_packed_products_compiles_for_all_lengths_at_once(graphs):
    runner, plain = Packed(model_of()), EagerRunner(model_of())
    for rows in (3, 2, 4, 1):
        for scale, top_k, top_p in ((1.0, 0, 1.0), (2.0, 40, 1.0), (3.0, 50, 0.9)):
            sampling = Sampling(cfg_scale=scale, top_k=top_k, top_p=top_p, cfg_interval=10)
            assert torch.equal(sampled(runner, "c2i", sampling, rows), sampled(plain, "c2i", sampling, rows))
    assert len(graphs) == 3 + 2, "attention of 3 rows, of any number and of 1, the choice of one code and of several"


@packs
@pytest.mark.parametrize("kind, window", [("grouped heads", 1), ("c2i", 7)])
def test_attention_of_several_queries_a_key_stays_as_it_is(kind, window, graphs):
    runner, expected = Packed(model_of(kind)), sampled(EagerRunner(model_of(kind)), kind, SETTINGS["guided"])
    assert torch.equal(sampled(runner, kind, SETTINGS["guided"], window=window), expected)
    assert all("softmax" not in graph.code for graph in graphs) and graphs


@inductor
def test_a_compiled_step_draws_the_codes_of_the_plain_one():
    runner, expected = Buckets(model_of("grouped heads")), sampled(EagerRunner(model_of("grouped heads")),
                                                                   "grouped heads", SETTINGS["guided"])  # fmt: skip
    assert torch.equal(sampled(runner, "grouped heads", SETTINGS["guided"]), expected)


@inductor
@torch.inference_mode()
def test_attention_between_packed_products_is_loops_and_rounds_no_scores():
    heads, cache = torch.randn(3, 1, 12, 16).bfloat16(), torch.randn(2, 3, 4, 37, 16).bfloat16()
    heads[:, :, :4] *= 8  # so that scores reach some 30, which bf16 rounds by 0.06
    rotary = torch.tensor([1.0, 0.0]).expand(1, 8, 2)  # turns nothing
    hidden = torch.where(torch.rand(3, 1, 1, 37) < 0.3, float("-inf"), 0.0).bfloat16()
    hidden[..., 9] = 0
    q, k, v = heads.chunk(3, dim=2)
    exact = cache.float()
    exact[:, :, :, 9] = torch.stack([k[:, 0], v[:, 0]])
    weights = (q.transpose(1, 2).float() / 4 @ exact[0].mT + hidden).softmax(-1)
    expected = (weights @ exact[1]).transpose(1, 2)
    out, code = run_and_get_code(torch.compile(attend_one, dynamic=True, fullgraph=True), heads, rotary, *cache,
                                 torch.tensor([9]), hidden)  # fmt: skip
    assert torch.equal(cache, exact.bfloat16())
    assert (out - expected).abs().max() < 2**-7 * expected.abs().max()
    assert "extern_kernels.bmm(" not in "".join(code)


@inductor
def test_a_compiled_block_writes_to_its_layer_s_cache_and_copies_none():
    runner, made = Buckets(model_of()), []
    block = runner.block

    def looked_at(*given):
        out, (code, *_) = run_and_get_code(block, *given)
        made.extend(literal_eval(shape) for shape in re.findall(r"empty_strided_cpu\((\([^)]*\))", code))
        runner.block = block
        return out

    torch._dynamo.reset()
    with torch.inference_mode():
        runner.start(conditions("c2i")[0], 36)
        runner.block = looked_at
        runner.step(torch.zeros(3, dtype=torch.int64))
    assert made and all(prod(shape) < runner.cache.keys[0][:, :, :24].numel() for shape in made)
