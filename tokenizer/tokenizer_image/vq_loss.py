"""The losses of tokenizer training. Each returns (loss, metrics); metrics are detached scalars.

Generator:     reconstruction + perceptual + discriminator's verdict + quantiser (VQGAN, Esser et al. 2021).
Discriminator: hinge, vanilla or non-saturating.

Pictures [B, 3, H, W] in [-1, 1]; logits of any shape, real is positive. All is computed in float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.tokenizer_image.vq_model import QuantiserLosses
from tokenizer.tokenizer_image.vq_options import LossConfig

Metrics = dict[str, Tensor]


def bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla_d(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def non_saturating_d(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (bce(real, 1.0) + bce(fake, 0.0))


def hinge_g(fake: Tensor) -> Tensor:
    return -fake.mean()


def non_saturating_g(fake: Tensor) -> Tensor:
    return bce(fake, 1.0)


RECONSTRUCTION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss}
DISCRIMINATOR_LOSSES = {"hinge": hinge_d, "vanilla": vanilla_d, "non-saturating": non_saturating_d}
GENERATOR_LOSSES = {"hinge": hinge_g, "non-saturating": non_saturating_g}


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """How many times the reconstruction's gradient at `last_layer` exceeds the generator loss's, in [0, 1e4], detached.

    VQGAN, eq. 7. Keeps the graph of both losses. It is of this process's batch: average it over ranks before use.
    """
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (of_generator,) = torch.autograd.grad(generator, last_layer, retain_graph=True)
    return (of_reconstruction.norm() / (of_generator.norm() + 1e-4)).clamp(0.0, 1e4).detach()


class GeneratorLoss:
    """The loss of encoder, quantiser and decoder."""

    def __init__(self, config: LossConfig, perceptual: nn.Module | None = None):
        """`perceptual`: (pictures, pictures) -> distances [B], by perceptual.build_perceptual; None: no such term."""
        self.config = config
        self.perceptual = perceptual

    def reconstruction(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Metrics]:
        """The pixel and the perceptual term, weighted; all there is to say of a validation batch."""
        pixel = RECONSTRUCTION_LOSSES[self.config.reconstruction_loss](reconstructions.float(), images.float())
        loss, metrics = self.config.reconstruction_weight * pixel, {"reconstruction": pixel.detach()}
        if self.perceptual is not None:
            perceptual = self.perceptual(images, reconstructions).float().mean()
            loss = loss + self.config.perceptual_weight * perceptual
            metrics["perceptual"] = perceptual.detach()
        return loss, metrics

    def __call__(
        self,
        images: Tensor,
        reconstructions: Tensor,
        quantiser: QuantiserLosses,
        fake_logits: Tensor | None = None,
        adapt: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Metrics]:
        """`quantiser`: the model's losses in training mode.

        `fake_logits`: the discriminator's, of the reconstructions; None before it takes part.
        `adapt(reconstruction, generator)` gives the adaptive weight: adaptive_weight, averaged over ranks.
        """
        reconstruction, metrics = self.reconstruction(images, reconstructions)
        codebook = quantiser.codebook + quantiser.commitment + quantiser.entropy
        loss = reconstruction + self.config.codebook_weight * codebook
        metrics |= {name: value.detach() for name, value in quantiser._asdict().items()}
        if fake_logits is not None:
            generator = GENERATOR_LOSSES[self.config.gen_loss](fake_logits.float())
            metrics["generator"] = generator.detach()
            weight = self.config.disc_weight
            if adapt is not None:
                metrics["adaptive_weight"] = adapt(reconstruction, generator)
                weight = weight * metrics["adaptive_weight"]
            loss = loss + weight * generator
        return loss, {"loss": loss.detach(), **metrics}


class DiscriminatorLoss:
    def __init__(self, config: LossConfig):
        self.config = config

    def __call__(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Metrics]:
        """The logits of real pictures and of reconstructions without the generator's graph."""
        real, fake = real_logits.float(), fake_logits.float()
        loss = self.config.disc_weight * DISCRIMINATOR_LOSSES[self.config.disc_loss](real, fake)
        metrics = {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return loss, {name: value.detach() for name, value in metrics.items()}
