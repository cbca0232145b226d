"""Options of the originals' npz. Torch-free."""

from dataclasses import dataclass, field

from dataset.options import DataOptions
from engine.options import at_least, check_max_bad


@dataclass
class OriginalsOptions:
    image_size: int = 256
    """Pictures are centre-cropped and scaled to this side; as --image-size-eval of the reconstructions."""
    sample_dir: str = "reconstructions"
    """Folder of the npz, val_DATASET.npz."""
    per_proc_batch_size: int = 32
    """Pictures read at once."""
    global_seed: int = 0
    """Kept for old scripts: nothing is drawn at random."""
    max_bad: float = 0.001
    """End with an error if a larger share of the pictures cannot be read; those few are left out."""

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size", "per_proc_batch_size")
        check_max_bad(self)


@dataclass
class WriteOriginals:
    originals: OriginalsOptions = field(default_factory=OriginalsOptions)
    data: DataOptions = field(default_factory=lambda: DataOptions(split="test"))
