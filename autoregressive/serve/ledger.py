"""What the server counts: who is let in, and what it says to Prometheus."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from autoregressive.serve.wire import Refusal

WINDOW = 60  # seconds that rates are of


class Rate:
    """Of what was done in the last minute, a second."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.done: deque[list[int]] = deque()  # [second, how much], no more than there are seconds in the window

    def add(self, count: int) -> None:
        second = int(time.monotonic())
        self._forget(second)
        if self.done and self.done[-1][0] == second:
            self.done[-1][1] += count
        else:
            self.done.append([second, count])

    def now(self) -> float:
        moment = time.monotonic()
        self._forget(int(moment))
        return sum(count for _, count in self.done) / max(1e-3, min(WINDOW, moment - self.began))

    def _forget(self, second: int) -> None:
        while self.done and self.done[0][0] <= second - WINDOW:
            self.done.popleft()


class Ledger:
    """`places`: pictures that are drawn at once; `queue`: those that may wait beside."""

    def __init__(self, places: int, queue: int):
        self.places, self.queue, self.admitted = places, queue, 0
        self.registry = CollectorRegistry()
        self.requests = self._made(Counter, "requests", "Requests for pictures, by their answer's status", ["status"])
        self.pictures = self._made(Counter, "pictures", "Pictures that were drawn for an answer")
        self.codes = self._made(Counter, "codes", "Codes that were sampled")
        self.latency = self._made(Histogram, "request_seconds", "Seconds from a request to its answer with pictures",
                                  buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500))  # fmt: skip
        self.picture_rate, self.code_rate = Rate(), Rate()
        for name, words, value in (
            ("pictures_drawing", "Pictures that have a place", lambda: min(self.admitted, places)),
            ("pictures_waiting", "Pictures that wait for a place", lambda: max(0, self.admitted - places)),
            ("pictures_per_second", "Pictures drawn in the last minute, a second", self.picture_rate.now),
            ("codes_per_second", "Codes sampled in the last minute, a second", self.code_rate.now),
        ):
            self._made(Gauge, name, words).set_function(value)

    def _made(self, kind, name: str, words: str, labels=(), **more):
        return kind(f"llamagen_{name}", words, labels, registry=self.registry, **more)

    @contextmanager
    def admission(self, count: int) -> Iterator[None]:
        """Room for so many pictures; Refusal with 429 where there is none."""
        if self.admitted + count > self.places + self.queue:
            wait = ceil(self.admitted / max(self.picture_rate.now(), 0.1))
            raise Refusal(429, f"{self.admitted} pictures are drawn or wait: no room for {count} more; come back later",
                          code="queue_full", kind="rate_limit_error",
                          headers={"Retry-After": str(min(max(wait, 1), 600))})  # fmt: skip
        self.admitted += count
        try:
            yield
        finally:
            self.admitted -= count

    def sampled(self, codes: int) -> None:
        self.codes.inc(codes)
        self.code_rate.add(codes)

    def answered(self, status: int, seconds: float) -> None:
        self.requests.labels(str(status)).inc()
        if status == 200:  # else refusals would make an overloaded server look fast
            self.latency.observe(seconds)

    def finished(self, pictures: int) -> None:
        self.pictures.inc(pictures)
        self.picture_rate.add(pictures)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class Shelf:
    """Pictures to be fetched by their address: the newest, `most` bytes of them, for `seconds`."""

    def __init__(self, most: int = 2**29, seconds: float = 3600):
        self.most, self.seconds, self.bytes = most, seconds, 0
        self.held: dict[str, tuple[float, bytes]] = {}  # the oldest first

    def put(self, name: str, content: bytes) -> None:
        self.held[name] = (time.monotonic(), content)
        self.bytes += len(content)
        self._clear()

    def get(self, name: str) -> bytes | None:
        self._clear()
        return self.held.get(name, (0.0, None))[1]

    def _clear(self) -> None:
        until = time.monotonic() - self.seconds
        while self.held:
            name, (moment, content) = next(iter(self.held.items()))
            if moment > until and self.bytes <= self.most:
                break
            del self.held[name]
            self.bytes -= len(content)
