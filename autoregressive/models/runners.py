"""The ways to run one step of a GPT. A runner owns its key/value cache and everything else that lives between steps.

`start` takes a batch of conditions and the codes that are known, and returns the logits of the code after them; `step`
takes the codes just chosen and returns the logits of the next; `keep` goes on with the first rows alone. The decode
loop in generate.py knows nothing else.

Axes: B batch (guided: 2 x pictures, conditioned rows first), P condition positions, T all positions, C vocabulary.
"""

import torch
from torch import Tensor

from .gpt import KVCache, Transformer
from .mask import key_mask, sequence_mask


class EagerRunner:
    """Plain PyTorch: each step attends to the filled part of the cache and to nothing else."""

    def __init__(self, model: Transformer):
        self.model = model
        self.cache: KVCache | None = None
        self.keys: Tensor | None = None  # which cached positions may be attended to, bool [B, 1, 1, T]; None: all

    def start(self, cond: Tensor, codes: int, valid: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """Logits [B, C] of the first code that is not known. `codes`: how many a picture gets in all. valid bool
        [B, P]: rows that hold a token. known int64 [B, k], k < codes: codes 0 to k - 1; None: none."""
        args, prefix = self.model.config, 1 if cond.ndim == 1 else cond.shape[1]
        if not 1 <= codes <= args.block_size:
            raise ValueError(f"cannot decode {codes} codes: this GPT was built for 1 to {args.block_size} a picture")
        weight = self.model.output.weight
        length = prefix + codes - 1  # the last code is never fed back
        self.cache = self.allocate(len(cond), length, weight.device, weight.dtype)
        self.filled, self.left_out = prefix + (0 if known is None else known.shape[1]), args.cls_token_num - prefix
        self.numbers = torch.arange(length + self.left_out, device=weight.device)
        self.keys = None if valid is None else key_mask(valid, length)
        mask = None if valid is None else sequence_mask(valid, self.filled)
        return self.model.prefill(cond, self.cache, mask, known)

    def allocate(self, batch: int, length: int, device, dtype) -> KVCache:
        return KVCache.zeros(self.model.config, batch, length, device, dtype)

    def step(self, codes: Tensor) -> Tensor:
        """Logits [B, C] of the code that follows `codes` [B]."""
        position, slot = (self.numbers[place : place + 1] for place in (self.filled + self.left_out, self.filled))
        self.filled += 1
        return self.decode(codes, position, slot)

    def decode(self, codes: Tensor, position: Tensor, slot: Tensor) -> Tensor:
        mask = None if self.keys is None else self.keys[..., : self.filled]
        return self.model.decode_one(codes, position, slot, self.cache.view(length=self.filled), mask)

    def keep(self, rows: int) -> None:
        """Go on with the first `rows` rows: the second branch of guidance is over."""
        self.cache = self.cache.view(batch=rows)
        self.keys = None if self.keys is None else self.keys[:rows]

    def finish(self) -> None:
        """Give the cache back."""
        self.cache = self.keys = None


class CompiledRunner(EagerRunner):
    """torch.compile of the step: every step has the shape of its bucket, so that it is compiled once per bucket."""

    BUCKET = 256  # positions; a step reads the cache up to the next multiple and masks what is not filled
    SHAPES = 64  # of buckets and batches; beyond torch's default of 8 steps would run plainly, without a word

    def __init__(self, model: Transformer):
        super().__init__(model)
        self.compiled = torch.compile(model.decode_one, dynamic=False)

    def start(self, cond: Tensor, codes: int, valid: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        limits = torch._dynamo.config  # of this thread alone, in newer versions of torch: not to be set once for all
        limits.cache_size_limit = max(limits.cache_size_limit, self.SHAPES)
        return super().start(cond, codes, valid, known)

    def allocate(self, batch: int, length: int, device, dtype) -> KVCache:
        return super().allocate(batch, -(-length // self.BUCKET) * self.BUCKET, device, dtype)

    def decode(self, codes: Tensor, position: Tensor, slot: Tensor) -> Tensor:
        length = -(-self.filled // self.BUCKET) * self.BUCKET
        mask = (torch.arange(length, device=codes.device) <= slot)[None, None, None]
        if self.keys is not None:
            keys = self.keys[..., :length]
            mask = mask & torch.nn.functional.pad(keys, (0, length - keys.shape[-1]))
        return self.compiled(codes, position, slot, self.cache.view(length=length), mask)


RUNNERS = {"eager": EagerRunner, "compiled": CompiledRunner}


def make_runner(name: str, model: Transformer) -> EagerRunner:
    if name not in RUNNERS:
        raise ValueError(f"--runner {name}: choose one of {', '.join(RUNNERS)}")
    return RUNNERS[name](model)
