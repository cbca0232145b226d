"""Who may attend to whom: the one place that says so.

Attention is causal over [condition, codes]. Captions are padded to P positions, so a position may attend to caption
position j only if j holds a token; and always to itself, so that no row of the softmax is empty. A key of a condition
position is a zero vector and scores 0, which is not minus infinity: padding that is not masked would be attended to.
Condition positions carry no rotation either, so it does not matter how many stand before a caption: rows that no
caption of a batch uses may as well be left out, and a batch of captions of one length needs no mask at all.

Axes: B batch, P condition positions, T all positions.
"""

import torch
from torch import Tensor


def trimmed(captions: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
    """Captions [B, P, caption_dim] and valid bool [B, P] without the first rows that no caption uses, one row at least.

    valid becomes None where all rows that are left hold a token: attention is then plainly causal, for which there are
    faster kernels. Reads `valid` on the host.
    """
    used = valid.any(0).nonzero()
    first = min(int(used[0]), valid.shape[1] - 1) if len(used) else valid.shape[1] - 1
    captions, valid = captions[:, first:], valid[:, first:]
    return captions, None if bool(valid.all()) else valid


def sequence_mask(valid: Tensor, length: int) -> Tensor:
    """Bool [B, 1, length, length], true = may attend, for captions with valid bool [B, P] and P <= length."""
    allowed = key_mask(valid, length)[:, 0]  # [B, 1, T]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)
    return ((allowed & causal) | itself)[:, None]


def key_mask(valid: Tensor, length: int) -> Tensor:
    """Bool [B, 1, 1, length]: the positions that a code after all of them may attend to."""
    codes = valid.new_ones(valid.shape[0], length - valid.shape[1], dtype=torch.bool)
    return torch.cat([valid.bool(), codes], dim=1)[:, None, None]
