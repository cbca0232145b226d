"""Drawing for several visitors at once: the pictures come row by row, and whoever stops or leaves costs no more.

Axes: B pictures, N codes of a picture, S side of a picture in pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Lock, Thread
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from autoregressive.models.generate import Sampling
from autoregressive.sample.drawn import greyed
from autoregressive.sample.grid import now
from autoregressive.sample.pipeline import Pipeline

PAUSE = 4  # times the last preview's duration before the next: they take a fifth of the time at most
MOST = 1000  # jobs that are announced
TELL = 0.25  # seconds between two words on the progress


class Stopped(Exception):
    """The visitor has stopped it, or left."""


@dataclass(frozen=True)
class Frame:
    """How far it is."""

    state: str  # "waiting", "sampling", "decoding", "done", "stopped"
    done: int = 0  # codes of each picture that were sampled, of `total`
    total: int = 0
    rate: float = 0.0  # codes of all pictures in a second
    pictures: np.ndarray | None = None  # uint8 [B, S, S, 3]; grey where nothing is sampled yet
    codes: np.ndarray | None = None  # int32 [B, N], with the last pictures

    @property
    def last(self) -> bool:
        return self.state in ("done", "stopped")


class Jobs:
    """Who is drawing or waits to, by the name of a visitor and a place on the page; each can be told to stop."""

    def __init__(self) -> None:
        self._waiting: dict[str, Event] = {}
        self._drawing: dict[str, list[Event]] = {}
        self._lock = Lock()

    def announce(self, name: str) -> None:
        """A job that waits for its turn: it can be stopped before it begins. The oldest are forgotten where there are
        more than a page has: anybody can announce, and never come."""
        with self._lock:
            self._waiting[name] = self._waiting.pop(name, None) or Event()
            while len(self._waiting) > MOST:
                del self._waiting[next(iter(self._waiting))]

    @contextmanager
    def begin(self, name: str) -> Iterator[Event]:
        """The event that stops the job; until the end of the block stop() finds it."""
        with self._lock:
            stop = self._waiting.pop(name, None) or Event()
            self._drawing.setdefault(name, []).append(stop)
        try:
            yield stop
        finally:
            stop.set()
            with self._lock:
                self._drawing[name].remove(stop)
                if not self._drawing[name]:
                    del self._drawing[name]

    def stop(self, prefix: str) -> None:
        """Stop all jobs whose name begins so."""
        with self._lock:
            for jobs in (self._waiting, self._drawing):
                for name in [name for name in jobs if name.startswith(prefix)]:
                    for stop in [jobs[name]] if jobs is self._waiting else jobs[name]:
                        stop.set()

    def leave(self, prefix: str) -> None:
        """Stop them, and forget those that wait, whose turn will not come."""
        self.stop(prefix)
        with self._lock:
            for name in [name for name in self._waiting if name.startswith(prefix)]:
                del self._waiting[name]


class Studio:
    """One pair of models, and `at_once` runners that draw with it side by side."""

    def __init__(self, pipeline: Pipeline, at_once: int):
        self.pipeline, self.at_once = pipeline, at_once
        self._free: SimpleQueue[Pipeline] = SimpleQueue()
        for _ in range(at_once):  # a runner's cache is one drawing's
            self._free.put(replace(pipeline, runner=pipeline.runner.another()))

    def draw(self, stop: Event, conditions: Callable[[Pipeline], dict], sampling: Sampling, seed: int,
             known: Callable[[Pipeline], Tensor] | None = None) -> Iterator[Frame]:  # fmt: skip
        """Frames until the last one, which has the pictures. Raises what the work raises.

        conditions: arguments of Pipeline.codes that say what is drawn; known: codes that are kept. Both are asked for
        where the work is done, in a thread of its own: whoever reads may be another thread each time, or go away.
        """
        frames: SimpleQueue[Frame | Exception] = SimpleQueue()

        def work() -> None:
            pipeline = self._free.get()
            try:
                if not stop.is_set():
                    Sitting(pipeline, stop, frames.put).draw(conditions, sampling, seed, known)
                else:
                    frames.put(Frame("stopped"))
            except Exception as error:  # goes on to whoever reads
                frames.put(error)
            finally:
                self._free.put(pipeline)

        Thread(target=work, daemon=True).start()
        try:
            while True:
                frame = frames.get()
                while not frames.empty():  # whoever reads slowly misses what is old
                    frame = frames.get()
                if isinstance(frame, Exception):
                    raise frame
                yield frame
                if frame.last:
                    return
        finally:
            stop.set()


class Sitting:
    """One drawing, from its conditions to its last frame."""

    def __init__(self, pipeline: Pipeline, stop: Event, tell: Callable[[Frame], None]):
        self.pipeline, self.stop, self.tell = pipeline, stop, tell
        self.codes: Tensor | None = None  # [B, N], as far as they are sampled
        self.filled = 0  # codes of each picture that are there

    def draw(self, conditions, sampling: Sampling, seed: int, known) -> None:
        given = conditions(self.pipeline)
        kept = None if known is None else known(self.pipeline)
        self.first = self.filled = 0 if kept is None else len(kept)
        self.total = self.pipeline.grid**2 - self.first
        self.began = self.told = self.shown = self.now()
        self.showing = self.cost = 0.0  # seconds that previews took, and that the last one did
        try:
            codes = self.pipeline.codes(sampling=sampling, seed=seed, known=kept, on_code=self.on_code, **given)
            rate = self.rate()
            self.tell(Frame("decoding", self.total, self.total, rate))
            self.tell(Frame("done", self.total, self.total, rate, self.pipeline.to_pictures(codes),
                            codes.to("cpu", torch.int32).numpy()))  # fmt: skip
        except Stopped:
            self.tell(self.frame("stopped", self.preview() if self.codes is not None else None))

    def on_code(self, i: int, codes: Tensor) -> None:
        if self.stop.is_set():
            raise Stopped
        self.codes, self.filled = codes, i + 1
        row_ends = self.filled % self.pipeline.grid == 0 and self.filled < codes.shape[1]
        if not row_ends and perf_counter() - self.told <= TELL:
            return
        moment, pictures = self.now(), None
        if row_ends and moment - self.shown >= PAUSE * self.cost:
            pictures = self.preview()
            self.shown = self.now()
            self.cost = self.shown - moment
            self.showing += self.cost
        if pictures is not None or moment - self.told > TELL:
            self.told = moment
            self.tell(self.frame("sampling", pictures))

    def now(self) -> float:
        """When the codes are there, not when they are launched: a GPU would otherwise be a whole picture behind, and a
        stop as late."""
        return now(self.pipeline.device)

    def rate(self) -> float:
        spent = self.now() - self.began - self.showing
        batch = 0 if self.codes is None else len(self.codes)
        return batch * (self.filled - self.first) / max(spent, 1e-9)

    def frame(self, state: str, pictures: np.ndarray | None) -> Frame:
        return Frame(state, self.filled - self.first, self.total, self.rate(), pictures)

    @torch.inference_mode()
    def preview(self) -> np.ndarray:
        """The pictures as they are, uint8 [B, S, S, 3]."""
        return greyed(self.pipeline.to_pictures(self.codes), self.filled, self.pipeline.grid)
