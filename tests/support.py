"""What several tests share: tiny filled models, and scripts run as one process or under torchrun."""

import os
import subprocess
import sys
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
    """One thread a process, this project first on the path, and no other launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "CUDA_VISIBLE_DEVICES": "",
    }


def command(script: str | Path, *arguments: str, ranks: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, str(script), *map(str, arguments)]


def run_script(script: str | Path, *arguments: str, ranks: int = 1, code: int | None = 0, timeout: float = 120):
    """Run a script to its end, on `ranks` gloo processes; `code`: the exit code that is expected (None: any)."""
    done = subprocess.run(command(script, *arguments, ranks=ranks), capture_output=True, text=True, timeout=timeout,
                          env=environment(), cwd=ROOT)  # fmt: skip
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
