"""The step on NVIDIA GPUs: one captured graph, from the codes drawn last to the codes drawn next.

A step of a GPT is hundreds of short kernels, and launching them one by one takes longer than their work. A CUDA graph
launches them at once. What it reads and writes must stand in the same place each time, and no number in Python may
change what it does: so positions stand in tensors, the memory is kept between calls, and a graph belongs to a shape.

Axes: B pictures, R rows (guided: 2B), T cached positions, W codes that are looked at together, N codes of a picture.
"""

from collections.abc import Callable
from copy import copy
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from .cache import KVCache
from .draw import Draw
from .gpt import Transformer
from .runners import BucketRunner, CompiledRunner, hidden

CAPTURING = Lock()  # CUDA captures for one thread of a process at a time


class Place:
    """The memory that graphs read and write, for `rows` rows and all positions of pictures of `codes` codes."""

    def __init__(self, cache: KVCache, rows: int, length: int, codes: int, vocab_size: int):
        device = cache.keys[0].device
        numbers = torch.zeros(rows, codes, dtype=torch.int64, device=device)
        self.cache, self.rows = cache, rows
        self.keys = torch.zeros(rows, 1, 1, length, dtype=torch.bool, device=device)
        self.codes, self.drawn = numbers.clone(), numbers.clone()
        self.steps = torch.zeros(3, codes, dtype=torch.int64, device=device)  # positions, slots, numbers of the next
        self.noise = numbers.int()
        self.scales = torch.zeros(codes, device=device, dtype=torch.float32)
        self.temperature, self.top_p = self.scales[0].clone(), self.scales[0].clone()
        self.vocabulary = torch.arange(vocab_size, dtype=torch.int32, device=device)

    def fixed(self, draw: Draw) -> Draw:
        """The draw, with what changes from call to call copied here."""
        draw, (pictures, codes) = copy(draw), draw.keys.shape
        self.noise[:pictures, :codes] = draw.keys
        self.scales[:codes] = draw.scales
        draw.keys, draw.scales, draw.vocabulary = self.noise[:pictures], self.scales, self.vocabulary
        draw.temperature, draw.top_p = self.temperature.copy_(draw.temperature), self.top_p.copy_(draw.top_p)
        return draw


class CapturedRunner(BucketRunner):
    """A CUDA graph of the whole step: decoding, guidance, filters, noise, the choice. Its memory stays with it."""

    BUCKET = 64  # positions; a step reads half as many in vain
    GRAPHS = 256  # are kept: batches, buckets and filters are their shapes

    def __init__(self, model: Transformer):
        super().__init__(model)
        self.place: Place | None = None
        self.stream = None  # that graphs are captured on, and warmed up: libraries keep memory for each one
        self.forget()

    def forget(self) -> None:
        """All graphs, and the memory that they share."""
        self.graphs: dict[tuple, Callable[[], object]] = {}
        self.pool = None

    def start(self, cond: Tensor, codes: int, valid: Tensor | None = None, known: Tensor | None = None,
              draw: Draw | None = None) -> Tensor:  # fmt: skip
        drawn = super().start(cond, codes, valid, known, draw)
        if self.keys is not None:
            self.place.keys[: self.rows, ..., : self.keys.shape[-1]] = self.keys
        if draw is not None:
            self.draw = self.place.fixed(draw)
            fed, prefix = self.counted(0, codes), self.prefix
            self.steps = torch.stack([fed + prefix + self.left_out, fed + prefix, fed + 1])  # for each code that is fed
        return drawn

    def allocate(self, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> KVCache:
        if self.place is None or rows > self.place.rows:
            self.forget()
            self.place, args = None, self.model.config
            length = self.rounded(args.cls_token_num + args.block_size)
            cache = super().allocate(rows, length, device, dtype)
            self.place = Place(cache, rows, length, args.block_size, args.vocab_size)
        cache = self.place.cache.view(batch=rows)
        for part in (*cache.keys, *cache.values):
            part.zero_()  # what is masked must still be a number
        return cache

    def look(self, codes: Tensor) -> Tensor:
        """Its result stands where the next one's will."""
        if self.draw is None:  # logits are wanted, as tests do
            return super().look(codes)
        place, (pictures, count) = self.place, codes.shape
        length, filters = self.rounded(self.filled + count), self.draw.filters
        place.codes[:pictures, :count] = codes
        first = self.filled - self.prefix
        place.steps[:, :count] = self.steps[:, first : first + count]
        key = (pictures, self.rows, count, length, self.keys is not None, filters)
        if key not in self.graphs:
            if len(self.graphs) >= self.GRAPHS:
                self.forget()
            self.graphs[key] = self.capture(self.whole_step(*key[:4]))
        self.graphs[key]()
        return place.drawn[:pictures, :count]

    def whole_step(self, pictures: int, rows: int, count: int, length: int) -> Callable[[], None]:
        """look() without a number that changes."""
        place, draw = self.place, self.draw
        cache, keys = place.cache.view(rows, length), None if self.keys is None else place.keys[:rows, ..., :length]
        positions, slots, numbers = place.steps[:, :count]
        for_head = self.for_head(numbers)

        def work() -> None:
            codes = place.codes[:pictures, :count].repeat(rows // pictures, 1)
            mask = hidden(slots, cache, keys)
            logits = self.model.decode(codes, positions, slots, cache, mask, self.block, for_head)
            place.drawn[:pictures, :count] = self.drawn(draw, logits, numbers)

        return work

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        """A call that does the same again. It holds `work`, and so all that the graph reads."""
        with CAPTURING, torch.cuda.device(self.place.keys.device):
            self.stream = self.stream or torch.cuda.Stream()
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                work()  # libraries set themselves up, kernels are compiled
            torch.cuda.current_stream().wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            try:  # the thread that decodes may go on meanwhile
                with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                    work()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise RuntimeError(f"--runner captured: a step cannot be captured here ({error}); take --runner eager"
                                   ) from error  # fmt: skip
        self.pool = self.pool or graph.pool()
        return partial(replay, graph, work)


def replay(graph: "torch.cuda.CUDAGraph", work: Callable[[], None]) -> None:
    graph.replay()


class CapturedCompiledRunner(CapturedRunner, CompiledRunner):
    """The same of compiled kernels, which are fewer: norms, rotation and activations are one with what they follow."""
