"""Options of scoring a tokenizer by its reconstructions. Torch-free."""

from dataclasses import dataclass, field

from dataset.options import DataOptions
from engine.config import Auto
from engine.options import at_least, check_max_bad
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


@dataclass
class ReconstructionRun:
    image_size: int | Auto = "auto"
    """Pictures are centre-cropped and scaled to this side, then encoded; auto: the checkpoint's, else 256."""
    image_size_eval: int | Auto = "auto"
    """Originals and reconstructions are resized to this side (bicubic) before they are compared and written; auto:
    --image-size, but at most 256, as published."""
    sample_dir: str = "reconstructions"
    """Folder of the PNGs' folder, the npz and the report."""
    per_proc_batch_size: int = 32
    """Pictures reconstructed at once by each process."""
    global_seed: int = 0
    """Kept for old scripts, and part of the files' names: reconstruction draws nothing at random."""
    precision: str = "none"
    """The tokenizer's: none (float32; its convolutions in TF32 where a GPU has it, as torch does), bf16, fp16 or
    auto."""
    max_bad: float = 0.001
    """End with an error if a larger share of the pictures cannot be read; those few are left out."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size", "per_proc_batch_size")
        at_least(self, 7, "image_size_eval")  # SSIM's window
        check_max_bad(self)


@dataclass
class ClosenessOptions:
    """Which networks have a say in how close reconstructions are."""

    lpips: bool = True
    """Report LPIPS; --no-lpips: do without its network."""
    perceptual_net: str | None = None
    """A classifier of evaluations/classifier.py, whose features take the place of VGG16's; default: LPIPS on VGG16."""
    rfid: bool = True
    """Report rFID; --no-rfid: do without its network."""
    feature_net: str | None = None
    """The network of rFID: Inception's weights (pt_inception-2015-12-05-6726825d.pth), or a classifier of
    evaluations/classifier.py. Default: Inception's weights, fetched once."""

    def __post_init__(self) -> None:
        for flag, net in (("lpips", "perceptual_net"), ("rfid", "feature_net")):
            if not getattr(self, flag) and getattr(self, net) is not None:
                raise ValueError(f"--no-{flag} goes without --{net.replace('_', '-')}: leave one of them out")


@dataclass
class ReconstructTokenizer:
    run: ReconstructionRun = field(default_factory=ReconstructionRun)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    data: DataOptions = field(default_factory=lambda: DataOptions(split="test"))
    closeness: ClosenessOptions = field(default_factory=ClosenessOptions)
