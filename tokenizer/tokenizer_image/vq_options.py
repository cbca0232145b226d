"""Options of tokenizers: which one, how it is trained, what is reconstructed. Torch-free."""

from dataclasses import dataclass, field
from typing import Literal

from dataset.options import DataOptions
from engine.config import Auto
from engine.options import OptimOptions, RunOptions, at_least, check_max_bad


@dataclass
class TokenizerOptions:
    vq_model: str = "auto"
    """VQ-16, VQ-8 (published), VQ-4-tiny, VQ-8-tiny, VQ-4-small, VQ-8-small; auto: what --vq-ckpt says, else VQ-16."""
    vq_ckpt: str | None = None
    """Weights of the tokenizer: a published file or one of ours (.pt, .pth, .safetensors, a folder from the
    Hub)."""
    codebook_size: int | Auto = "auto"
    """Codes in the codebook; auto: the checkpoint's, else the preset's (16384 for VQ-16 and VQ-8)."""
    codebook_embed_dim: int | Auto = "auto"
    """Width of a code; auto: the checkpoint's, else the preset's (8)."""


@dataclass
class LossConfig:
    """What a tokenizer is trained for."""

    reconstruction_weight: float = 1.0
    """Weight of the pixel loss."""
    reconstruction_loss: Literal["l1", "l2"] = "l2"
    """The pixel loss: mean absolute or mean squared error."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance (0: none, and no network is fetched for it)."""
    perceptual_net: str | None = None
    """A classifier written by evaluations/classifier.py, whose features measure the distance; default: LPIPS on
    VGG16."""
    codebook_weight: float = 1.0
    """Weight of the quantiser's losses: codebook, commitment, entropy."""
    disc_weight: float = 0.5
    """Weight of the discriminator, in its own loss and in the generator's (0: none)."""
    disc_start: int = 20000
    """The step from which on the discriminator is trained and heard."""
    disc_type: Literal["patchgan", "stylegan"] = "patchgan"
    """patchgan: a verdict per patch; stylegan: one per picture, which must be a square of 32, 64, 128, ... pixels."""
    disc_loss: Literal["hinge", "vanilla", "non-saturating"] = "hinge"
    """The discriminator's loss."""
    gen_loss: Literal["hinge", "non-saturating"] = "hinge"
    """The generator's loss against the discriminator."""
    disc_adaptive_weight: bool = False
    """Scale the generator's loss so that its gradient at the decoder's last layer is as large as the
    reconstruction's."""

    def __post_init__(self) -> None:
        for name in ("reconstruction_weight", "perceptual_weight", "codebook_weight", "disc_weight", "disc_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 0 or more")

    def discriminates(self, step: int) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.disc_weight > 0 and step >= self.disc_start


@dataclass
class TokenizerTraining:
    image_size: int = 256
    """Side of the training crops in pixels."""
    finetune: bool = False
    """Start from the weights of --vq-ckpt at step 0; without it the whole run that wrote the file goes on."""
    data_face_path: str | None = None
    """A second folder of pictures, added to --data-path (of flat data sets)."""
    codebook_l2_norm: bool = True
    """Compare codes by direction: both sides are normalised."""
    commit_loss_beta: float = 0.25
    """Weight of the commitment loss."""
    entropy_loss_ratio: float = 0.0
    """Weight of the entropy loss (each choice sure, all codes used)."""
    dropout_p: float = 0.0
    """Dropout inside residual blocks."""
    max_bad: float = 0.001
    """End with an error if a larger share of the pictures cannot be read; their neighbours take their places."""

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size")
        check_max_bad(self)


@dataclass
class TrainTokenizer:
    training: TokenizerTraining = field(default_factory=TokenizerTraining)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    data: DataOptions = field(default_factory=lambda: DataOptions(num_workers=16))
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimOptions = field(
        default_factory=lambda: OptimOptions(epochs=40, global_batch_size=128, weight_decay="auto")
    )
    run: RunOptions = field(default_factory=lambda: RunOptions(results_dir="results_tokenizer_image"))


@dataclass
class Reconstruction:
    image_path: tuple[str, ...] = ("assets/example.jpg",)
    """Picture files: jpg, png, webp, ..."""
    output_dir: str = "output_vq_demo"
    """Where NAME_SUFFIX.png goes, the original beside its reconstruction."""
    suffix: str = "tokenizer_image"
    image_size: int | Auto = "auto"
    """Pictures are centre-cropped and scaled to this side; auto: the checkpoint's, else 512."""
    seed: int = 0
    """Kept for old scripts: reconstruction draws nothing at random."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""


@dataclass
class DemoTokenizer:
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
