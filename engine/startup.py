"""What the processes of a run make sure of before the first step: that all of them were started alike."""

import hashlib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from engine.distributed import Context, setup
from engine.parts import local

# Nodes may keep copies of files in places of their own, whose contents are compared, and have other cores.
MAY_DIFFER = ("_path", "_dir", "_ckpt", "device", "num_workers")
VALUES = 4096  # of a tensor that are looked at


def join(options) -> Context:
    """Join the other processes as options.optim and options.run say; ValueError where they have other flags or another
    version of torch."""
    context = setup(options.optim.device, options.run.timeout_minutes)
    context.alike({"torch": torch.__version__, **flags_of(options)})
    return context


def flags_of(options) -> dict:
    """{"--lr": 0.1, ...} of dataclasses in dataclasses, without those that may differ."""
    found = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            found |= flags_of(value)
        elif not field.name.endswith(MAY_DIFFER):
            found[f"--{field.name.replace('_', '-')}"] = value
    return found


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A short hash of names, shapes and evenly spaced values; of sharded ones, of this process's part."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        values = local(tensor.detach()).flatten()
        values = values[:: max(1, values.numel() // VALUES)].cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
