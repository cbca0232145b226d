"""How a module is spread over processes, put on from outside: single or DDP."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import Context


def wrap(module: nn.Module, context: Context) -> nn.Module:
    """The module as a training step calls it: itself on one process, else with gradients averaged over ranks."""
    if context.world == 1:
        return module
    devices = [context.device] if context.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices)


def unwrap(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def no_sync(module: nn.Module) -> AbstractContextManager:
    """Leave gradients on their rank: for all but the last of a step's micro-batches."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def clip(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients to a global norm of at most max_norm (0: leave them); the norm before."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))
