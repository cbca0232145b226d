"""What several tests share: tiny filled models, and scripts run as one process or as several."""

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import nn

from golden.fill import fill

ROOT = Path(__file__).resolve().parents[1]


def filled(module: nn.Module) -> nn.Module:
    """The module in eval mode with golden/fill.py's weights; one on the meta device becomes real."""
    state = {name: torch.from_numpy(fill(name, tuple(value.shape))) for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def environment() -> dict[str, str]:
    """One thread a process, this project first on the path, and no launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items()
            if name not in launcher and not name.startswith(("SLURM_", "TORCHELASTIC_"))}  # fmt: skip
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "CUDA_VISIBLE_DEVICES": "",
    }


def command(script: str | Path, *arguments: str, ranks: int = 1) -> list[str]:
    """Under torchrun, where there are several ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, str(script), *map(str, arguments)]


def as_torchrun(rank: int, ranks: int, node: int, port: int) -> dict[str, str]:
    """What torchrun tells a process of nodes with `node` processes each."""
    return {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank % node), "LOCAL_WORLD_SIZE": str(node),
            "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}  # fmt: skip


def as_srun(rank: int, ranks: int, node: int, port: int) -> dict[str, str]:
    """What srun tells it; the nodes are this machine."""
    return {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(ranks), "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % node), "SLURM_NODEID": str(rank // node), "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": f"{node}(x{ranks // node})", "MASTER_PORT": str(port)}  # fmt: skip


def free_port() -> int:
    """Below those that the system gives away to whoever connects, other tests among them."""
    while True:
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("localhost", port := random.SystemRandom().randrange(20_000, 32_000)))
            return port


def spawn(line: list[str], told: list[dict[str, str]], timeout: float) -> subprocess.CompletedProcess:
    """A process for each of `told`'s environments, to their ends. What they said stands one rank after the other; the
    exit code is that of the first one that failed: the others are killed, if they do not end soon, too."""
    with ExitStack() as opened:
        files = [opened.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2 * len(told))]
        running = [subprocess.Popen(line, env={**environment(), **each}, cwd=ROOT, stdout=out, stderr=err)
                   for each, out, err in zip(told, files[::2], files[1::2])]  # fmt: skip
        code, deadline = 0, time.monotonic() + timeout
        try:
            while None in (ends := [each.poll() for each in running]) and time.monotonic() < deadline:
                if not code and (code := next((end for end in ends if end), 0)):
                    deadline = min(deadline, time.monotonic() + 10)
                time.sleep(0.02)
        finally:
            for each in running:
                each.kill()
                each.wait()
        code = code or next((end for end in ends if end), 0)
        said = []
        for file in files:
            file.seek(0)
            said.append(file.read())
    out, err = "".join(said[::2]), "".join(said[1::2])
    if not code and None in ends:
        raise TimeoutError(f"not done in {timeout} s\n{out}\n{err}")
    return subprocess.CompletedProcess(line, code, out, err)


def run_script(script: str | Path, *arguments: str, ranks: int = 1, code: int | None = 0, timeout: float = 120,
               launcher: Callable[..., dict] | str = as_torchrun, node: int | None = None):  # fmt: skip
    """Run a script to its end, on `ranks` gloo processes; `code`: the exit code that is expected (None: any).

    launcher: what tells the processes who they are; "torchrun" itself takes some seconds more, and ends with 1 where
    one of them fails. node: so many of them are a node (default: all).
    """
    if ranks == 1 or launcher == "torchrun":
        done = subprocess.run(command(script, *arguments, ranks=ranks), capture_output=True, text=True, timeout=timeout,
                              env=environment(), cwd=ROOT)  # fmt: skip
    else:
        port = free_port()
        told = [launcher(rank, ranks, node or ranks, port) for rank in range(ranks)]
        done = spawn(command(script, *arguments), told, timeout)
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
