"""What the processes of a run make sure of before the first step: that all of them were started alike."""

import hashlib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from engine.distributed import Context, setup
from engine.parts import local

MAY_DIFFER = ("device", "num_workers")
# Nodes may keep copies of files in places of their own; whether one is given is compared, and what was read from it.
PLACES = ("_path", "_dir", "_ckpt")
VALUES = 4096  # of a tensor that count by their places, too
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number


def join(options) -> Context:
    """Join the other processes as options.optim and options.run say; ValueError where they have other flags or another
    version of torch."""
    context = setup(options.optim.device, options.run.timeout_minutes)
    context.alike({"torch": torch.__version__, **flags_of(options)})
    return context


def flags_of(options) -> dict:
    """{"--lr": 0.1, ...} of dataclasses in dataclasses, without those that may differ; of a file's place, whether it
    is given."""
    found = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            found |= flags_of(value)
        elif field.name not in MAY_DIFFER:
            place = field.name.endswith(PLACES) and isinstance(value, str)
            found[f"--{field.name.replace('_', '-')}"] = "given" if place else value
    return found


def digest(value) -> str:
    """A short hash of what a value looks like."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A short hash of names and shapes, of all values' bits summed up (exact, in whatever order) and of evenly spaced
    values; of sharded tensors, of this process's part."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        values = local(tensor.detach()).flatten().contiguous()
        total = values.view(BITS[values.element_size()]).sum(dtype=torch.int64).item()
        some = values[:: max(1, values.numel() // VALUES)].cpu().contiguous()
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{total}".encode())
        found.update(some.view(torch.uint8).numpy())
    return found.hexdigest()[:16]
