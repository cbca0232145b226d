"""Sampling codes: guidance, filtering, choosing a code, the decode loop.

A code is the arg max of its filtered logits plus Gumbel noise, and the noise is a hash of (run seed, picture index,
position, code): drawn and stored nowhere, equal on every device. So a picture does not depend on its batch or on the
number of processes, and a sampled sequence is a fixed function of the weights.

Axes: B pictures, C codes in the vocabulary, N codes of a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from .gpt import Transformer
from .mask import trimmed
from .runners import EagerRunner

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    # Share of (scale - 1) at a point 0..1 of the sequence; the second argument is the power.
    "constant": lambda at, power: 1.0,
    "linear": lambda at, power: at,
    "power-cosine": lambda at, power: (1 - cos(pi * at**power)) / 2,  # Gao et al. 2023 (MDT), section 3.4
}


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn. `top_k` 0 and `top_p` 1 keep every code; `greedy` takes the most likely one."""

    cfg_scale: float = 1.0
    cfg_interval: float = -1
    cfg_schedule: str = "constant"
    cfg_power: float = 2.75
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False

    def __post_init__(self):
        if self.cfg_schedule not in SCHEDULES:
            raise ValueError(f"--cfg-schedule {self.cfg_schedule}: choose one of {', '.join(SCHEDULES)}")
        if self.temperature < 0:
            raise ValueError(f"--temperature {self.temperature}: must not be negative")
        if self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k}: must be 0 (keep every code) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p {self.top_p}: must be above 0 and at most 1 (keep every code)")

    @property
    def guided(self) -> bool:
        return self.cfg_scale > 1

    def guided_codes(self, codes: int) -> int:
        """How many codes of a picture use guidance: with an interval k > -1, codes 0 to k + 1 do."""
        if not self.guided:
            return 0
        return codes if self.cfg_interval <= -1 else min(codes, int(self.cfg_interval) + 2)

    def scale(self, position: int, codes: int) -> float:
        """Guidance scale of code `position` (0-based) of `codes`."""
        at = position / max(codes - 1, 1)
        return 1 + (self.cfg_scale - 1) * SCHEDULES[self.cfg_schedule](at, self.cfg_power)


def guide(logits: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): [2B, C], conditioned rows first -> [B, C]."""
    cond, none = logits.chunk(2)
    return none + scale * (cond - none)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits [B, C] with -inf for what top-k, then the nucleus (Holtzman et al. 2020), leaves out.

    top-k keeps every logit that is at least the k-th largest. The nucleus drops each code whose predecessors, in
    descending order, already hold more than top_p.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probs = ordered.softmax(-1)
        drop = probs.cumsum(-1) - probs > top_p
        logits = logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
    return logits


def mix(x: Tensor) -> Tensor:
    """A bijection of int32 that scatters its bits (C. Wellons's 'lowbias32'); products wrap, as hardware's do."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -2073254261  # 0x846ca68b
    return x ^ ((x >> 16) & 0xFFFF)


def gumbel_noise(seed: int, pictures: Tensor, position: int, vocabulary: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 [B, C], hashed from (seed, picture, position, code).

    pictures int64 [B], each at least 0; vocabulary int32 [C]: the codes. All integer arithmetic is exact, so that the
    noise differs between devices by the rounding of two logarithms at most.
    """
    key = torch.zeros_like(pictures, dtype=torch.int32)
    for word in (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, position):
        key = mix(key ^ (word - (1 << 32) if word >= 1 << 31 else word))
    low, high = (pictures & 0xFFFFFFFF), (pictures >> 32)
    for words in (low - ((low >> 31) << 32), high):
        key = mix(key ^ words.to(torch.int32))
    bits = mix(mix(vocabulary * -1640531527 ^ key[:, None]) + key[:, None])  # [B, C]
    # 31 bits, from the half-step on: fine near 0, where the largest noise comes from; never 0 and never 1.
    uniform = (((bits & 0x7FFFFFFF).float() + 0.5) * 2.0**-31).clamp(max=1 - 2.0**-24)
    # log1p(-uniform) by Kahan's identity: as exact, and PyTorch's own takes four times as long on a CPU.
    rest = 1 - uniform
    exponential = torch.where(rest == 1, uniform, -rest.log() * (uniform / (1 - rest)))
    return -exponential.log()


def choose(logits: Tensor, sampling: Sampling, noise: Callable[[], Tensor]) -> Tensor:
    """One code a picture, int64 [B], from guided float32 logits [B, C]; ties go to the lower code."""
    if sampling.greedy:
        return logits.argmax(-1)
    logits = filter_logits(logits / max(sampling.temperature, 1e-5), sampling.top_k, sampling.top_p)
    return (logits + noise()).argmax(-1)


@torch.inference_mode()
def decode_codes(
    runner: EagerRunner,
    cond: Tensor,
    codes: int,
    sampling: Sampling,
    seed: int,
    pictures: Tensor,
    valid: Tensor | None = None,
    on_code: Callable[[int, Tensor], None] | None = None,
    negative: tuple[Tensor, Tensor] | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """The decode loop: codes int64 [B, N] for conditions cond ([B] labels, or [B, P, caption_dim] features).

    pictures int64 [B]: each picture's number in the run, which with `seed` fixes its noise. valid bool [B, P]: caption
    rows that hold a token. on_code(i, out) is called when code i of `out` [B, N] has been chosen; it may raise to stop.
    negative: captions and valid, shaped like those, that guidance leads away from; None: 'no caption' (or class).
    known int64 [B, k]: codes 0 to k - 1, which stay as they are; the rest is drawn as it would be after them anyway.
    """
    model, batch = runner.model, len(cond)
    first = 0 if known is None else known.shape[1]
    if first >= codes:
        raise ValueError(f"{first} of {codes} codes are known: nothing is left to be sampled")
    guided = sampling.guided_codes(codes)
    guided = guided if guided > first else 0  # known codes need no second branch
    if guided:
        other, other_valid = negative or (model.null_condition(cond), valid)
        cond = torch.cat([cond, other])
        valid = None if valid is None else torch.cat([valid, other_valid])
        known = None if known is None else known.repeat(2, 1)
    if valid is not None:
        cond, valid = trimmed(cond, valid)
    vocabulary = torch.arange(model.config.vocab_size, dtype=torch.int32, device=cond.device)
    pictures = pictures.to(cond.device)
    out = torch.zeros(batch, codes, dtype=torch.int64, device=cond.device)
    if known is not None:
        out[:, :first] = known[:batch]
    try:
        logits = runner.start(cond, codes, valid, known).float()
        for i in range(first, codes):
            if i < guided:
                logits = guide(logits, sampling.scale(i, codes))
            code = choose(logits, sampling, lambda i=i: gumbel_noise(seed, pictures, i, vocabulary))
            out[:, i] = code
            if on_code is not None:
                on_code(i, out)
            if i + 1 == codes:
                break
            if i + 1 == guided:
                runner.keep(batch)
            logits = runner.step(code.repeat(2) if i + 1 < guided else code).float()
    finally:
        runner.finish()
    return out


def generate(
    model: Transformer,
    cond: Tensor,
    max_new_tokens: int,
    emb_masks: Tensor | None = None,
    cfg_scale: float = 1.0,
    cfg_interval: float = -1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    sample_logits: bool = True,
    seed: int | None = None,
) -> Tensor:
    """The published call: codes int32 [B, max_new_tokens] for class labels [B] or caption features [B, P, caption_dim].

    emb_masks [B, P] of 0 and 1 marks the caption rows that hold a token. Code 0 is predicted from the last row, so
    captions should stand at the right, as in the published samplers. sample_logits False takes the most likely code.
    Without `seed` one is drawn from torch's global generator.
    """
    sampling = Sampling(cfg_scale, cfg_interval, temperature=temperature, top_k=top_k, top_p=top_p,
                        greedy=not sample_logits)  # fmt: skip
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    valid = None if emb_masks is None else emb_masks.bool()
    training = model.training
    model.eval()
    try:
        codes = decode_codes(EagerRunner(model), cond, max_new_tokens, sampling, seed, torch.arange(len(cond)), valid)
    finally:
        model.train(training)
    return codes.to(torch.int32)
