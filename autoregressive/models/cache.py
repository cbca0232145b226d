"""Keys and values of the positions that a GPT has read, for those that follow.

Axes: L layers, B batch, G key/value heads, T positions, K head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .attend import width_in_memory


class KVCache(NamedTuple):
    """L tensors [B, G, T, K] each. Slicing T or B gives a view that shares memory.

    Each has memory of its own: where they are parts of one, a compiled step that writes to a layer copies all of them.
    K is the head's width, filled up with 0 where attend.py wants that.
    """

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def zeros(cls, layers: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> "KVCache":
        """shape: B, G, T and the head's width."""
        shape = (*shape[:3], width_in_memory(shape[3], device))
        return cls(*([torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)] for _ in range(2)))

    def view(self, batch: int | None = None, length: int | None = None) -> "KVCache":
        """The first `batch` rows and the first `length` positions."""
        return KVCache(*([layer[:batch, :, :length] for layer in part] for part in self))
