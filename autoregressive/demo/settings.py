"""What a visitor can set, and within which bounds."""

from dataclasses import dataclass
from reprlib import repr as short

from autoregressive.models.draw import SCHEDULES, Sampling

SEEDS = 2**53 - 1  # the largest whole number that a browser's JSON holds exactly


@dataclass(frozen=True)
class Number:
    """A number that can be set."""

    label: str
    low: float
    high: float
    step: float
    info: str = ""

    @property
    def whole(self) -> bool:
        return self.step == 1

    def checked(self, value) -> int | float:
        """The value, from low to high; ValueError for anything else, which a browser may have sent."""
        number = isinstance(value, int | float) and not isinstance(value, bool)  # nan and inf fail below
        if not number or not self.low <= value <= self.high or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            raise ValueError(f"{self.label} {short(value)}: must be {kind} from {self.low:.16g} to {self.high:.16g}")
        return int(value) if self.whole else float(value)


def numbers(codes: int, vocabulary: int, most: int) -> dict[str, Number]:
    """By name, for a model of so many codes a picture out of `vocabulary`; at most `most` pictures."""
    return {
        "cfg_scale": Number("Guidance", 1, 20, 0.05, "1: none. More: closer to what was asked for, less variety"),
        "temperature": Number("Temperature", 0, 3, 0.05, "Below 1: safer codes. Above: wilder ones"),
        "top_k": Number("Top-k", 0, vocabulary, 1, "Draw from the so many most likely codes; 0: from all"),
        "top_p": Number("Top-p", 0.01, 1, 0.01, "Draw from the most likely codes that hold this probability"),
        "cfg_interval": Number("Guidance interval", -1, codes, 1, "Guide codes 0 to this number + 1; -1: all"),
        "cfg_power": Number("Power of the cosine", 0.1, 10, 0.05, "Of the schedule power-cosine"),
        "count": Number("Pictures", 1, most, 1),
        "seed": Number("Seed", 0, SEEDS, 1),
    }


@dataclass(frozen=True)
class Settings(Sampling):
    """All that decides pictures, beside the models and what they are asked to show."""

    count: int = 8
    seed: int = 0
    size: int = 256

    @classmethod
    def checked(cls, values: dict, bounds: dict[str, Number], sizes: list[int]) -> "Settings":
        """From whatever a browser or a file holds; ValueError naming what is out of bounds. Missing ones: default."""
        found = {name: bound.checked(values[name]) for name, bound in bounds.items() if name in values}
        schedule = values.get("cfg_schedule", cls.cfg_schedule)
        if schedule not in list(SCHEDULES):
            raise ValueError(f"Schedule {short(schedule)}: choose one of {', '.join(SCHEDULES)}")
        size = values.get("size", sizes[0])
        if size not in sizes:
            raise ValueError(f"Size {short(size)}: choose one of {', '.join(map(str, sizes))} pixels")
        return cls(**found, cfg_schedule=schedule, size=int(size))


def sizes_for(side: int) -> list[int]:
    """Sides in pixels that pictures can be had in, the one that is shown at first in front: the model's own, or 256
    for those that are too small to be looked at."""
    shown = side if side >= 256 else 256
    return [shown, *(size for size in dict.fromkeys((side, 128, 256, 384, 512)) if size != shown and size >= side)]
