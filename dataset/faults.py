"""Samples that could not be used: counted by cause, said once, and too many of them end the run."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FAIR_SAMPLE = 1000  # samples seen before --max-bad is a share of anything
EVERY = 20  # steps from one look at a GPU's counts to the next


class Faults:
    """Of one process, since it began. Counts stay on the device until a step asks."""

    def __init__(self, causes: Sequence[str], max_bad: float):
        """causes: in words, in the plural, such as "unreadable pictures"."""
        self.causes, self.max_bad = tuple(causes), max_bad
        self.seen, self.counts = 0, torch.zeros(len(self.causes), dtype=torch.int64)
        self.empty = torch.zeros((), dtype=torch.int64)
        self.said: set[str] = set()
        self.bad_said = 0

    def add(self, samples: int, counts: Tensor, empty: Tensor | int = 0) -> None:
        """samples: how many were asked for; counts int64 [causes]: those that others took the places of; empty: how
        many of them were left without one, and count nothing."""
        self.seen, self.counts = self.seen + samples, self.counts.to(counts.device) + counts
        self.empty = self.empty + empty

    def check(self, step: int) -> str | None:
        """What is to be said when a cause occurs for the first time, or there are ten times as many as when it was said
        last; ValueError when there are too many."""
        if self.counts.is_cuda and step % EVERY:
            return None  # to ask is to wait for the device
        by_cause, bad, listing = listed(self.causes, self.counts.tolist(), int(self.empty))
        if self.seen >= FAIR_SAMPLE and bad > self.max_bad * self.seen:
            raise ValueError(f"{bad} of the {self.seen} samples seen cannot be used ({listing}), more than --max-bad "
                             f"{self.max_bad} allows; mend them (warnings name them) and go on with --resume, or allow "
                             "more")  # fmt: skip
        if not bad or (by_cause.keys() <= self.said and bad < 10 * self.bad_said):
            return None
        self.said, self.bad_said = self.said | by_cause.keys(), bad
        return (f"step {step}: {bad} of {self.seen} samples cannot be used ({listing}; warnings name them); their "
                f"neighbours take their places, up to a share of --max-bad {self.max_bad}")  # fmt: skip

    def conclude(self, gather: Callable[[object], list]) -> str | None:
        """What is to be said of all processes at the end; ValueError where too many or all could not be used.

        gather: a value of each process -> all of them, on one process; nothing elsewhere.
        """
        found = gather((self.seen, int(self.empty), *self.counts.tolist()))
        if not found:
            return None  # not the process that says it
        seen, empty, *counts = (sum(each) for each in zip(*found))
        _, bad, listing = listed(self.causes, counts, empty)
        if bad and bad == seen:
            raise ValueError(f"not one of the {seen} samples could be used ({listing}; warnings name them): nothing "
                             "was learnt")  # fmt: skip
        if seen >= FAIR_SAMPLE and bad > self.max_bad * seen:
            raise ValueError(f"{bad} of the {seen} samples of all processes could not be used ({listing}), more than "
                             f"--max-bad {self.max_bad} allows; everything is saved: mend them (warnings name them), "
                             "or run the same command with a larger --max-bad and --resume")  # fmt: skip
        return f"{bad} of {seen} samples could not be used: {listing}" if bad else None


class Skipped:
    """The rows that an extraction cannot use: if they are too many, it ends as soon as that is certain."""

    def __init__(self, rows: int, max_bad: float, what: str):
        """rows: of the whole extraction; `what` they are, in the plural."""
        self.rows, self.max_bad, self.what = rows, max_bad, what
        self.found: list[dict] = []

    def add(self, more: Sequence[dict]) -> None:
        """more: {"row", "path", "reason", "cause"} each. ValueError, with the first ten, where too many have come."""
        self.found += more
        if len(self.found) > self.max_bad * self.rows:
            listing = "\n".join(f"  {_named(bad)}" for bad in self.found[:10])
            raise ValueError(f"{len(self.found)} of {self.rows} {self.what} cannot be used ({by_cause(self.found)}), "
                             f"more than --max-bad {self.max_bad} allows:\n{listing}\nmend them and extract into "
                             "another folder, or run the same command with a larger --max-bad, which goes on from what "
                             "is there")  # fmt: skip


def by_cause(skipped: Sequence[dict]) -> str:
    """Of a store that was begun without causes, all are taken for unreadable."""
    counts = Counter(bad.get("cause", "unreadable") for bad in skipped)
    return ", ".join(f"{count} {cause}" for cause, count in counts.items())


def _named(bad: dict) -> str:
    path = str(bad["path"])
    return bad["reason"] if path in bad["reason"] else f"{path}, row {bad['row']}: {bad['reason']}"


def listed(causes: Sequence[str], counts: list[int], empty: int) -> tuple[dict[str, int], int, str]:
    """What occurred, how often, in all, and in words."""
    by_cause = {cause: count for cause, count in zip(causes, counts) if count}
    words = [f"{count} {cause}" for cause, count in by_cause.items()]
    words += [f"{empty} of them among so many others that nothing took their places"] * bool(empty)
    return by_cause, sum(by_cause.values()), ", ".join(words)
