"""How a module is spread over processes, put on from outside: single, DDP, or sharded."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from engine.distributed import Context, pick_precision
from engine.modes import on_meta
from engine.options import OptimOptions, ParallelOptions
from engine.parts import whole


class Parallel:
    """Builds modules as the flags spread them. One process has nothing to shard: there, all ways are the same."""

    def __init__(self, options: ParallelOptions, context: Context, optim: OptimOptions):
        self.options, self.context = options, context
        self.sharded = options.data_parallel != "ddp" and context.world > 1
        self.weights = pick_precision(optim.mixed_precision, context.device, "--mixed-precision")
        self.gradients = pick_precision(options.grad_precision or "fp32", context.device, "--grad-precision")
        self.compile = optim.compiles(context.device.type)
        self.origin = ""  # fingerprint of the whole weights that sharded ones are parts of
        self.mesh = None
        if self.sharded:
            from engine.sharding import mesh_for

            self.mesh = mesh_for(options.data_parallel, context)

    def writer(self, minutes: float):
        """Of checkpoints; None where one process writes the whole. minutes: that processes wait for one another."""
        if not self.sharded:
            return None
        from engine.sharded_checkpoint import ShardedWriter

        return ShardedWriter(self.context, self.options.async_ckpt, minutes)

    def place(self, build: Callable[[], nn.Module], blocks: str, value: str, methods: Iterable[str] = ()) -> nn.Module:
        """A module on this process's device.

        build: makes it; on the meta device where it is sharded. blocks: the name of the list of what is sharded,
        checkpointed and compiled one by one; value: that of the method which gives a weight's initial value by name;
        methods: those beside forward that compute with weights.
        """
        with on_meta() if self.sharded else nullcontext():
            module = build()
        parts = getattr(module, blocks)
        if self.options.activation_checkpointing:
            for block in parts:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if not self.sharded:
            return module.to(self.context.device)
        from torch.distributed.fsdp import MixedPrecisionPolicy

        from engine.sharding import materialize, shard

        if self.compile:
            for block in parts:
                block.compile()
        policy = MixedPrecisionPolicy(param_dtype=self.weights, reduce_dtype=self.gradients)
        shard(module, parts, self.options.data_parallel, self.mesh, policy, methods)
        self.origin = materialize(module, self.context.device, getattr(module, value))
        return module


def is_sharded(module: nn.Module) -> bool:
    return hasattr(module, "set_requires_gradient_sync")


def wrap(module: nn.Module, context: Context) -> nn.Module:
    """The module as a training step calls it: itself on one process or sharded, else with gradients averaged over
    ranks."""
    if context.world == 1 or is_sharded(module):
        return module
    devices = [context.device] if context.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices)


def unwrap(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def no_sync(module: nn.Module) -> AbstractContextManager:
    """Leave gradients on their rank: for all but the last of a step's micro-batches."""
    if is_sharded(module):
        from engine.sharding import unreduced

        return unreduced(module)
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def clip(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients to a global norm of at most max_norm (0: leave them); the norm before, of all parts."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))
    return whole(norm)
