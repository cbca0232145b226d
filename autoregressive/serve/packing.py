"""What a request of vLLM carries beside its codes, as whole numbers: a class or a caption's length, and its guidance.

vLLM hands a model the ids and the positions of tokens, and nothing else of a request. So the id of the first token
holds them, and every later position holds the guidance above the position itself; that survives batching, chunks of a
prompt and preemption. Both are 31 bits wide.

Legend: N codes of a picture, P condition positions, n rows of a caption, n <= P.
"""

from dataclasses import dataclass
from functools import cached_property

from autoregressive.models.generate import Sampling

LIMIT = 2**31 - 1  # ids and positions are int32 somewhere on their way
STEPS = 100  # of guidance, in one: a scale has two decimals


@dataclass(frozen=True)
class Packing:
    """Of a model with these sizes. `classes` 0: captions are its condition."""

    codes: int  # N
    prefix: int  # P
    classes: int = 0

    @classmethod
    def of(cls, args, kind: str) -> "Packing":
        """args: of a GPT, or its config.json; kind: "c2i" or "t2i"."""
        return cls(args.block_size, args.cls_token_num, args.num_classes if kind == "c2i" else 0)

    @property
    def span(self) -> int:
        """Positions of a picture."""
        return self.prefix + self.codes

    @property
    def kinds(self) -> int:
        """What the first id tells apart beside the guidance: classes, or the lengths of a caption."""
        return self.classes or self.prefix + 1

    @cached_property
    def highest_scale(self) -> float:
        """The highest scale that fits."""
        return 1 + (LIMIT // max(self.span, self.kinds) // self.codes - 1) / STEPS

    def carried(self, sampling: Sampling) -> int:
        """Its guidance, as requests carry it. ValueError for what they cannot."""
        if sampling.guided and sampling.cfg_schedule != "constant":
            raise ValueError(f"--cfg-schedule {sampling.cfg_schedule}: served models guide constantly")
        return self.guidance(sampling.cfg_scale, sampling.cfg_interval)

    def guidance(self, scale: float, interval: float = -1) -> int:
        """A scale (1: none) and an interval k (codes 0 to k + 1 are guided; -1: all) as one number; ValueError for what
        it cannot hold."""
        if not 0 <= scale <= self.highest_scale:
            raise ValueError(f"--cfg-scale {scale}: served models take 0 to {self.highest_scale:g}")
        steps = round((scale - 1) * STEPS)
        if abs(steps - (scale - 1) * STEPS) > 1e-6:
            raise ValueError(f"--cfg-scale {scale}: served models take steps of {1 / STEPS}")
        guided = self.codes if interval <= -1 else min(self.codes, int(interval) + 2)
        return max(steps, 0) * self.codes + guided - 1  # at 1 and below: none

    def first_id(self, guidance: int, kind: int) -> int:
        """The id of a request's first token. kind: a label, or the rows of a caption."""
        assert 0 <= kind < self.kinds
        return guidance * self.kinds + kind

    def unpack(self, first_id: int) -> tuple[int, int]:
        """(guidance, kind)."""
        return divmod(first_id, self.kinds)

    def shift(self, first_id: int) -> int:
        """What is added to a token's place in its request: a caption ends where the codes begin, however short it is;
        above the position stands the guidance."""
        guidance, kind = self.unpack(first_id)
        return guidance * self.span + (0 if self.classes else self.prefix - kind)

    def strength(self, guidance, code):
        """(scale - 1) of the code that is chosen next, `code`; for ints or tensors of them."""
        steps, last = guidance // self.codes, guidance % self.codes
        return steps / STEPS * (code <= last)
