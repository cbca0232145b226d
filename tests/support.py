"""What several tests share: tiny filled models, and scripts run as one process or as several."""

import os
import random
import resource
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import chain
from multiprocessing import get_context
from multiprocessing.context import BaseContext
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


@cache
def forks() -> BaseContext:
    """Of processes that have imported torch, which is most of what a script on a tiny model takes time for. They have
    the same seed of hashes, and no interpreter ends in them: what depends on that is tested where torchrun, or
    `subprocess`, starts one. (On macOS a process that imported as much is not to be forked.)"""
    context = get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["torch._dynamo", "torch.distributed.checkpoint"])
    return context


def become(line: list[str], told: dict[str, str], limit: tuple[int, int], said: list[str]) -> None:
    """What such a process does: it runs `line`, a script and its arguments, in the environment `told`, with `limit` to
    the size of files; its output and errors go to the files `said`."""
    for number, path in zip((1, 2), said):
        with open(path, "w") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(told)
    os.chdir(ROOT)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    sys.path[:0], sys.argv = [str(Path(line[0]).parent)], line
    runpy.run_path(line[0], run_name="__main__")


def spawn(line: list[str], told: list[dict[str, str]], timeout: float) -> subprocess.CompletedProcess:
    """A process for each of `told`'s environments, to their ends. What they said stands one rank after the other; the
    exit code is that of the first one that failed: the others are killed, if they do not end soon, too."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)  # they are forked from a process that has another
    with tempfile.TemporaryDirectory() as folder:
        files = [[f"{folder}/{rank}.{what}" for what in ("out", "err")] for rank in range(len(told))]
        for path in chain(*files):
            Path(path).touch()
        running = []
        code, deadline = 0, time.monotonic() + timeout
        try:
            for each, said in zip(told, files):
                process = forks().Process(target=become, args=(line, {**environment(), **each}, limit, said))
                process.start()
                running.append(process)
            while None in (ends := [each.exitcode for each in running]) and time.monotonic() < deadline:
                if not code and (code := next((end for end in ends if end), 0)):
                    deadline = min(deadline, time.monotonic() + 10)
                time.sleep(0.02)
        finally:
            for each in running:
                each.kill()
                each.join()
        code = code or next((end for end in ends if end), 0)
        out, err = ("".join(Path(said).read_text() for said in kind) for kind in zip(*files))
    if not code and None in ends:
        raise TimeoutError(f"not done in {timeout} s\n{out}\n{err}")
    return subprocess.CompletedProcess(line, code, out, err)


def run_script(script: str | Path, *arguments: str, ranks: int = 1, code: int | None = 0, timeout: float = 120,
               launcher: Callable[..., dict] | str = as_torchrun, node: int | None = None):  # fmt: skip
    """Run a script to its end, on `ranks` gloo processes; `code`: the exit code that is expected (None: any).

    launcher: what tells the processes who they are; "torchrun" itself takes some seconds more, and ends with 1 where
    one of them fails. node: so many of them are a node (default: all).
    """
    if launcher == "torchrun":
        done = subprocess.run(command(script, *arguments, ranks=ranks), capture_output=True, text=True, timeout=timeout,
                              env=environment(), cwd=ROOT)  # fmt: skip
    else:
        port = free_port()
        told = [launcher(rank, ranks, node or ranks, port) for rank in range(ranks)] if ranks > 1 else [{}]
        done = spawn([str(script), *map(str, arguments)], told, timeout)
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
