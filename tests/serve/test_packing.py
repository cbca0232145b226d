"""What a request carries comes out as it went in, and fits."""

import random

import pytest
import torch

from autoregressive.models.generate import Sampling
from autoregressive.models.gpt import GPT_CONFIGS, ModelArgs
from autoregressive.serve.packing import LIMIT, Packing

SIZES = {
    "c2i, 256 px": Packing(256, 1, 1000),
    "c2i, 384 px": Packing(576, 1, 1000),
    "t2i, 256 px": Packing(256, 120),
    "t2i, 512 px": Packing(1024, 120),
    "tiny": Packing(16, 1, 3),
}


@pytest.fixture(params=SIZES)
def packing(request) -> Packing:
    return SIZES[request.param]


def test_guidance_is_what_sampling_says(packing):
    """At every position, as the model reads it from there."""
    chance = random.Random(0)
    for _ in range(50):
        scale = round(chance.uniform(0, min(20, packing.highest_scale)), 2)
        sampling = Sampling(scale, cfg_interval=chance.choice([-1, 0, 1, 7, packing.codes - 3, packing.codes, 10**6]))
        kind = chance.randrange(packing.kinds)
        first = packing.first_id(packing.guidance(scale, sampling.cfg_interval), kind)
        assert packing.unpack(first)[1] == kind
        shift = packing.shift(first)
        rows = 1 if packing.classes else kind
        codes = torch.arange(packing.codes)
        positions = shift + rows - 1 + codes  # of the token before each code
        places = positions % packing.span
        assert (places == packing.prefix - 1 + codes).all()
        found = packing.strength(positions // packing.span, places - packing.prefix + 1)
        guided = sampling.guided_codes(packing.codes)
        wanted = [sampling.scale(i, packing.codes) - 1 if i < guided else 0.0 for i in range(packing.codes)]
        assert torch.allclose(found, torch.tensor(wanted), rtol=0, atol=1e-6)


def test_the_highest_scale_fits_and_no_more(packing):
    guidance = packing.guidance(packing.highest_scale)
    first = packing.first_id(guidance, packing.kinds - 1)
    last = guidance * packing.span + packing.span - 1
    assert max(first, last) <= LIMIT
    steps = guidance // packing.codes + 1
    assert ((steps + 1) * packing.codes) * max(packing.kinds, packing.span) > LIMIT, "one step more would not"
    with pytest.raises(ValueError, match=f"served models take 0 to {packing.highest_scale:g}"):
        packing.guidance(packing.highest_scale + 0.01)


def test_scales_that_are_used_fit():
    assert min(packing.highest_scale for packing in SIZES.values()) > 19
    assert SIZES["c2i, 384 px"].highest_scale > 38


@pytest.mark.parametrize("scale", [1.005, 2.3456, 1 + 1e-4])
def test_a_scale_between_steps_is_refused(packing, scale):
    with pytest.raises(ValueError, match=f"--cfg-scale {scale}: served models take steps of 0.01"):
        packing.guidance(scale)


@pytest.mark.parametrize("scale", [-0.01, float("nan"), float("inf")])
def test_no_scale(packing, scale):
    with pytest.raises(ValueError, match="--cfg-scale"):
        packing.guidance(scale)


def test_of_a_gpt():
    args = ModelArgs(**{**GPT_CONFIGS["GPT-B"], "block_size": 256})
    assert Packing.of(args, "c2i") == SIZES["c2i, 256 px"]
    args = ModelArgs(**{**GPT_CONFIGS["GPT-XL"], "block_size": 1024, "cls_token_num": 120, "model_type": "t2i"})
    assert Packing.of(args, "t2i") == SIZES["t2i, 512 px"]
