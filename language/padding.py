"""The one place of padding: captions of a batch stand at its right end, next to the codes that follow them.

Axes: B captions, L positions, D width of a feature.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_left(features: Sequence[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Sequences [n, D] (or tokens [n]) -> [B, L, D] ([B, L]) with zeros on the left, and valid bool [B, L].

    L: `length`, or that of the longest, at least 1, so that a batch of nothing but empty captions has a position.
    """
    longest = max((len(each) for each in features), default=0)
    length = max(1, longest) if length is None else length
    if longest > length:
        raise ValueError(f"a caption of {longest} tokens does not fit into {length}; encode it with that limit")
    padded = features[0].new_zeros(len(features), length, *features[0].shape[1:])
    valid = torch.zeros(len(features), length, dtype=torch.bool, device=padded.device)
    for row, each in enumerate(features):
        padded[row, length - len(each) :] = each
        valid[row, length - len(each) :] = True
    return padded, valid


def pad_right(features: Sequence[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """The same with zeros on the right, as the published encoder gives them."""
    padded, valid = pad_left([each.flip(0) for each in features], length)
    return padded.flip(1), valid.flip(1)


def to_left(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, L, D] and their mask [B, L] (true or not 0: valid), padded anywhere -> padded on the left.

    Valid positions keep their order; so do the others, as the published samplers do. Left-padded ones stay as they are.
    """
    order = mask.bool().to(torch.uint8).argsort(dim=1, stable=True)  # [B, L]
    moved = features.gather(1, order.reshape(*order.shape, *[1] * (features.dim() - 2)).expand_as(features))
    return moved, mask.gather(1, order)
