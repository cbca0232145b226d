"""Training a tokenizer: batch of pictures -> losses, in two phases (generator, then discriminator).

Over several processes, the discriminator's batch norm, the entropy term and the codebook usage are those of each
process's own pictures; the adaptive weight is averaged.

Axes: B pictures, H height, W width.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataset.build import build_source
from dataset.faults import Faults
from dataset.images import Images
from dataset.loading import Feed
from engine.checkpoint import load_strict, read_weights
from engine.distributed import Context, leave
from engine.optim import adamw
from engine.run import Run
from engine.startup import join
from engine.trainer import Phase, Trainer
from evaluations.images import save_grid, to_bytes
from tokenizer.tokenizer_image.discriminator import build_discriminator
from tokenizer.tokenizer_image.perceptual import build_perceptual
from tokenizer.tokenizer_image.vq_load import config_for, with_usage
from tokenizer.tokenizer_image.vq_loss import DiscriminatorLoss, GeneratorLoss, adaptive_weight
from tokenizer.tokenizer_image.vq_model import VQModel
from tokenizer.tokenizer_image.vq_options import LossConfig, TrainTokenizer

LOW_USAGE, ALARM_STEPS = 0.05, 1000  # less of the codebook than this, for so many steps, is said aloud
PREVIEW_PICTURES = 8


class Verdicts(nn.Module):
    """Both verdicts in one forward, as DDP wants it; real and reconstructed pictures are normalised apart."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return self.discriminator(real), self.discriminator(fake)


class TokenizerTask:
    """The losses of section 2.1. A step counts pictures."""

    unit, units, flops = "pictures", 1, 0.0

    def __init__(self, model: VQModel, papers: dict, optimizer: torch.optim.Optimizer, generator_loss: GeneratorLoss,
                 context: Context, previews: Tensor, discriminator: nn.Module | None = None,
                 optimizer_disc: torch.optim.Optimizer | None = None, max_bad: float = 0.001):  # fmt: skip
        self.model, self.papers, self.context, self.previews = model, papers, context, previews
        self.config: LossConfig = generator_loss.config
        self.generator_loss, self.discriminator_loss = generator_loss, DiscriminatorLoss(self.config)
        self.discriminator = discriminator
        self.usage, self.low_steps = torch.zeros(()), 0
        self.faults = Faults(["unreadable pictures"], max_bad)
        self.phases = [Phase("model", model, optimizer, self.loss_of_generator)]
        if discriminator is not None:
            self.phases.append(Phase("discriminator", discriminator, optimizer_disc, self.loss_of_discriminator,
                                     "optimizer_disc", self.config.disc_start, Verdicts(discriminator)))  # fmt: skip

    def meta(self) -> dict:
        return {"format": 1, "kind": "tokenizer", "config": asdict(self.model.config), **self.papers}

    def loss_of_generator(self, module: nn.Module, batch: dict, step: int) -> tuple[Tensor, dict]:
        """batch: image float32 [B, 3, H, W] in [-1, 1], unreadable float32 [B]; leaves the reconstruction in it for the
        discriminator."""
        images, unreadable = batch["image"], batch["unreadable"]
        self.faults.add(len(images), unreadable.long().sum(0, keepdim=True))
        reconstructions, quantiser = module(images)
        self.usage = quantiser.usage
        fake_logits = None
        if self.discriminator is not None and self.config.discriminates(step):
            self.discriminator.requires_grad_(False)  # its gradients belong to its own phase
            fake_logits = self.discriminator(reconstructions)
            self.discriminator.requires_grad_(True)
        batch["reconstruction"] = reconstructions.detach()
        adapt = self.adapt if self.config.disc_adaptive_weight else None
        loss, figures = self.generator_loss(images, reconstructions, quantiser, fake_logits, adapt)
        return loss, {**figures, "unreadable": unreadable.mean()}

    def adapt(self, reconstruction: Tensor, generator: Tensor) -> Tensor:
        weight = adaptive_weight(reconstruction, generator, self.model.decoder.last_layer)
        return torch.tensor(self.context.mean({"weight": float(weight)})["weight"], device=weight.device)

    def loss_of_discriminator(self, module: nn.Module, batch: dict, step: int) -> tuple[Tensor, dict]:
        return self.discriminator_loss(*module(batch["image"], batch["reconstruction"]))

    def validate(self) -> dict[str, float]:
        return {}

    def preview(self, path: Path) -> None:
        """A fixed set of pictures above their reconstructions."""
        reconstructions, _ = self.model(self.previews.to(self.context.device))
        save_grid(path, to_bytes(torch.cat([self.previews, reconstructions.cpu()])), per_row=len(self.previews))

    def at_end(self) -> str | None:
        return self.faults.conclude(self.context.gather)

    def after_step(self, step: int) -> str | None:
        if message := self.faults.check(step):
            return message
        self.low_steps = self.low_steps + 1 if float(self.usage) < LOW_USAGE else 0
        if self.low_steps and self.low_steps % ALARM_STEPS == 0:
            return (f"step {step}: the codebook is collapsing: under {LOW_USAGE:.0%} of it was used for "
                    f"{self.low_steps} steps. A smaller --codebook-size, a lower --lr or an "
                    "--entropy-loss-ratio of 0.1 may help")  # fmt: skip
        return None


def train_tokenizer(options: TrainTokenizer) -> None:
    """Open the pictures, build the models, train them."""
    training, optim, data = options.training, options.optim, options.data
    context = join(options)
    source = build_source(data.dataset, data.data_path, data.split, training.data_face_path)
    images = Images(source, training.image_size, "random", optim.global_seed, data.flips, replace=True)
    feed = Feed(images, optim.global_batch_size, optim.global_seed, context.rank, context.world, data.num_workers)

    path = options.tokenizer.vq_ckpt
    weights = with_usage(read_weights(path, flag="--vq-ckpt")) if path else None
    overrides = {name: getattr(training, name)
                 for name in ("codebook_l2_norm", "commit_loss_beta", "entropy_loss_ratio", "dropout_p")}  # fmt: skip
    name, config = config_for(options.tokenizer, weights, **overrides)
    torch.manual_seed(optim.global_seed)
    # Channels-last pays on GPUs; on CPUs it was measured to make a bf16 training step 2.4 times slower.
    layout = torch.channels_last if context.device.type == "cuda" else torch.contiguous_format
    model = VQModel(config).to(context.device, memory_format=layout)
    if training.image_size % model.downsample:
        raise ValueError(f"--image-size {training.image_size}: must be a multiple of {name}'s down-sampling, "
                         f"{model.downsample}")  # fmt: skip
    if training.finetune:
        if weights is None:
            raise ValueError("--finetune: give the weights to start from by --vq-ckpt")
        load_strict(model, weights, "--vq-ckpt", f"--vq-model is {name}")
    betas, decay = (optim.beta1, optim.beta2), 0.0 if optim.weight_decay == "auto" else optim.weight_decay
    discriminator = optimizer_disc = None
    if options.loss.disc_weight:
        discriminator = build_discriminator(options.loss.disc_type, training.image_size).to(context.device)
        optimizer_disc = adamw(discriminator, optim.lr, betas, decay)
    perceptual = build_perceptual(options.loss.perceptual_weight, options.loss.perceptual_net, context.device)

    centre = Images(source, training.image_size, "center", replace=True)
    rows = np.linspace(0, len(source) - 1, min(PREVIEW_PICTURES, len(source))).astype(int).tolist()
    previews = torch.stack([centre[row]["image"] for row in rows])
    papers = {"model": name, "image_size": training.image_size, "class_names": source.class_names}
    task = TokenizerTask(model, papers, adamw(model, optim.lr, betas, decay), GeneratorLoss(options.loss, perceptual),
                         context, previews, discriminator, optimizer_disc, training.max_bad)  # fmt: skip
    trainer = Trainer(task, optim, Run(options.run, name, context), context, feed)
    trainer.resume(None if training.finetune else path, "--vq-ckpt")
    trainer.fit()
    leave()
