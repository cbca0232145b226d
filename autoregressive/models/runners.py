"""The ways to run a step of a GPT. A runner owns its key/value cache and everything else that lives between steps.

`start` takes a batch of conditions, the codes that are known and a Draw, and returns what that draws of the next code's
logits; `step` takes the codes just drawn and returns the next ones; `look` does so for several guesses at once, of
which `accept` keeps the first; `keep` goes on with the first rows alone. The decode loop in generate.py knows nothing
else. Here are the eager runner and the compiled one; packed.py has the CPU's, captured.py the GPU's.

Axes: B pictures, R rows (guided: 2B, conditioned rows first), P condition positions, T cached positions, W codes that
are looked at together, D width of states, C codes in the vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .attend import multiplies_bf16
from .cache import KVCache
from .draw import Draw, choose
from .gpt import Transformer, run_block, unchanged
from .mask import key_mask, sequence_mask

ForHead = Callable[[Tensor], Tensor]  # the last states [R, W, D] -> those that the head reads, [B, W, D]


def drawn(draw: Draw | None, logits: Tensor, numbers: Tensor, choose: Callable[..., Tensor] = choose) -> Tensor:
    """Codes int64 [B, W] with `numbers`, int64 [W], of logits [B, W, C] in any precision; without a draw those, in
    float32."""
    return logits.float() if draw is None else draw(logits.float(), numbers, choose)


class EagerRunner:
    """Plain PyTorch: each step attends to the filled part of the cache and to nothing else."""

    def __init__(self, model: Transformer):
        self.model = model
        self.block, self.guide, self.drawn = run_block, Draw.guided, drawn
        self.cache = None
        self.keys: Tensor | None = None  # which cached positions may be attended to, bool [R, 1, 1, T]; None: all

    def another(self) -> "EagerRunner":
        """One more of the same model, to be used beside this one."""
        return type(self)(self.model)

    def start(self, cond: Tensor, codes: int, valid: Tensor | None = None, known: Tensor | None = None,
              draw: Draw | None = None) -> Tensor:  # fmt: skip
        """Draw the first code that is not known, of rows with conditions `cond`: int64 [B]. `codes`: how many a picture
        gets in all. valid bool [R, P]: rows that hold a token. known int64 [R, k], k < codes: codes 0 to k - 1; None:
        none. draw: of all steps; without one they return logits, float32 [R, C]."""
        args, prefix = self.model.config, 1 if cond.ndim == 1 else cond.shape[1]
        if not 1 <= codes <= args.block_size:
            raise ValueError(f"cannot decode {codes} codes: this GPT was built for 1 to {args.block_size} a picture")
        gain = self.model.norm.weight
        length = prefix + codes - 1  # the last code is never fed back
        self.rows, self.prefix, self.left_out, self.draw = len(cond), prefix, args.cls_token_num - prefix, draw
        self.filled = prefix + (0 if known is None else known.shape[1])
        self.numbers = torch.arange(length + self.left_out + 1, device=gain.device)
        self.cache = self.allocate(self.rows, self.rounded(length), gain.device, gain.dtype)
        self.keys = None if valid is None else key_mask(valid, length)
        mask = None if valid is None else sequence_mask(valid, self.filled)
        number = self.counted(self.filled - prefix)
        logits = self.model.prefill(cond, self.cache, mask, known, self.for_head(number))
        return self.drawn(draw, logits, number)[:, 0]

    def allocate(self, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> KVCache:
        args = self.model.config
        return KVCache.zeros(args.n_layer, (rows, args.n_kv_head, length, args.head_width), device, dtype)

    def rounded(self, length: int) -> int:
        """How many positions the cache has for so many."""
        return length

    def counted(self, first: int, count: int = 1) -> Tensor:
        """first, first + 1, ...: int64 [count], which stand on the device already."""
        return self.numbers[first : first + count]

    def step(self, codes: Tensor) -> Tensor:
        """Draw the code that follows `codes` [B], which are right: int64 [B]."""
        drawn = self.look(codes[:, None])[:, 0]
        self.accept(1)
        return drawn

    def look(self, codes: Tensor) -> Tensor:
        """Draw the codes that follow each of `codes` [B, W], if those before it are right: int64 [B, W]."""
        count = codes.shape[1]
        positions, slots = self.counted(self.filled + self.left_out, count), self.counted(self.filled, count)
        numbers = self.counted(self.filled - self.prefix + 1, count)
        logits = self.decode(codes.repeat(self.rows // len(codes), 1), positions, slots, self.for_head(numbers))
        return self.drawn(self.draw, logits, numbers)

    def accept(self, count: int) -> None:
        """The first `count` codes that were looked at are right; below 0: so many are to be looked at once more."""
        self.filled += count

    def for_head(self, numbers: Tensor) -> ForHead:
        """Guidance of codes with such numbers, if they are to be drawn."""
        guided = self.draw is not None and self.rows > len(self.draw.keys)
        return partial(self.guide, self.draw, numbers=numbers) if guided else unchanged

    def decode(self, codes: Tensor, positions: Tensor, slots: Tensor, for_head: ForHead) -> Tensor:
        """Logits [B, W, C] of codes [R, W]."""
        length = self.filled + codes.shape[1]
        cache, mask = self.cache.view(length=length), None if self.keys is None else self.keys[..., :length]
        if codes.shape[1] > 1:
            mask = hidden(slots, cache, mask)
        return self.model.decode(codes, positions, slots, cache, mask, self.block, for_head)

    def keep(self, rows: int) -> None:
        """Go on with the first `rows` rows: the second branch of guidance is over."""
        self.rows, self.cache = rows, self.cache.view(batch=rows)
        self.keys = None if self.keys is None else self.keys[:rows]

    def finish(self) -> None:
        """Give the cache back."""
        self.cache = self.keys = self.draw = None


class BucketRunner(EagerRunner):
    """Every step has the shape of its bucket: it reads the cache up to the next multiple, and masks what is not filled,
    so that few shapes have to be prepared."""

    BUCKET = 256  # positions

    def rounded(self, length: int) -> int:
        return -(-length // self.BUCKET) * self.BUCKET

    def decode(self, codes: Tensor, positions: Tensor, slots: Tensor, for_head: ForHead) -> Tensor:
        length = self.rounded(self.filled + codes.shape[1])
        keys = None if self.keys is None else self.keys[..., :length]
        if keys is not None:
            keys = torch.nn.functional.pad(keys, (0, length - keys.shape[-1]))
        cache = self.cache.view(length=length)
        return self.model.decode(codes, positions, slots, cache, hidden(slots, cache, keys), self.block, for_head)


def hidden(slots: Tensor, cache: KVCache, keys: Tensor | None) -> Tensor:
    """What hides the slots of a cache from the codes in `slots` [W] that stand before them: 0 or -inf, which is added
    to the scores once it is made, and not once a layer; [R or 1, 1, W, T]. keys bool [R, 1, 1, T]: not hidden."""
    first = cache.keys[0]
    mask = (torch.arange(first.shape[2], device=slots.device) <= slots[:, None])[None, None]
    mask = mask if keys is None else mask & keys
    return torch.zeros(mask.shape, dtype=first.dtype, device=slots.device).masked_fill_(~mask, float("-inf"))


class CompiledRunner(BucketRunner):
    """torch.compile of a block, once a bucket for all of them, of guidance, and of the choice of a code."""

    SHAPES = 256  # of buckets and batches; beyond torch's default of 8 steps would run plainly, without a word

    def __init__(self, model: Transformer):
        super().__init__(model)
        self.compile()

    def compile(self) -> None:
        torch.compiler.assume_constant_result(multiplies_bf16)  # no decorator there: it imports the compiler
        compiled = partial(torch.compile, dynamic=False, fullgraph=True)
        self.block, self.guide, self.drawn = compiled(run_block), compiled(Draw.guided), compiled(drawn)

    def start(self, *given, **more) -> Tensor:
        limits = torch._dynamo.config  # of this thread alone, in newer versions of torch: not to be set once for all
        limits.cache_size_limit = max(limits.cache_size_limit, self.SHAPES)
        return super().start(*given, **more)
