"""Attention by whatever computes it fastest where it runs.

Axes: B batch, H query heads, G key/value heads, T queries, S keys, K head width.
"""

from itertools import repeat
from platform import machine

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIPLES = {"cuda": 8}  # by the kind of device
FEW = 16  # queries up to which plain products are faster than the fused kernel where nothing is learnt
WIDE = 2**22  # numbers of a cache that are converted at once; the next ones then take the same memory, not new
SHORT = 256  # queries up to which, on a CPU, plain products train faster than the fused kernel


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float = 0.0) -> Tensor:
    """Softmax of q [B, H, T, K] over k and v [B, G, S, K]: [B, H, T, K].

    mask [B or 1, 1, T, S]: bool, true = may attend, or of k's type, added to the scores. causal: what stands behind may
    not, and there is no mask. k and v may be wider than q by columns of 0.
    """
    learns, width = torch.is_grad_enabled() and q.requires_grad, q.shape[-1]
    scale = width**-0.5
    q = widened(q, k.shape[-1])
    if q.is_cpu and not dropout:
        if not learns and (q.shape[2] == 1 or q.shape[2] <= FEW and not causal):
            return attend_few(q, k, v, mask, scale)[..., :width]
        if q.shape[2] <= SHORT and learns and q.shape[1] == k.shape[1]:
            return attend_short(q, k, v, mask, causal)
    if learns:
        v = v.contiguous()  # a view would keep the product it is a part of, queries and keys included, until backward
    out = F.scaled_dot_product_attention(q.type_as(k), k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout,
                                         scale=scale, enable_gqa=q.shape[1] != k.shape[1])  # fmt: skip
    return out[..., :width]


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies matrices in `dtype` here; it plays bf16 on many processors that have it not."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def multiplies_bf16() -> bool:
    """Whether this processor does so itself."""
    native = machine() not in ("x86_64", "AMD64") or torch.cpu._is_avx512_bf16_supported()
    return native and has_kernels(torch.bfloat16)


def width_in_memory(width: int, device: torch.device) -> int:
    """The head width of caches: fused attention on GPUs wants MULTIPLES of 8, and GPT-3B's heads have 100."""
    multiple = MULTIPLES.get(device.type, 1)
    return -(-width // multiple) * multiple


def widened(x: Tensor, width: int) -> Tensor:
    """x [..., K] with columns of 0 up to `width`; they change no score."""
    return F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x


def attend_few(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Few queries a head, by two batched products and a softmax in float32: the fused kernel takes 2 to 4 times as long
    for one in bf16.

    In bf16 themselves where the processor multiplies it, and keys and values have no gaps: a product with gaps copies
    them, and one is built for each length that there is. Scores are then rounded, as in transformers' eager attention.
    """
    native = k.dtype == torch.bfloat16 and k.is_contiguous() and multiplies_bf16()
    if k.dtype != torch.float32 and not native:
        at_once = max(1, WIDE // k[0].numel())
        masks = repeat(mask) if mask is None or len(mask) == 1 else mask.split(at_once)
        parts = zip(q.split(at_once), k.split(at_once), v.split(at_once), masks)
        return torch.cat([attend_few(q, k.float(), v.float(), mask, scale) for q, k, v, mask in parts])
    groups = (q.float() * scale).type_as(k).reshape(q.shape[0], k.shape[1], -1, q.shape[-1])  # [B, G, H/G * T, K]
    scores = (groups @ k.mT).view(*q.shape[:3], -1)  # [B, H, T, S]
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill_(~mask, float("-inf"))
    elif mask is not None:
        scores = scores.add_(mask)
    out = scores.softmax(-1, dtype=torch.float32).type_as(v).view(*groups.shape[:3], -1) @ v  # [B, G, H/G * T, K]
    return out.view(q.shape).type_as(q)


def attend_short(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """As many key as query heads: two batched products, forward and backward; the fused kernel's backward pass takes 2
    to 5 times as long in bf16."""
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril() if causal else mask
    bias = q.new_zeros(()) if allowed is None else torch.where(allowed, 0.0, float("-inf")).type_as(q)
    bias = bias.expand(*q.shape[:3], k.shape[2]).flatten(0, 1)  # [B * H, T, S]
    q, k, rows = (q * q.shape[-1] ** -0.5).flatten(0, 1), k.flatten(0, 1), q.shape[0]
    return (torch.baddbmm(bias, q, k.mT).softmax(-1) @ v.flatten(0, 1)).unflatten(0, (rows, -1))
