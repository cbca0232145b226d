"""Which process am I, on which device: torchrun, SLURM's srun, or this process alone; nccl on GPUs, gloo elsewhere."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

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

    def gather(self, value) -> list:
        """Every rank's value, in their order, on rank 0; nothing elsewhere."""
        if self.world == 1:
            return [value]
        boxes = [None] * self.world if self.is_main else None
        dist.gather_object(value, boxes, dst=0)
        return boxes or []


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
    # Of the step, not of the job: a plain command in an sbatch script is alone, whatever the job asked for.
    if "RANK" not in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        for name, source in (("RANK", "PROCID"), ("WORLD_SIZE", "STEP_NUM_TASKS"), ("LOCAL_RANK", "LOCALID")):
            env[name] = env[f"SLURM_{source}"]
        if "MASTER_ADDR" not in env:
            raise ValueError("srun without MASTER_ADDR: export MASTER_ADDR=<first host> and MASTER_PORT=<free port>")
    rank, world = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
    chosen = pick_device(device, int(env.get("LOCAL_RANK", 0)), world)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=timedelta(minutes=timeout_minutes))
    return Context(rank, world, chosen)


def leave() -> None:
    """Leave the process group, if there is one.

    What still holds it in a circle of references is freed first: a gloo thread that outlives the interpreter aborts the
    process, a finished run with it.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
