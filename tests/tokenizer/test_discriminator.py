"""The discriminators: published names and shapes, every size they claim to take."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tokenizer.tokenizer_image.discriminator import Blur, PatchGAN, ResidualBlock, build_discriminator

NAMES = json.loads((Path(__file__).parents[1] / "golden" / "parameter_names.json").read_text())


@pytest.mark.parametrize(
    "published, disc_type, size",
    [("PatchGAN", "patchgan", 256), ("StyleGAN-256", "stylegan", 256), ("StyleGAN-512", "stylegan", 512)],
)
def test_published_names_and_shapes(published, disc_type, size):
    with torch.device("meta"):
        model = build_discriminator(disc_type, size)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == NAMES[published]


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_patchgan_judges_overlapping_patches_of_small_pictures_too(size):
    logits = build_discriminator("patchgan", size).eval()(torch.zeros(2, 3, size, size))
    assert logits.shape[:2] == (2, 1) and min(logits.shape[2:]) >= 2


@pytest.mark.parametrize("layers, patch", [(1, 16), (2, 34), (3, 70)])
def test_a_patchgan_logit_sees_its_patch_and_no_more(layers, patch):
    x = torch.randn(1, 3, 96, 96, requires_grad=True)
    logits = PatchGAN(layers, width=4).eval()(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [patch, patch]


def test_stylegan_gives_one_logit_per_picture_whatever_its_batch():
    torch.manual_seed(0)
    model, x = build_discriminator("stylegan", 32), torch.randn(3, 3, 32, 32)
    logits = model(x)
    assert logits.shape == (3, 1)
    torch.testing.assert_close(logits[2:], model(x[2:]), atol=1e-4, rtol=1e-4)


def test_a_residual_block_is_its_two_branches_over_root_two():
    block, x = ResidualBlock(4, 6), torch.randn(2, 4, 8, 8)
    assert block(x).shape == (2, 6, 4, 4)
    torch.testing.assert_close(block(x) * 2**0.5, block.conv_res(x) + block.downsample(block.net(x)))


def test_blur_keeps_constants_and_spreads_a_point_by_one_two_one():
    blur = Blur()
    torch.testing.assert_close(blur(torch.full((1, 3, 5, 5), 0.7)), torch.full((1, 3, 5, 5), 0.7))
    point = F.pad(torch.ones(1, 2, 1, 1), (2, 2, 2, 2))
    row = torch.tensor([0.0, 1, 2, 1, 0]) / 4
    torch.testing.assert_close(blur(point), torch.outer(row, row).expand(1, 2, 5, 5))


@pytest.mark.parametrize("size", [16, 48, 257])
def test_stylegan_refuses_other_sizes(size):
    with pytest.raises(ValueError, match=f"--image-size {size}.*power of two.*patchgan"):
        build_discriminator("stylegan", size)


def test_wrong_requests_are_named():
    with pytest.raises(ValueError, match="--image-size 8"):
        build_discriminator("patchgan", 8)
    with pytest.raises(ValueError, match="--disc-type gan"):
        build_discriminator("gan", 256)
    with pytest.raises(ValueError, match="32"):
        build_discriminator("stylegan", 32)(torch.zeros(1, 3, 64, 64))
