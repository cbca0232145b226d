"""The training loss of section 2.2: cross-entropy of codes, from logits or from what comes before them.

Axes: B pictures, N codes of a picture, R rows (all codes of all pictures), D width, C codes in the vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PART = 2**25  # logits that there are at once: 128 MiB in float32


def code_loss(logits: Tensor, targets: Tensor, valid: Tensor | None) -> Tensor:
    """Mean cross-entropy, in float32, over the codes of the valid pictures; 0 where none is valid.

    logits [B, N, C], targets [B, N], valid [B] of 0 and 1 (None: all are).
    """
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")  # [R]
    if valid is None:
        return loss.mean()
    weights = weights_of(valid, targets)
    return (loss * weights).sum() / weights.sum().clamp(min=1)


def head_loss(h: Tensor, weight: Tensor, targets: Tensor, valid: Tensor | None) -> Tensor:
    """code_loss(h @ weight.T, targets, valid) without the logits of the whole batch, which for a large vocabulary and
    in float32 take more memory than a large model's block: they and their gradient are computed part by part.

    h [B, N, D], weight [C, D]. Differentiable once, by h and weight.
    """
    device = h.device.type
    if torch.is_autocast_enabled(device):
        h, weight = (each.to(torch.get_autocast_dtype(device)) for each in (h, weight))
    weights = None if valid is None else weights_of(valid, targets)
    count = targets.numel() if weights is None else weights.sum().clamp(min=1)
    return SummedHeadLoss.apply(h.flatten(0, 1), weight, targets.flatten(), weights) / count


def weights_of(valid: Tensor, targets: Tensor) -> Tensor:
    """float32 [R]: what each code's loss counts."""
    return valid.float()[:, None].expand_as(targets).flatten()


class SummedHeadLoss(torch.autograd.Function):
    """Cross-entropy of h @ weight.T, summed over rows; its gradient is computed beside it, while the logits of a part
    are there, and scaled when it is asked for. A sum, so that in float16 it is not too small to be held."""

    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        total = torch.zeros((), device=h.device)
        rows = max(1, PART // len(weight))
        learns = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        by_h = torch.empty_like(h) if learns else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if learns else None
        with torch.autocast(h.device.type, enabled=False):
            for part in map(slice, range(0, len(h), rows), range(rows, len(h) + rows, rows)):
                chosen = targets[part, None]
                logs = F.linear(h[part], weight).float().log_softmax(-1)  # [rows, C]
                losses = -logs.gather(1, chosen)
                total += (losses if weights is None else losses * weights[part, None]).sum()
                if learns:  # by logits: softmax, less 1 at the target
                    slope = logs.exp_().scatter_add_(1, chosen, -torch.ones_like(losses))
                    slope = (slope if weights is None else slope.mul_(weights[part, None])).to(h.dtype)
                    by_h[part] = slope @ weight
                    by_weight += slope.T @ h[part]
                    del slope
                del logs  # not beside the next part's
        if learns:
            ctx.save_for_backward(by_h, by_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor):
        by_h, by_weight = ctx.saved_tensors
        return by_h * scale, by_weight * scale, None, None
