"""Samples that could not be used: counted by cause, said once, and too many of them end the run."""

from collections.abc import Sequence

import torch
from torch import Tensor

FAIR_SAMPLE = 1000  # samples seen before --max-bad is a share of anything


class Faults:
    """Of one process. Counts stay on the device until a step asks."""

    def __init__(self, causes: Sequence[str], max_bad: float):
        """causes: in words, in the plural, such as "unreadable pictures"."""
        self.causes, self.max_bad = tuple(causes), max_bad
        self.seen, self.counts = 0, torch.zeros(len(self.causes), dtype=torch.int64)
        self.said: set[str] = set()

    def add(self, samples: int, counts: Tensor) -> None:
        """samples: how many were asked for; counts int64 [causes]: those that others took the places of."""
        self.seen, self.counts = self.seen + samples, self.counts.to(counts.device) + counts

    def check(self, step: int) -> str | None:
        """What is to be said when a cause occurs for the first time; ValueError when there are too many."""
        by_cause = {cause: count for cause, count in zip(self.causes, self.counts.tolist()) if count}
        bad, listing = sum(by_cause.values()), ", ".join(f"{count} {cause}" for cause, count in by_cause.items())
        if self.seen >= FAIR_SAMPLE and bad > self.max_bad * self.seen:
            raise ValueError(f"{bad} of the {self.seen} samples seen cannot be used ({listing}), more than --max-bad "
                             f"{self.max_bad} allows; mend them (warnings name them) and go on with --resume, or allow "
                             "more")  # fmt: skip
        if by_cause.keys() <= self.said:
            return None
        self.said |= by_cause.keys()
        return (f"step {step}: {bad} of {self.seen} samples cannot be used ({listing}; warnings name them); their "
                f"neighbours take their places, up to a share of --max-bad {self.max_bad}")  # fmt: skip
