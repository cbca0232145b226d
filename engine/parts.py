"""Tensors of which a process may hold a part alone (DTensor); plain ones are whole."""

import torch
from torch import Tensor


def is_part(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's part, in the same memory."""
    return tensor.to_local() if is_part(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All parts together; every process must ask."""
    return tensor.full_tensor() if is_part(tensor) else tensor


@torch.no_grad()
def take(own: Tensor, value: Tensor) -> None:
    """Copy, of a whole tensor that every process has, what `own` holds of it; or of another like `own`."""
    if is_part(own) and not is_part(value):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    local(own).copy_(local(value))
