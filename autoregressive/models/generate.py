"""The decode loop: codes one after another, each a function of those before it.

Axes: B pictures, N codes of a picture, P condition positions.
"""

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from .draw import Draw, Sampling
from .gpt import Transformer
from .mask import trimmed
from .runners import EagerRunner


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
    window: int = 1,
) -> Tensor:
    """Codes int64 [B, N] for conditions cond ([B] labels, or [B, P, caption_dim] features).

    pictures int64 [B]: each picture's number in the run, which with `seed` fixes its noise. valid bool [B, P]: caption
    rows that hold a token. on_code(i, out) is called when code i of `out` [B, N] has been chosen; it may raise to stop.
    negative: captions and valid, shaped like those, that guidance leads away from; None: 'no caption' (or class).
    known int64 [B, k]: codes 0 to k - 1, which stay as they are; the rest is drawn as it would be after them anyway.
    window: how many codes are looked at together, all but the first of them guesses; the codes are the same.
    """
    model, batch = runner.model, len(cond)
    first = 0 if known is None else known.shape[1]
    if first >= codes:
        raise ValueError(f"{first} of {codes} codes are known: nothing is left to be sampled")
    guided = sampling.guided_codes(codes)
    guided = guided if guided > first else 0  # known codes need no second branch
    out = torch.zeros(batch, codes, dtype=torch.int64, device=cond.device)
    if known is not None:
        out[:, :first] = known
    if guided:
        other, other_valid = negative or (model.null_condition(cond), valid)
        cond = torch.cat([cond, other])
        valid = None if valid is None else torch.cat([valid, other_valid])
        known = None if known is None else known.repeat(2, 1)
    if valid is not None:
        cond, valid = trimmed(cond, valid)
    draw = Draw(sampling, codes, seed, pictures.to(cond.device), model.config.vocab_size)
    try:
        out[:, first] = runner.start(cond, codes, valid, known, draw)
        ahead = window > 1
        rest = looking_ahead(runner, out, first, guided, window, draw) if ahead else one_by_one(runner, out, first)
        for right in chain([first], rest):
            if on_code is not None:
                on_code(right, out)
            if right + 1 == guided:
                runner.keep(batch)
    finally:
        runner.finish()
    return out


def one_by_one(runner: EagerRunner, out: Tensor, first: int) -> Iterator[int]:
    """Draw the codes after `first` of out [B, N] in turn: the number of each."""
    for i in range(first + 1, out.shape[1]):
        out[:, i] = runner.step(out[:, i - 1])
        yield i


def looking_ahead(runner: EagerRunner, out: Tensor, first: int, guided: int, window: int, draw: Draw) -> Iterator[int]:
    """The same codes in fewer steps, by Jacobi iteration (Song et al. 2021; Teng et al. 2024 accept by chance instead).

    With its noise fixed, a code is a function of those before it. So a step is fed the last right code and guesses of
    those after it, and what it draws is right up to the first guess that it contradicts, that one's successor included.
    What it draws beyond are the next guesses. Pictures go on together, with the slowest.
    """
    codes, guessed = out.shape[1], first
    while first + 1 < codes:
        count = min(window, (guided if first + 1 < guided else codes) - 1 - first)
        again = min(window - count, first)  # right codes are looked at once more, so that most looks have one shape
        if guessed + 1 < first + count:
            fresh = torch.arange(guessed + 1, first + count, device=out.device)
            out[:, fresh] = draw.guess(fresh)
        runner.accept(-again)
        drawn = runner.look(out[:, first - again : first + count])[:, again:]
        fed = out[:, first : first + count]
        right = 1 + int((fed[:, 1:] == drawn[:, :-1]).cumprod(1).sum(1).min())
        guessed = max(guessed, first + count)
        out[:, first + 1 : first + count + 1] = drawn
        runner.accept(again + right)
        yield from range(first + 1, first + right + 1)
        first += right


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
