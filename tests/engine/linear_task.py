"""A tiny task for the trainer's tests: regression by one hidden layer, as a script with flags.

python3 tests/engine/linear_task.py --results-dir DIR --run-name NAME --max-steps 12 --die-at 7
"""

import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from dataset.loading import Feed
from engine.config import run
from engine.distributed import Context, leave
from engine.optim import adamw
from engine.options import OptimOptions, RunOptions
from engine.run import Run
from engine.startup import join
from engine.trainer import Phase, Trainer


@dataclass
class Extra:
    dropout: float = 0.0
    workers: int = 0
    count: int = 40
    """Samples: with a batch of 8, five steps are an epoch."""
    spoil_at: int = -1
    """The loss of this step is not a number, on the last of the processes."""
    kill_at: int = -1
    """Send this process SIGTERM in this step."""
    hang_at: int = -1
    """Stand still in this step, on the last of the processes."""
    hang_validating: bool = False
    """The same in a validation."""


@dataclass
class LinearOptions:
    optim: OptimOptions = field(
        default_factory=lambda: OptimOptions(
            lr=1e-2, global_batch_size=8, mixed_precision="none", device="cpu", max_steps=12
        )
    )
    run: RunOptions = field(default_factory=lambda: RunOptions(log_every=1, ckpt_every=1000))
    extra: Extra = field(default_factory=Extra)


def options_in(folder: Path, **changed) -> LinearOptions:
    """The test's defaults in `folder`; `changed` are fields of any of its parts."""
    base = LinearOptions()
    changed = {"results_dir": str(folder), "run_name": "run", **changed}
    parts = {name: getattr(base, name) for name in ("optim", "run", "extra")}
    for field_name, value in changed.items():
        owner = next(name for name, part in parts.items() if hasattr(part, field_name))
        parts[owner] = replace(parts[owner], **{field_name: value})
    return LinearOptions(**parts)


class Lines(Dataset):
    """x float32 [4], y float32 [1] of a fixed linear law with noise."""

    collate = staticmethod(default_collate)

    def __init__(self, count: int):
        generator = np.random.default_rng(0)
        self.x = generator.standard_normal((count, 4)).astype(np.float32)
        self.y = (self.x.sum(1, keepdims=True) + 0.1 * generator.standard_normal((count, 1))).astype(np.float32)

    def __getitem__(self, key):
        _, sample = key
        return {
            "x": torch.from_numpy(self.x[sample]),
            "y": torch.from_numpy(self.y[sample]),
            "index": torch.tensor(sample),
        }

    def __len__(self):
        return len(self.x)


def is_last() -> bool:
    return int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1


class LinearTask:
    unit, units, flops = "lines", 1, 0.0

    def __init__(self, extra: Extra, optim: OptimOptions):
        torch.manual_seed(optim.global_seed)
        self.extra = extra
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(extra.dropout), nn.Linear(8, 1))
        optimizer = adamw(self.model, optim.lr, (optim.beta1, optim.beta2), optim.weight_decay)
        self.phases = [Phase("model", self.model, optimizer, self.loss)]
        self.seen: list[list[int]] = []

    def meta(self) -> dict:
        return {"format": 1, "kind": "linear", "model": "Linear"}

    def loss(self, module: nn.Module, batch: dict, step: int):
        self.seen.append(batch["index"].tolist())
        if step == self.extra.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == self.extra.hang_at and is_last():
            time.sleep(600)
        error = module(batch["x"]) - batch["y"]
        scale = float("nan") if step == self.extra.spoil_at and is_last() else 1.0
        return scale * error.square().mean(), {"abs_error": error.detach().abs().mean()}

    def validate(self) -> dict:
        if self.extra.hang_validating and is_last():
            time.sleep(600)
        return {}

    def preview(self, path: Path) -> None:
        pass

    def at_end(self) -> str:
        return "that was all"

    def after_step(self, step: int) -> None:
        return None


def build(options: LinearOptions, context: Context | None = None) -> Trainer:
    context = context or Context(0, 1, torch.device("cpu"))
    optim = options.optim
    feed = Feed(
        Lines(options.extra.count),
        optim.global_batch_size,
        optim.global_seed,
        context.rank,
        context.world,
        options.extra.workers,
    )
    return Trainer(LinearTask(options.extra, optim), optim, Run(options.run, "LINE", context), context, feed)


def train(options: LinearOptions, context: Context | None = None, checkpoint: str | None = None) -> Trainer:
    trainer = build(options, context)
    trainer.resume(checkpoint, "--ckpt")
    trainer.fit()
    return trainer


def main(options: LinearOptions) -> None:
    train(options, join(options))
    leave()


if __name__ == "__main__":
    run(main, LinearOptions)
