"""Loss curves as a picture: a few panels for each training run, from its metrics.jsonl."""

import json
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

from evaluations.files import whole

Curves = dict[str, tuple[list[int], list[float]]]  # a figure's steps and values


class Panel(NamedTuple):
    """Figures that share an axis; those that a run has not are left out."""

    title: str
    axis: str
    keys: tuple[str, ...]
    logarithmic: bool = False


PANELS = (
    Panel("loss", "loss", ("loss", "val_loss")),
    Panel("parts of the loss", "loss, unweighted", ("reconstruction", "perceptual", "codebook", "commitment"), True),
    Panel("discriminator's verdict", "mean logit", ("logits_real", "logits_fake")),
    Panel("codebook", "share of the codes in use", ("usage",)),
    Panel("accuracy", "share read right", ("accuracy", "val_accuracy")),
)
COLUMNS = 3
EXACT = ("val_loss", "val_accuracy")  # measured on a fixed set: drawn as points, never smoothed


def new_figure(width: float, height: float):
    """An empty figure of so many inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("drawing curves needs matplotlib: pip install 'llamagen[eval]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def check_png(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise ValueError(f"--output {out}: must end in .png")


def save_figure(figure, out: Path) -> None:
    """A PNG, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as aside:
        figure.savefig(aside, format="png", dpi=110)


def named_runs(runs: Sequence[str]) -> dict[str, Path]:
    """NAME=DIR, ... -> the metrics.jsonl of each run; DIR is the run's folder or the file itself."""
    files: dict[str, Path] = {}
    for run in runs:
        name, equals, where = run.partition("=")
        if not (name and equals and where) or name in files:
            raise ValueError(f"--runs {run}: expected NAME=DIR with a name of its own, such as gpt=results/000-GPT-B")
        path = Path(where)
        files[name] = path / "metrics.jsonl" if path.is_dir() else path
        if not files[name].is_file():
            raise ValueError(f"--runs {run}: no metrics.jsonl there; give the folder of a training run")
    return files


def read_metrics(path: Path) -> Curves:
    """Steps and values of every figure. A last line cut short by a crash is passed over."""
    curves: Curves = {}
    for line in path.read_text().splitlines():
        try:
            figures = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name, value in figures.items():
            if name != "step":
                steps, values = curves.setdefault(name, ([], []))
                steps.append(figures["step"])
                values.append(value)
    return curves


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Means of up to `window` neighbours, centred; as long as `values`."""
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def plot_losses(metrics_files: dict[str, Path], out: Path, keys: Sequence[Panel] = PANELS) -> None:
    """Write a PNG with a panel for each run and each entry of `keys` that the run has figures of."""
    check_png(out)
    drawn = []
    for name, path in metrics_files.items():
        curves = read_metrics(path)
        panels = [panel for panel in keys if any(key in curves for key in panel.keys)]
        if not panels:
            raise ValueError(f"--runs {name}: {path} holds no losses yet; they come with the first line of the log")
        drawn += [(name, curves, panel) for panel in panels]
    columns = min(COLUMNS, len(drawn))
    rows = ceil(len(drawn) / columns)
    figure = new_figure(4.4 * columns, 3.3 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, curves, panel) in zip(grid, drawn):
        draw_panel(axes, panel, curves, f"{name}: {panel.title}")
    for unused in grid[len(drawn) :]:
        unused.set_axis_off()
    save_figure(figure, out)


def draw_panel(axes, panel: Panel, curves: Curves, title: str) -> None:
    present = [key for key in panel.keys if key in curves]
    for key in present:
        steps, values = curves[key]
        label = key.replace("_", " ")
        if key in EXACT or len(values) < 40:
            axes.plot(steps, values, ".-", label=label, linewidth=1.4, markersize=5)
        else:  # the means between two log lines are noisy: a pale line for them, a strong one for their trend
            (line,) = axes.plot(steps, smoothed(values, len(values) // 20), label=label, linewidth=1.8)
            axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)
    if panel.logarithmic and all(value > 0 for key in present for value in curves[key][1]):
        axes.set_yscale("log")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.axis)
    axes.grid(alpha=0.25)
    if len(panel.keys) > 1:
        axes.legend(fontsize=8)
