"""Codes become pictures while the next codes are sampled, on a GPU; elsewhere one after the other.

Axes: B pictures of a batch, N codes of a picture, H = W side in pixels.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

CodesOf = Callable[[list[int]], Tensor]  # numbers of pictures -> int64 [B, N]
PicturesOf = Callable[[Tensor], np.ndarray]  # codes [B, N] -> uint8 [B, H, W, 3]


class SecondStream:
    """A CUDA stream, and the one thread that launches on it.

    A thread, since a launch waits where about a thousand wait already: alone, the sampler's thread would stand still
    in the launches of one stream while the other runs dry.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream, self.thread = device, torch.cuda.Stream(device), ThreadPoolExecutor(1)

    def __enter__(self) -> "SecondStream":
        return self

    def __exit__(self, *error) -> None:
        self.thread.shutdown(cancel_futures=True)

    def start(self, work: PicturesOf, codes: Tensor) -> Future[np.ndarray]:
        """work(codes), begun when what the caller has launched so far, the sampling of the codes, is done."""
        sampled = torch.cuda.Event(blocking=True)
        sampled.record(torch.cuda.current_stream(self.device))
        return self.thread.submit(self._run, work, codes, sampled)

    def _run(self, work: PicturesOf, codes: Tensor, sampled: torch.cuda.Event) -> np.ndarray:
        sampled.synchronize()  # by this thread, which sleeps meanwhile: on the stream, launches would pile up behind it
        with torch.cuda.stream(self.stream):
            try:
                return work(codes)
            finally:
                self.stream.synchronize()  # nothing reads the codes when their memory is given to the sampler again


def second_stream(device: torch.device) -> AbstractContextManager[SecondStream | None]:
    """One where decoding can go on beside the sampling: on a CPU either would wait for the other."""
    return SecondStream(device) if device.type == "cuda" else nullcontext()


def drawn(parts: list[list[int]], codes_of: CodesOf, pictures_of: PicturesOf,
          beside: SecondStream | None) -> Iterator[tuple[list[int], np.ndarray]]:  # fmt: skip
    """Numbers and pictures of each batch, in their order. With a second stream a batch is decoded while the next one is
    sampled, and no further one is begun before its pictures are there: what waits in memory is bounded. An error of the
    decoding is raised here, once the batch that is sampled beside it is launched."""
    if beside is None:
        for part in parts:
            yield part, pictures_of(codes_of(part))
        return
    coming: list[tuple[list[int], Future[np.ndarray]]] = []  # one, but for the first batch
    try:
        for part in parts:
            codes = codes_of(filled(part, len(parts[0])))[: len(part)]
            done = [(numbers, pictures.result()) for numbers, pictures in coming]
            coming = [(part, beside.start(pictures_of, codes))]
            yield from done
        for numbers, pictures in coming:
            yield numbers, pictures.result()
    finally:
        wait([pictures for _, pictures in coming])  # whoever begins anew has the memory for himself


def filled(part: list[int], size: int) -> list[int]:
    """The last batch with its last picture repeated: a batch of another size would be compiled or captured anew."""
    return part + part[-1:] * (size - len(part))
