"""Options of the class-conditional samplers. Torch-free."""

from dataclasses import dataclass, field

from autoregressive.options import GPTOptions, MachineOptions, SamplingOptions
from engine.options import at_least
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


@dataclass
class GridOptions:
    labels: list[str] | None = None
    """Classes by number or name; default: the eight of the published demo, or the model's first eight."""
    num_images: int | None = None
    """How many pictures; the labels are repeated in turn. Default: one for each label."""
    per_row: int = 4
    """Pictures side by side in the grid."""
    seed: int = 0
    """Fixes the pictures, whatever the batch and the device."""
    batch_size: int = 64
    """Pictures sampled at once."""
    output: str = "sample_c2i.png"
    """The grid, a .png file."""
    single_dir: str | None = None
    """Write each picture as a PNG of its own into this folder, too."""

    def __post_init__(self):
        at_least(self, 1, "num_images", "per_row", "batch_size")
        if not self.output.lower().endswith(".png"):
            raise ValueError(f"--output {self.output}: must end in .png")


@dataclass
class SampleC2I:
    gpt: GPTOptions = field(default_factory=GPTOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    grid: GridOptions = field(default_factory=GridOptions)


@dataclass
class BulkOptions:
    """How pictures are made by the thousand."""

    per_proc_batch_size: int = 32
    """Pictures sampled at once by each process."""
    global_seed: int = 0
    """Fixes labels and pictures, whatever the batch and the number of processes."""
    balance: bool = False
    """Equally many pictures of each class: as many pictures in a row as there are classes hold each class once, in
    shuffled order. Otherwise labels are independent and uniform, as published."""
    decode_batch_size: int = 16
    """Pictures decoded at once."""

    def __post_init__(self):
        at_least(self, 1, "per_proc_batch_size", "decode_batch_size")


@dataclass
class ManyOptions(BulkOptions):
    image_size_eval: int = 256
    """Resize pictures to this side (bicubic) before they are written; evaluators of 256-px models want 256."""
    sample_dir: str = "samples"
    """Folder of the PNGs' folder and of the npz."""
    num_fid_samples: int = 50_000
    """How many pictures."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "image_size_eval", "num_fid_samples")


@dataclass
class SampleC2IMany:
    gpt: GPTOptions = field(default_factory=GPTOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    machine: MachineOptions = field(default_factory=lambda: MachineOptions(compile=True))
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(cfg_scale=1.5, top_k=0))
    many: ManyOptions = field(default_factory=ManyOptions)
