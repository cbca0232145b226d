"""The losses of tokenizer training equal their closed forms and send gradients where they belong."""

import pytest
import torch
import torch.nn.functional as F

from evaluations.convnet import ConvNet, ConvNetConfig
from tokenizer.tokenizer_image import perceptual
from tokenizer.tokenizer_image.perceptual import FeatureDistance, build_perceptual
from tokenizer.tokenizer_image.vq_loss import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    DiscriminatorLoss,
    GeneratorLoss,
    adaptive_weight,
)
from tokenizer.tokenizer_image.vq_model import QuantiserLosses, VQ_models
from tokenizer.tokenizer_image.vq_options import LossConfig

REAL, FAKE = torch.tensor([[2.0, -0.5], [0.3, 4.0]]), torch.tensor([[-3.0, 0.2], [1.5, -0.1]])
QUANTISER = QuantiserLosses(torch.tensor(0.4), torch.tensor(0.1), torch.tensor(-0.3), torch.tensor(0.5))


def classifier() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(ConvNetConfig(width=4))


def pair(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 2, 3, size, size, generator=generator).mul(2).sub(1).unbind()


def test_discriminator_losses_equal_their_closed_forms():
    hinge = 0.5 * ((0 + 1.5 + 0.7 + 0) / 4 + (0 + 1.2 + 2.5 + 0.9) / 4)
    torch.testing.assert_close(DISCRIMINATOR_LOSSES["hinge"](REAL, FAKE), torch.tensor(hinge))
    cross_entropy = -0.5 * (REAL.sigmoid().log().mean() + (1 - FAKE.sigmoid()).log().mean())
    for name in ("vanilla", "non-saturating"):  # two ways to write the same
        torch.testing.assert_close(DISCRIMINATOR_LOSSES[name](REAL, FAKE), cross_entropy)


def test_generator_losses_equal_their_closed_forms():
    torch.testing.assert_close(GENERATOR_LOSSES["hinge"](FAKE), torch.tensor(0.35))
    torch.testing.assert_close(GENERATOR_LOSSES["non-saturating"](FAKE), -FAKE.sigmoid().log().mean())


def test_non_saturating_losses_are_cross_entropies_of_logits_against_one_and_zero():
    bce, one, zero = F.binary_cross_entropy_with_logits, torch.ones(2, 2), torch.zeros(2, 2)
    expected = 0.5 * (bce(REAL, one) + bce(FAKE, zero))
    torch.testing.assert_close(DISCRIMINATOR_LOSSES["non-saturating"](REAL, FAKE), expected)
    torch.testing.assert_close(GENERATOR_LOSSES["non-saturating"](FAKE), bce(FAKE, one))


@pytest.mark.parametrize("name", DISCRIMINATOR_LOSSES)
def test_the_discriminator_raises_real_logits_and_the_generator_fake_ones(name):
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    loss, metrics = DiscriminatorLoss(LossConfig(disc_loss=name, disc_weight=0.3))(real, fake)
    torch.testing.assert_close(metrics["disc_loss"], 0.3 * DISCRIMINATOR_LOSSES[name](real, fake).detach())
    loss.backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    for generator_loss in GENERATOR_LOSSES.values():
        (gradient,) = torch.autograd.grad(generator_loss(fake), fake)
        assert (gradient < 0).all()


@pytest.mark.parametrize("kind, pixel", [("l1", F.l1_loss), ("l2", F.mse_loss)])
def test_the_generator_loss_is_the_weighted_sum_of_its_parts(kind, pixel):
    config = LossConfig(2.0, kind, 3.0, codebook_weight=5.0, disc_weight=7.0, gen_loss="non-saturating")
    net, (images, fakes) = FeatureDistance(classifier()), pair()
    loss, metrics = GeneratorLoss(config, net)(images, fakes, QUANTISER, FAKE, adapt=lambda nll, gen: torch.tensor(0.5))
    generator = F.softplus(-FAKE).mean()
    expected = 2 * pixel(fakes, images) + 3 * net(images, fakes).mean() + 5 * 0.2 + 7 * 0.5 * generator
    torch.testing.assert_close(loss, expected)
    parts = {"loss", "reconstruction", "perceptual", "codebook", "commitment", "entropy", "usage", "generator"}
    assert set(metrics) == parts | {"adaptive_weight"}
    assert not any(value.requires_grad for value in metrics.values())
    torch.testing.assert_close(metrics["perceptual"], net(images, fakes).mean())


def test_without_discriminator_and_perceptual_net_the_rest_is_left():
    images, fakes = pair()
    loss, metrics = GeneratorLoss(LossConfig())(images, fakes, QUANTISER)
    torch.testing.assert_close(loss, F.mse_loss(fakes, images) + 0.2)
    assert "generator" not in metrics and "perceptual" not in metrics


def test_losses_are_float32_for_low_precision_inputs():
    images, fakes = pair()
    generator_loss = GeneratorLoss(LossConfig(), FeatureDistance(classifier()))
    loss, _ = generator_loss(images, fakes.bfloat16(), QUANTISER, FAKE.bfloat16())
    assert loss.dtype == torch.float32
    assert DiscriminatorLoss(LossConfig())(REAL.half(), FAKE.half())[0].dtype == torch.float32


def test_the_discriminator_takes_part_from_its_step_on():
    assert [LossConfig(disc_start=5).discriminates(step) for step in (4, 5, 6)] == [False, True, True]
    assert not LossConfig(disc_start=0, disc_weight=0.0).discriminates(9)


def test_adaptive_weight_is_the_ratio_of_gradient_norms_within_bounds():
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, generator = 2 * layer.square().sum(), layer.square().sum() / 2
    weight = adaptive_weight(reconstruction, generator, layer)
    torch.testing.assert_close(weight, torch.tensor(20 / (5 + 1e-4)))
    assert not weight.requires_grad and layer.grad is None
    assert adaptive_weight(1e9 * layer.sum(), 0 * layer.sum(), layer) == 1e4
    (reconstruction + weight * generator).backward()  # both graphs are still there


def test_the_gradient_reaches_all_of_the_model_and_nothing_of_the_perceptual_net():
    torch.manual_seed(0)
    model, net, images = VQ_models["VQ-4-tiny"]().train(), classifier(), pair()[0]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    distance = FeatureDistance(net).train()
    generator_loss = GeneratorLoss(LossConfig(reconstruction_weight=0.0, codebook_weight=0.0), distance)
    generator_loss(images, *model(images))[0].backward()
    for name, p in model.named_parameters():
        assert name == "quantize.embedding.weight" or p.grad.abs().max() > 0, name
    assert not any(p.requires_grad or p.grad is not None for p in distance.parameters())
    assert not any(module.training for module in distance.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_codebook_weight_counts():
    torch.manual_seed(0)
    model, images = VQ_models["VQ-4-tiny"]().train(), pair()[0]
    gradients = []
    for weight in (0.0, 1.0, 2.0):
        loss, _ = GeneratorLoss(LossConfig(codebook_weight=weight))(images, *model(images))
        gradients += torch.autograd.grad(loss, [model.quantize.embedding.weight])
    assert not gradients[0].any() and gradients[1].any()
    torch.testing.assert_close(gradients[2], 2 * gradients[1])


def test_feature_distance_is_the_mean_over_layers_of_unit_channel_differences():
    net, (x, y) = classifier().eval(), pair()
    distance = FeatureDistance(net)
    expected = torch.zeros(2)
    for a, b in zip(net.features(x), net.features(y)):
        a, b = (m / m.square().sum(1, keepdim=True).sqrt().clamp(min=1e-9) for m in (a, b))
        expected += (a - b).square().sum(1).mean((1, 2)) / 3
    torch.testing.assert_close(distance(x, y), expected)
    torch.testing.assert_close(distance(x, x), torch.zeros(2))
    torch.testing.assert_close(distance(x, y), distance(y, x))


def test_feature_distance_has_finite_gradients_where_no_feature_fires():
    net = classifier()
    for norm in net.norms:
        torch.nn.init.constant_(norm.bias, -100.0)
    x, y = pair()
    FeatureDistance(net)(x, y.requires_grad_()).sum().backward()
    assert torch.equal(y.grad, torch.zeros_like(y))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchvision's, about the interface that lpips calls
def test_lpips_equals_the_package(monkeypatch):
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    reference, (x, y) = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False), pair()
    monkeypatch.setattr(lpips, "LPIPS", lambda **kwargs: reference)
    torch.testing.assert_close(perceptual.lpips_vgg()(x, y), reference(x, y).flatten(), atol=1e-6, rtol=1e-4)


def test_missing_vgg_weights_are_named_with_their_place_and_the_way_around(monkeypatch, tmp_path):
    lpips = pytest.importorskip("lpips")

    def offline(**kwargs):
        raise OSError("no network")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="no network.*vgg16-397923af.pth") as error:
        build_perceptual(1.0)
    assert str(tmp_path / "checkpoints") in str(error.value) and "--perceptual-weight 0" in str(error.value)


def test_perceptual_net_is_read_from_a_classifiers_file_and_nothing_else(tmp_path):
    net, (x, y) = classifier(), pair()
    payload = {"model": net.state_dict(), "meta": {"format": 1, "kind": "classifier", "config": vars(net.config)}}
    torch.save(payload, tmp_path / "net.pt")
    torch.testing.assert_close(build_perceptual(1.0, str(tmp_path / "net.pt"))(x, y), FeatureDistance(net)(x, y))
    torch.save({"model": net.state_dict(), "meta": {"kind": "gpt"}}, tmp_path / "gpt.pt")
    with pytest.raises(ValueError, match="--perceptual-net .*gpt.*not a classifier"):
        build_perceptual(1.0, str(tmp_path / "gpt.pt"))
    assert build_perceptual(0.0) is None


@pytest.mark.parametrize("size", [32, 64])
def test_the_classifiers_views_of_a_picture_fit_together(size):
    net, x = ConvNet(ConvNetConfig(width=8, num_classes=5, image_size=size)).eval(), pair(size)[0]
    assert [tuple(f.shape[1:]) for f in net.features(x)] == [(8, 32, 32), (16, 16, 16), (32, 8, 8)]
    torch.testing.assert_close(net.pooled(x), net.features(x)[-1].flatten(2).sum(2) / 64)
    torch.testing.assert_close(net(x), net.head(net.pooled(x)))
    assert net(x).shape == (2, 5)


@pytest.mark.parametrize("flag", ["perceptual_weight", "disc_start"])
def test_a_negative_weight_is_refused(flag):
    with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')} -1"):
        LossConfig(**{flag: -1})
