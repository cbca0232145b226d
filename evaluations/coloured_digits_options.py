"""Options of the coloured digits' judge. Torch-free."""

from dataclasses import dataclass

from engine.options import at_least


@dataclass
class ScoreColouredDigits:
    samples: str
    """A folder that sample_t2i_ddp.py wrote: images/ and result.jsonl."""
    real: str
    """The folder of dataset/write_coloured_digits.py: the pictures of its test list teach the classifier."""
    prompts: str | None = None
    """The list that was sampled, with the columns Prompt, digit, colour and ground. Default: prompts.tsv of --real."""
    output: str | None = None
    """Write the shares here as JSON, too."""
    least: float = 0.0
    """End with an error where the share of pictures with the right digit, colour or ground is less."""
    grid: str | None = None
    """Write the first pictures here, each with its prompt below it, as one PNG."""
    grid_pictures: int = 40
    """How many of them."""

    def __post_init__(self) -> None:
        at_least(self, 1, "grid_pictures")
        if not 0 <= self.least <= 1:
            raise ValueError(f"--least {self.least}: is a share, from 0 to 1")
