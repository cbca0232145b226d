"""What a run says: the console, log.txt, metrics.jsonl, and Weights & Biases on request. Only rank zero speaks."""

import json
import os
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from engine.checkpoint import write_text


def circumstances(device: object, *packages: str) -> dict:
    """What a report says of where its figures were computed; `packages`: those that count beside the usual."""
    return {"versions": {name: version(name) for name in ("torch", "numpy", "pillow", *packages)},
            "device": str(device), "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}  # fmt: skip


class Logger:
    """Messages and figures of one run. Without a folder (another rank) it is silent."""

    def __init__(self, folder: Path | None, wandb_project: str | None = None, config: dict | None = None):
        self.folder, self.wandb = folder, None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics_path = folder / "metrics.jsonl"
        self.text = open(folder / "log.txt", "a", buffering=1)  # noqa: SIM115 - open for the run, closed in close()
        if wandb_project:
            try:
                import wandb
            except ImportError as error:
                raise ValueError("--wandb: the package is not installed; run `pip install wandb`, "
                                 "or use --no-wandb") from error  # fmt: skip
            self.wandb = wandb.init(project=wandb_project, name=folder.name, dir=folder, config=config, resume="allow")

    def say(self, message: str) -> None:
        if self.folder is not None:
            tqdm.write(message)
            self.text.write(message + "\n")

    def record(self, step: int, figures: dict[str, float]) -> None:
        """One line of metrics.jsonl; it is on disk when this returns."""
        if self.folder is None:
            return
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.wandb is not None:
            self.wandb.log(figures, step=step)

    def rewind(self, step: int) -> None:
        """Forget the figures after `step`, which a resumed run will write again."""
        if self.folder is None or not self.metrics_path.exists():
            return
        lines = self.metrics_path.read_text().splitlines()
        kept = [line for line in lines if is_up_to(line, step)]
        if kept != lines:
            write_text(self.metrics_path, "".join(line + "\n" for line in kept))

    def close(self) -> None:
        if self.folder is not None:
            self.text.close()
            if self.wandb is not None:
                self.wandb.finish()


def is_up_to(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError):  # a line cut short by a crash
        return False


class Window:
    """Sums of the figures between two log lines; they stay on the device until they are read."""

    def __init__(self, first_step: int):
        self.first_step, self.began = first_step, time.monotonic()
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, figures: dict[str, Tensor]) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + torch.as_tensor(value).detach()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-9)
