"""Which process am I, on which device: torchrun, SLURM's srun, or this process alone; nccl on GPUs, gloo elsewhere."""

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist

from engine.slurm import names_of_torchrun

Value = TypeVar("Value")
PRECISIONS = {"none": torch.float32, "fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16,
              "bf16": torch.bfloat16}  # fmt: skip
# Dense bf16 rates without sparsity, in FLOP/s, of the vendor's data sheets; the first name found in the card's counts.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "A10G": 70e12}


@dataclass(frozen=True)
class Context:
    """This process among all of them."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over ranks of each figure; all ranks pass the same names."""
        if self.world == 1 or not values:
            return values
        packed = torch.tensor(list(values.values()), dtype=torch.float32, device=self.device)
        dist.all_reduce(packed)
        return dict(zip(values, (packed / self.world).tolist()))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        if self.world == 1:
            return flag
        packed = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(packed, op=dist.ReduceOp.MAX)
        return bool(packed)

    def share(self, value):
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def on_main(self, work: Callable[[], Value]) -> Value:
        """What `work` gives on rank 0, on every rank; it is pickled. If it fails there all end, so that none waits for
        a rank that is gone: rank 0 with the error, the others without a word."""
        if self.world == 1:
            return work()
        value = failure = None
        if self.is_main:
            try:
                value = work()
            except Exception as error:
                failure = error
        failed, value = self.share((failure is not None, value))
        if failed:
            raise failure or SystemExit(2)
        return value

    def alike(self, facts: dict) -> None:
        """ValueError on every rank where they were not started alike: which rank has what else than rank 0.

        facts: what all should have in common, by the names that a user knows it by.
        """
        if self.world == 1:
            return
        every: list[dict] = [{}] * self.world
        dist.all_gather_object(every, facts)
        found = []
        for name in dict.fromkeys(name for each in every for name in each):
            values = [repr(each.get(name)) for each in every]
            others = [rank for rank, value in enumerate(values) if value != values[0]]
            if others:
                found.append(f"{name} is {shown(values[others[0]])} on rank {listed(others)}, {shown(values[0])} on 0")
        if found:
            raise ValueError(f"the {self.world} processes were not started alike: {'; '.join(found[:5])}. Give all of "
                             "them the same command, files and versions")  # fmt: skip

    def gather(self, value) -> list:
        """Every rank's value, in their order, on rank 0; nothing elsewhere."""
        if self.world == 1:
            return [value]
        boxes = [None] * self.world if self.is_main else None
        dist.gather_object(value, boxes, dst=0)
        return boxes or []


def shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def pick_device(name: str = "auto", local_rank: int = 0, world: int = 1) -> torch.device:
    """'auto': a CUDA GPU, else Apple's MPS (for one process: it has no collectives), else the CPU."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps and world == 1 else "cpu"
    there = {"cuda": cuda, "mps": mps, "cpu": True}
    kind = name.partition(":")[0]
    if not there.get(kind):
        choices = ", ".join(device for device, usable in there.items() if usable)
        problem = "not on this machine" if kind in there else "unknown"
        raise ValueError(f"--device {name}: {problem}; choose auto, {choices}")
    if name == "cuda":
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device(name)


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices itself; emulated bf16 is slower than float32."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def pick_precision(name: str, device: torch.device, flag: str = "--precision") -> torch.dtype:
    """'auto': bf16 where the device computes in it, else float32. tf32 is float32 whose matrix products torch may
    round from now on. `flag`: what a wrong name is blamed on."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = device.type == "cpu" and cpu_has_bf16()
        name = "bf16" if fast else "none"
    if name not in PRECISIONS:
        raise ValueError(f"{flag} {name}: choose auto or one of {', '.join(PRECISIONS)}")
    if name == "tf32":
        torch.set_float32_matmul_precision("high")
    return PRECISIONS[name]


def peak_flops(device: torch.device) -> float:
    """The card's dense bf16 rate in FLOP/s, 0 if unknown."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((rate for card, rate in PEAK_FLOPS.items() if card in name), 0.0)


def setup(device: str = "auto", timeout_minutes: float = 30) -> Context:
    """Join the process group that torchrun or srun describes in the environment, or stand alone without any."""
    env = os.environ
    if "RANK" not in env:
        env.update(names_of_torchrun(env))
    rank, world = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
    chosen = pick_device(device, int(env.get("LOCAL_RANK", 0)), world)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        timeout = timedelta(minutes=timeout_minutes)
        store, rank, world = next(dist.rendezvous("env://", rank, world, timeout=timeout))
        store = fresh_store(store, rank, world, 60 * timeout_minutes)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    return Context(rank, world, chosen)


def fresh_store(store: dist.Store, rank: int, world: int, seconds: float) -> dist.Store:
    """A part of the launcher's store that no process has used which is gone.

    torchrun's store outlives the processes that it starts again, and with it the addresses of the dead, which the
    living would connect to. So rank 0 invites every process by a name that it made up to a place that is new.
    """
    own = uuid4().hex
    if rank:
        store.set(f"here {rank}", own)
        try:
            place = store.get(f"invited {own}").decode()
        except RuntimeError as error:
            raise OSError(f"process 0 of {world} did not come ({error})") from error
        store.set(f"{place} {rank}", "")
        return dist.PrefixStore(place, store)
    awaited, deadline = list(range(1, world)), time.monotonic() + seconds
    while awaited:
        if time.monotonic() > deadline:
            raise OSError(f"of {world} processes {len(awaited)} did not come within {seconds:.0f} s: {awaited[:8]}")
        for other in awaited:
            if store.check([f"here {other}"]):  # perhaps a dead one's name; then the living one's comes later
                store.set(f"invited {store.get(f'here {other}').decode()}", own)
        time.sleep(0.01)
        awaited = [other for other in awaited if not store.check([f"{own} {other}"])]
    return dist.PrefixStore(own, store)


def leave() -> None:
    """Leave the process group, if there is one.

    What still holds it in a circle of references is freed first: a gloo thread that outlives the interpreter aborts the
    process, a finished run with it.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
