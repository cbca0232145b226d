"""The tokenizer: published names, shapes and outputs; the laws of its quantiser."""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from golden.fill import fill, integers, uniform
from tokenizer.tokenizer_image.vq_model import USAGE_WINDOW, VQ_CONFIGS, VQ_models, VQModel

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED = ["VQ-16", "VQ-8"]


def golden_names(name: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / "parameter_names.json").read_text())[name]


@lru_cache(maxsize=1)
def published(name: str) -> VQModel:
    """Loaded strictly by the published names, not by ours."""
    state = {key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in golden_names(name).items()}
    state["quantize.codebook_used"].zero_()
    with torch.device("meta"):
        model = VQ_models[name]()
    model.load_state_dict(state, assign=True)
    return model.eval()


def tiny(**overrides) -> VQModel:
    torch.manual_seed(0)
    small = {"channel_multipliers": (1, 1), "num_res_blocks": 1, "z_channels": 32, "codebook_size": 16}
    return VQ_models["VQ-4-tiny"](**{**small, **overrides})


def pictures(batch: int = 2, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.from_numpy(uniform("image", (batch, 3, height, width)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_and_shapes(name):
    with torch.device("meta"):
        model = VQ_models[name](codebook_size=16384, codebook_embed_dim=8)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == golden_names(name)
    assert sum(p.numel() for p in model.parameters()) == golden_names("parameters")[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_outputs(name):
    expected, model = np.load(GOLDEN / "vq.npz"), published(name)

    def close(actual, key):
        torch.testing.assert_close(actual, torch.from_numpy(expected[f"{name}/{key}"]), atol=1e-4, rtol=0)

    x = pictures(2, 96, 64)
    with torch.no_grad():
        latent = model.latent(x)
        close(latent, "latent_before_quantisation")
        quant, losses, (perplexity, encodings, indices) = model.quantize(latent)
        assert tuple(losses) == (None, None, None, 0) and perplexity is None and encodings is None
        assert np.array_equal(indices, expected[f"{name}/indices"])
        close(model.decode(quant)[:, :, ::4, ::4], "reconstruction_stride4")

        h, w = 96 // model.downsample, 64 // model.downsample
        codes = torch.from_numpy(integers("codes", 16384, (2, h * w)))
        close(model.decode_code(codes, (2, 8, h, w))[:, :, ::4, ::4], "decoded_codes_stride4")

        model.quantize.train()
        losses = model.quantize(latent)[1]
        model.quantize.eval()
    np.testing.assert_allclose([float(value) for value in losses], expected[f"{name}/train_losses"], atol=1e-7)


@pytest.mark.parametrize("name", VQ_CONFIGS)
def test_every_preset_is_built_and_says_its_downsampling(name):
    with torch.device("meta"):
        model = VQ_models[name](codebook_size=64, dropout_p=0.1)
    assert model.downsample == int(name.split("-")[1])
    assert model.quantize.embedding.weight.shape == (64, 8)
    assert model.encoder.mid[0].dropout.p == 0.1


def test_encoding_then_decoding_is_forward_and_equals_decoding_the_codes():
    model, x = tiny().eval(), pictures()
    quant, _, (_, _, indices) = model.encode(x)
    assert torch.equal(model.encode_codes(x).flatten(), indices)
    image = model(x)[0]
    assert image.shape == x.shape
    torch.testing.assert_close(model.decode(quant), image)
    torch.testing.assert_close(model.decode_code(indices, (2, 8, 4, 4), channel_first=True), image)
    torch.testing.assert_close(model.decode_code(indices, (2, 4, 4, 8), channel_first=False), image)
    torch.testing.assert_close(model.decode_code(indices.view(2, 4, 4)), image)


def test_a_picture_does_not_depend_on_its_batch():
    model, x = tiny().eval(), pictures()
    assert torch.equal(model.encode_codes(x)[1:], model.encode_codes(x[1:]))
    torch.testing.assert_close(model(x)[0][1:], model(x[1:])[0])


@pytest.mark.parametrize("l2_norm", [True, False])
def test_the_nearest_code_is_found_in_parts_of_any_size(l2_norm, monkeypatch):
    quantiser = tiny(codebook_l2_norm=l2_norm).quantize
    torch.nn.init.normal_(quantiser.embedding.weight)
    latent = torch.randn(2, 8, 5, 7)
    z, e = latent.permute(0, 2, 3, 1).reshape(-1, 8), quantiser.embedding.weight
    if l2_norm:
        z, e = F.normalize(z, dim=1), F.normalize(e, dim=1)
    nearest = torch.cdist(z, e).argmin(1)
    for elements in (1, 16 * 9, 2**25):
        monkeypatch.setattr("tokenizer.tokenizer_image.vq_model.DISTANCE_ELEMENTS", elements)
        assert torch.equal(quantiser.codes(latent), nearest)


def test_the_gradient_goes_straight_through_the_quantiser():
    quantiser, latent = tiny(codebook_l2_norm=False).quantize.eval(), torch.randn(2, 8, 4, 4, requires_grad=True)
    weight = torch.randn(2, 8, 4, 4)
    (quantiser(latent)[0] * weight).sum().backward()
    torch.testing.assert_close(latent.grad, weight)
    assert quantiser.embedding.weight.grad is None


def test_codebook_loss_moves_the_codes_and_commitment_the_encoder():
    quantiser, latent = tiny().quantize.train(), torch.randn(2, 8, 4, 4, requires_grad=True)
    losses = quantiser(latent)[1]
    of_codebook = torch.autograd.grad(losses.codebook, [quantiser.embedding.weight, latent], allow_unused=True)
    of_commitment = torch.autograd.grad(losses.commitment, [quantiser.embedding.weight, latent], allow_unused=True)
    assert of_codebook[0] is not None and of_codebook[1] is None
    assert of_commitment[0] is None and of_commitment[1] is not None
    torch.testing.assert_close(losses.commitment, 0.25 * losses.codebook)


def test_entropy_loss_is_lowest_for_sure_choices_spread_over_all_codes():
    quantiser = tiny(codebook_size=4, codebook_embed_dim=4, entropy_loss_ratio=0.5).quantize
    codebook = torch.eye(4)
    spread = quantiser.entropy_loss(codebook, codebook)  # every row sits on its own code
    same = quantiser.entropy_loss(codebook[:1].expand(4, 4), codebook)
    unsure = quantiser.entropy_loss(torch.full((4, 4), 0.5), codebook)
    np.testing.assert_allclose([spread, same, unsure], [-0.5 * np.log(4), 0, 0], atol=1e-4)
    row = torch.randn(1, 4, requires_grad=True)
    quantiser.entropy_loss(row, codebook).backward()
    assert row.grad.isfinite().all()


def test_usage_counts_the_distinct_codes_of_the_last_window():
    quantiser = tiny().quantize
    assert quantiser.update_usage(torch.tensor([3, 3, 5])) == 3 / 16  # 3, 5 and code 0 of the initial zeros
    assert quantiser.update_usage(torch.full((USAGE_WINDOW - 1,), 7)) == 2 / 16  # 5 is still in
    assert quantiser.update_usage(torch.tensor([9])) == 2 / 16  # 7 and 9
    assert quantiser.update_usage(torch.arange(USAGE_WINDOW + 2) % 16) == 1
    assert quantiser.codebook_used[-2:].tolist() == [0, 1]


def test_usage_is_kept_in_training_only():
    model = tiny()
    model.eval()(pictures())
    assert not model.quantize.codebook_used.any()
    usage = model.train()(pictures())[1].usage
    assert usage == len(model.quantize.codebook_used.unique()) / 16 > 1 / 16


def test_quantisation_is_float32_whatever_the_precision_around_it():
    model = tiny(codebook_size=1024)
    latent = torch.randn(2, 8, 16, 16).bfloat16()  # many rows and codes: rounded distances would choose others
    exact = model.quantize(latent.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quant, losses, (_, _, codes) = model.quantize(latent)
        assert torch.equal(model.quantize.codes(latent), codes)
        assert model(pictures())[0].dtype == torch.bfloat16
    assert torch.equal(codes, exact[2][2]) and torch.equal(quant, exact[0]) and quant.dtype == torch.float32
    assert losses.codebook == exact[1].codebook
    model.bfloat16()
    quant, losses, _ = model.encode(pictures().bfloat16())
    assert quant.dtype == losses.codebook.dtype == torch.float32
    assert model.decode(quant).dtype == torch.bfloat16


def test_a_picture_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="8x9.*multiples of 2"):
        tiny().encode(pictures(1, 8, 9))
    with pytest.raises(ValueError, match="--codebook-size 1"):
        tiny(codebook_size=1)


def test_the_model_needs_torch_alone():
    code = (
        "import sys; [sys.modules.__setitem__(n, None) for n in ('numpy', 'torchvision', 'PIL', 'tyro')];"
        "from tokenizer.tokenizer_image.vq_model import VQ_models; VQ_models['VQ-4-tiny']()"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=GOLDEN.parents[1])
