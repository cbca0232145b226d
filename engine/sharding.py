"""Weights sharded over processes by FSDP2 (Zhao et al. 2023, Rajbhandari et al. 2020), put on from outside.

    fsdp    every process holds a part of weights, gradients and moments; a block is gathered while it computes
    sdp     as fsdp, but gathered weights stay from the forward to the backward pass (ZeRO stage 2)
    hsdp    as fsdp within a node, and every node holds all: between nodes travel gradients alone
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from engine.distributed import Context
from engine.parts import take
from engine.startup import fingerprint


def mesh_for(mode: str, context: Context) -> DeviceMesh:
    """All processes in a row; with hsdp a row for each node, which has as many as the launcher says."""
    if mode != "hsdp":
        return init_device_mesh(context.device.type, (context.world,))
    node, place = (int(os.environ.get(name, 0)) for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK"))
    first = context.share(node)
    uneven = node != first or not node or context.world % node > 0 or place != context.rank % node
    if context.any(uneven):  # all end: those that found nothing wrong would wait for the others
        raise ValueError(
            "--data-parallel hsdp: every node must have as many processes, numbered node by node. Process "
            f"{context.rank} of {context.world} is number {place} of {node} on its node, as LOCAL_RANK and "
            "LOCAL_WORLD_SIZE say, which torchrun sets; srun --ntasks-per-node=N --distribution=block starts such"
        )
    return init_device_mesh(context.device.type, (context.world // node, node), mesh_dim_names=("nodes", "shards"))


def shard(module: nn.Module, blocks: Iterable[nn.Module], mode: str, mesh: DeviceMesh, policy: MixedPrecisionPolicy,
          methods: Iterable[str] = ()) -> None:  # fmt: skip
    """Shard each block, and what is left of the module.

    methods: those beside forward that compute with weights, of blocks and of the module; they gather them as well.
    """
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=mode != "sdp")
        for method in methods:
            if hasattr(part, method):
                register_fsdp_forward_method(part, method)


@contextmanager
def unreduced(module: FSDPModule) -> Iterator[None]:
    """Gradients stay on their process: for all but the last of a step's micro-batches."""
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def materialize(module: nn.Module, device: torch.device, value: Callable[[str], Tensor]) -> str:
    """Memory for the parts of a module on the meta device, and what they start with: value(name), whole. The whole
    values' fingerprint."""
    module.to_empty(device=device)

    def taken() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in module.state_dict().items():
            whole = value(name)
            take(tensor, whole)
            yield name, whole

    return fingerprint(taken())
