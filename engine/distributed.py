"""Which process am I, on which device: torchrun, SLURM's srun, or this process alone; nccl on GPUs, gloo elsewhere."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

PRECISIONS = {"none": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """'auto': a CUDA GPU, else Apple's MPS, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices itself; emulated bf16 is slower than float32."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """'auto': bf16 where the device computes in it, else float32."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = device.type == "cpu" and cpu_has_bf16()
        name = "bf16" if fast else "none"
    if name not in PRECISIONS:
        raise ValueError(f"--precision {name}: choose auto or one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def setup(device: str = "auto", timeout_minutes: float = 30) -> Context:
    """Join the process group that torchrun or srun describes in the environment, or stand alone without any."""
    env = os.environ
    if "RANK" not in env and int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env:
        for name, source in (("RANK", "PROCID"), ("WORLD_SIZE", "NTASKS"), ("LOCAL_RANK", "LOCALID")):
            env[name] = env[f"SLURM_{source}"]
        if "MASTER_ADDR" not in env:
            raise ValueError("srun without MASTER_ADDR: export MASTER_ADDR=<first host> and MASTER_PORT=<free port>")
    rank, world = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
    chosen = pick_device(device, int(env.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=timedelta(minutes=timeout_minutes))
    return Context(rank, world, chosen)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
