"""What a search found, as a table and as a picture. A point is a setting, named by SETTING, with its "scores"."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path

from evaluations.plots import new_figure, save_figure

SETTING = ("cfg_scale", "top_k", "top_p", "temperature")
# Name of the score -> its column of the table.
COLUMNS = {"fid": "FID", "sfid": "sFID", "inception_score": "Inception Score", "precision": "Precision",
           "recall": "Recall"}  # fmt: skip
# Name of the score -> title and axis of its panel.
PANELS = {
    "fid": ("FID", "FID (lower is better)"),
    "inception_score": ("Inception Score", "Inception Score (higher is better)"),
    "precision": ("Precision", "share of the samples that look real"),
    "recall": ("Recall", "share of real pictures within reach"),
}
MARK = "tab:red"


def best(points: Sequence[dict]) -> dict:
    """The point of the lowest FID; of equal ones the first."""
    return min(points, key=lambda point: (isnan(point["scores"]["fid"]), point["scores"]["fid"]))


def in_order(points: Sequence[dict]) -> list[dict]:
    """Line by line of the picture, each along its scales."""
    return sorted(points, key=lambda point: (line_of(point), point["cfg_scale"]))


def line_of(point: dict) -> tuple:
    """All of the setting but the scale."""
    return tuple(point[name] for name in SETTING[1:])


def flag(name: str) -> str:
    return name.replace("_", "-")


def digits(value: float) -> str:
    """Four that count: a small network's FID may be far below 1."""
    return f"{value:#.4g}"


def table(points: Sequence[dict]) -> list[str]:
    """A line for each point, the best by FID marked; then what is best, in flags of the samplers."""
    points, winner = in_order(points), best(points)
    held = {name: column for name, column in COLUMNS.items() if any(name in point["scores"] for point in points)}
    rows = [[*map(flag, SETTING), *held.values()]]
    for point in points:
        scores = point["scores"]
        setting = [f"{point[name]:g}" for name in SETTING]
        shown = [digits(scores[name]) if name in scores else "-" for name in held]
        rows.append([*setting, *shown])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    lines[1 + points.index(winner)] += "  <- best FID"
    words = " ".join(f"--{flag(name)} {winner[name]:g}" for name in SETTING)
    return [*lines, "", f"best FID: {digits(winner['scores']['fid'])} at {words}", *beyond(points, winner)]


def beyond(points: Sequence[dict], winner: dict) -> list[str]:
    """A sentence where the best scale is the last one tried, so that the best of all may lie further on."""
    scales = sorted(point["cfg_scale"] for point in points if line_of(point) == line_of(winner))
    if len(scales) > 1 and winner["cfg_scale"] == scales[-1]:
        return ["that is the largest scale tried: add larger ones to --cfg-scales"]
    if len(scales) > 1 and winner["cfg_scale"] == scales[0] > 1:
        return ["that is the smallest scale tried: add smaller ones to --cfg-scales"]
    return []


def draw_search(points: Sequence[dict], out: Path, title: str) -> None:
    """A PNG with a panel for each score over the guidance scale, a line for each top-k, top-p and temperature; the best
    point by FID is marked in all."""
    points, winner = in_order(points), best(points)
    lines = list(dict.fromkeys(map(line_of, points)))
    varied = [i for i in range(len(SETTING) - 1) if len({line[i] for line in lines}) > 1]
    panels = [name for name in PANELS if any(name in point["scores"] for point in points)]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.8 * columns, 3.5 * rows + 0.4 + 0.2 * (len(lines) > 1))
    figure.suptitle(title, fontsize=10)
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flatten(), panels):
        for line in lines:
            along = [point for point in points if line_of(point) == line and name in point["scores"]]
            label = ", ".join(f"{flag(SETTING[1 + i])} {line[i]:g}" for i in varied)
            axes.plot([point["cfg_scale"] for point in along], [point["scores"][name] for point in along], ".-",
                      label=label, linewidth=1.6, markersize=8)  # fmt: skip
        axes.axvline(winner["cfg_scale"], color=MARK, linewidth=0.8, linestyle=":", zorder=0)
        if name in winner["scores"]:
            mark = axes.plot(winner["cfg_scale"], winner["scores"][name], "*", color=MARK, markersize=13, zorder=3)
            if name == "fid":
                words = f"best FID {winner['scores']['fid']:.3g} at scale {winner['cfg_scale']:g}"
                axes.legend(mark, [words], fontsize=9, loc="best")
        heading, axis = PANELS[name]
        axes.set_title(heading, fontsize=11)
        axes.set_xlabel("guidance scale (--cfg-scale)")
        axes.set_ylabel(axis)
        axes.grid(alpha=0.25)
    if varied:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=min(len(lines), 2 * columns))
    save_figure(figure, out)
