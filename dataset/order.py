"""Which sample goes where, and every random choice about a sample.

Both are functions of numbers alone: a step's global batch of (seed, step), a choice of (seed, epoch, sample, stream).
Nothing depends on the number of ranks or workers, or on what was drawn before: a run resumes at its exact step.
"""

from collections.abc import Iterator

import numpy as np

# A stream for each kind of choice makes them independent. The numbers are part of what a seed means: never reuse one.
CROP_SCALE, CROP_TOP, CROP_LEFT, FLIP, WHICH_CROP, DROP_CONDITION, SHUFFLE, HELD_OUT, LABEL, SHORT_CAPTION = range(10)

_MASK = 2**64 - 1


def draw(seed: int, epoch, sample, stream) -> np.ndarray:
    """Uniform float64 in [0, 1); epoch, sample and stream are integers or arrays of them, and are broadcast."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        for part in (seed, stream, epoch, sample):
            state = _mix(state ^ _unsigned(part))
    return (state >> np.uint64(11)) * 2.0**-53


def _unsigned(value) -> np.ndarray:
    return np.asarray(value & _MASK if isinstance(value, int) else value).astype(np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A step and the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Order:
    """The samples of each training step. An epoch permutes all samples and drops an incomplete last batch."""

    def __init__(self, count: int, global_batch: int, seed: int):
        if not 1 <= global_batch <= count:
            raise ValueError(f"--global-batch-size {global_batch}: must be from 1 to the number of samples, {count}")
        self.count, self.global_batch, self.seed = count, global_batch, seed
        self.steps_per_epoch = count // global_batch
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """The epoch of a step (counted from 0), and its sample numbers, int64 [global_batch]."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            # Sorting our own hash rather than numpy's shuffle, whose stream may change with numpy's version.
            keys = draw(self.seed, epoch, np.arange(self.count), SHUFFLE)
            self._epoch, self._permutation = epoch, np.argsort(keys, kind="stable")
        start = place * self.global_batch
        return epoch, self._permutation[start : start + self.global_batch]


class RankBatches:
    """A DataLoader's batch_sampler: [(epoch, sample), ...], this rank's slice of the steps start..stop-1."""

    def __init__(self, order: Order, rank: int, world: int, start: int, stop: int):
        if order.global_batch % world:
            raise ValueError(
                f"--global-batch-size {order.global_batch}: must be a multiple of the number of processes, {world}"
            )
        self.order, self.start, self.stop = order, start, stop
        share = order.global_batch // world
        self.slice = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            epoch, samples = self.order.batch(step)
            yield [(epoch, sample) for sample in samples[self.slice].tolist()]
