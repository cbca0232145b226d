"""Options of the small T5. Torch-free."""

from dataclasses import dataclass

from engine.options import at_least


@dataclass
class SmallT5:
    data_path: str
    """A .jsonl list, or a folder of lists, of {"text": caption, or a list of captions of the same picture}."""
    output: str
    """The folder to make, in transformers' format; what reads captions takes --t5-path PARENT --t5-model-type NAME."""
    clean: bool = True
    """Clean the captions, as they will be cleaned where they are encoded."""
    width: int = 64
    """Width of the features."""
    layers: int = 2
    """Layers of the encoder."""
    heads: int = 4
    """Attention heads."""
    vocab_size: int = 256
    """Pieces of words, at most; 100 sentinels for masked words are added."""
    steps: int = 1200
    """Optimizer steps."""
    batch_size: int = 64
    """Texts of a step."""
    lr: float = 2e-3
    """The highest learning rate; it rises for a twentieth of the steps and falls to none."""
    mask: float = 0.15
    """The share of words to fill in, in a caption that is the only one of its picture. (Of two, all of one are.)"""
    val_fraction: float = 0.05
    """Hold out this share of the list's lines, and say how well their words are filled in."""
    seed: int = 0
    """Decides weights, held-out lines, texts and masks."""

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "layers", "heads", "vocab_size", "steps", "batch_size")
        at_least(self, 0, "lr", "seed")
        if not 0 <= self.mask <= 1:
            raise ValueError(f"--mask {self.mask}: is a share, from 0 to 1")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"--val-fraction {self.val_fraction}: must be above 0 and below 1")
        if self.width % self.heads:
            raise ValueError(f"--width {self.width}: must be a multiple of --heads {self.heads}")
