"""Options of the coloured digits. Torch-free."""

from dataclasses import dataclass

from engine.options import at_least


@dataclass
class ColouredDigits:
    output: str
    """The folder to make: pictures/, lists/train.jsonl, lists/test.jsonl and prompts.tsv."""
    train_pictures: int = 12000
    """Pictures of the train list. Multiples of 120 hold every digit in every pair of colours equally often."""
    test_pictures: int = 1200
    """Pictures of the test list, drawn from other scans."""
    seed: int = 0
    """Decides scans, colours, sizes, captions and prompts."""

    def __post_init__(self) -> None:
        at_least(self, 1, "train_pictures", "test_pictures")
        at_least(self, 0, "seed")
