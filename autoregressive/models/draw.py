"""From a GPT's states to codes: guidance, filtering, noise, the choice.

A code is the arg max of its filtered logits plus Gumbel noise, and the noise is a hash of (run seed, picture index,
position, code): drawn and stored nowhere, equal on every device. So a picture does not depend on its batch or on the
number of processes, and a sampled sequence is a fixed function of the weights.

Axes: B pictures, W codes side by side, C codes in the vocabulary, N codes of a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import cos, pi

import torch
from torch import Tensor

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

    @property
    def filters(self) -> tuple[int, bool, bool]:
        """What decides which operations draw a code; scale, temperature and top-p are but numbers in them."""
        return self.top_k, self.top_p < 1, self.greedy

    def guided_codes(self, codes: int) -> int:
        """How many codes of a picture use guidance: with an interval k > -1, codes 0 to k + 1 do."""
        if not self.guided:
            return 0
        return codes if self.cfg_interval <= -1 else min(codes, int(self.cfg_interval) + 2)

    def scale(self, position: int, codes: int) -> float:
        """Guidance scale of code `position` (0-based) of `codes`."""
        at = position / max(codes - 1, 1)
        return 1 + (self.cfg_scale - 1) * SCHEDULES[self.cfg_schedule](at, self.cfg_power)


def guide(both: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): [2B, ...], conditioned rows first -> [B, ...]."""
    cond, none = both.chunk(2)
    return none + scale * (cond - none)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float | Tensor = 1.0) -> Tensor:
    """Logits [..., C] with -inf for what top-k, then the nucleus (Holtzman et al. 2020), leaves out.

    top-k keeps every logit that is at least the k-th largest. The nucleus drops each code whose predecessors, in
    descending order, already hold more than top_p.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if isinstance(top_p, Tensor) or top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probs = ordered.softmax(-1)
        drop = probs.cumsum(-1) - probs > top_p
        logits = logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
    return logits


def fold_(x: Tensor, shift: int) -> Tensor:
    """x ^ (x >> shift) of unsigned 32 bits, in place, on int32."""
    return x.bitwise_xor_((x >> shift).bitwise_and_(0xFFFFFFFF >> shift))


def mix_(x: Tensor) -> Tensor:
    """A bijection of int32 that scatters its bits (C. Wellons's 'lowbias32'), in place; products wrap, as hardware's
    do."""
    x = fold_(x, 16).mul_(0x7FEB352D)
    x = fold_(x, 15).mul_(-2073254261)  # 0x846ca68b
    return fold_(x, 16)


def halves(words: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high 32 bits of int64, as int32."""
    low = words & 0xFFFFFFFF
    return (low - ((low >> 31) << 32)).to(torch.int32), (words >> 32).to(torch.int32)


def noise_keys(seed: int, pictures: Tensor, positions: Tensor) -> Tensor:
    """What fixes the noise of a picture's code, int32 [...]: a hash of (the seed's lowest 64 bits, picture, position).
    pictures int64, each at least 0, and positions int64 broadcast."""
    seed_words = torch.tensor(((seed & (1 << 64) - 1) ^ 1 << 63) - (1 << 63), device=pictures.device)
    key = torch.zeros((), dtype=torch.int32, device=pictures.device)
    for words in (*halves(seed_words), halves(positions)[0], *halves(pictures)):
        key = mix_(key ^ words)
    return key


def gumbel_noise(keys: Tensor, vocabulary: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 [..., C], hashed from noise_keys [...] and the codes, vocabulary int32 [C].

    All integer arithmetic is exact, so that the noise differs between devices by the rounding of two logarithms at
    most. In place as far as it goes: each step of it is as large as the logits.
    """
    keys = keys[..., None]
    bits = mix_(mix_(vocabulary * -1640531527 ^ keys).add_(keys))  # [..., C]
    # 31 bits, from the half-step on: fine near 0, where the largest noise comes from; never 0 and never 1.
    uniform = bits.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    # -log1p(-uniform) by Kahan's identity: as exact, and PyTorch's own takes four times as long on a CPU.
    rest = 1 - uniform
    exponential = torch.where(rest == 1, uniform, rest.log().neg_().mul_(uniform / (1 - rest)))
    return exponential.log_().neg_()


def choose(logits: Tensor, keys: Tensor, vocabulary: Tensor) -> Tensor:
    """One code, int64 [...], from filtered float32 logits [..., C] with the noise of `keys` [...]; of equals the lower.
    """
    return (logits + gumbel_noise(keys, vocabulary)).argmax(-1)


class Draw:
    """Draws the codes of given pictures from their logits. What changes from picture to picture, and from code to code,
    stands in tensors, so that a captured graph of it draws other pictures once they are copied in."""

    def __init__(self, sampling: Sampling, codes: int, seed: int, pictures: Tensor, vocab_size: int):
        """codes: N; pictures int64 [B], on the device: their numbers in the run, which fix the noise with `seed`."""
        device = pictures.device
        number = partial(torch.tensor, dtype=torch.float32, device=device)
        self.filters = sampling.filters
        self.keys = noise_keys(seed, pictures[:, None], torch.arange(codes, device=device))  # [B, N]
        self.scales = number([sampling.scale(i, codes) for i in range(codes)])  # [N]
        self.temperature, self.top_p = number(max(sampling.temperature, 1e-5)), number(sampling.top_p)
        self.vocabulary = torch.arange(vocab_size, dtype=torch.int32, device=device)

    def guided(self, states: Tensor, numbers: Tensor) -> Tensor:
        """Of states that the head is to read, [2B, W, D], the guided ones, [B, W, D].

        The head has no bias, so that its logits are linear in them and to guide either is the same but for rounding: it
        has half of the rows, and what it rounds is not multiplied by the scale afterwards.
        """
        return guide(states.float(), self.scales[numbers][:, None]).type_as(states)

    def __call__(self, logits: Tensor, numbers: Tensor, choose: Callable[..., Tensor] = choose) -> Tensor:
        """Codes int64 [B, W] with `numbers` (int64 [W]) from float32 logits [B, W, C]. choose: in choose()'s stead."""
        top_k, nucleus, greedy = self.filters
        if greedy:
            return logits.argmax(-1)
        logits = filter_logits(logits / self.temperature, top_k, self.top_p if nucleus else 1.0)
        return choose(logits, self.keys[:, numbers], self.vocabulary)

    def guess(self, numbers: Tensor) -> Tensor:
        """Codes int64 [B, W] that are drawn where nothing is known of the logits."""
        return gumbel_noise(self.keys[:, numbers], self.vocabulary).argmax(-1)
