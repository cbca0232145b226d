"""How training pays: the loss of several runs over their compute, and the FID of their checkpoints over epochs."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluations.plots import Curves, check_png, new_figure, read_metrics, save_figure

JUDGED_BY = ("network", "reference", "number of pictures")  # scores that differ in one of them do not compare


class Score(NamedTuple):
    """What is drawn of a score file, and what makes it comparable with others."""

    epochs: float
    fid: float
    network: str
    comparable: bool  # with published scores
    judged_by: tuple  # JUDGED_BY


def named_scores(scores: Sequence[str], names: Iterable[str]) -> dict[str, list[Score]]:
    """NAME=FILE or NAME=EPOCHS:FILE, ... -> the scores of each run of `names` that has any, by epochs."""
    names = list(names)
    found: dict[str, list[Score]] = {}
    first = None
    for given in scores:
        name, equals, where = given.partition("=")
        if not equals or name not in names:
            raise ValueError(f"--scores {given}: expected NAME=FILE with a name of --runs ({', '.join(names)})")
        epochs = re.match(r"(\d+(?:\.\d+)?):(?=.)", where)
        path = Path(where[epochs.end() :] if epochs else where)
        score = read_score(given, path, float(epochs[1]) if epochs else None)
        first = first or (given, score)
        for what, here, there in zip(JUDGED_BY, score.judged_by, first[1].judged_by):
            if here != there:
                raise ValueError(f"--scores {given}: its FID does not compare with that of {first[0]}: another {what} "
                                 f"({here}, there {there}); score both alike")  # fmt: skip
        found.setdefault(name, []).append(score)
    return {name: sorted(found[name]) for name in names if name in found}


def read_score(given: str, path: Path, epochs: float | None) -> Score:
    """FID and epochs of a file that evaluations/c2i/evaluator.py wrote; `epochs` overrides what it says."""
    try:
        data = json.loads(path.read_text())
        samples, network = data["samples"], data["network"]
        judged_by = (network["checksum"], data["reference"]["sha256"], samples["pictures"])
        fid, comparable = data["scores"]["fid"], data["comparable_with_published"]
        told = samples["made_by"].get("epochs")
    except FileNotFoundError:
        raise ValueError(f"--scores {given}: there is no file {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--scores {given}: not a SAMPLES.json of evaluations/c2i/evaluator.py ({error})") from error
    if epochs is None and told is None:
        raise ValueError(f"--scores {given}: does not tell how long the GPT was trained (bare weights, or sampled by "
                         "an older version); give the epochs by NAME=EPOCHS:FILE")  # fmt: skip
    return Score(told if epochs is None else epochs, fid, network["name"], comparable, judged_by)


def flops_per_step(name: str, path: Path, curves: Curves) -> float:
    """Of any line that tells: all steps of a run cost the same."""
    if "loss" not in curves:
        raise ValueError(f"--runs {name}: {path} holds no losses yet; they come with the first line of the log")
    if "flops" not in curves:
        raise ValueError(f"--runs {name}: {path} does not tell what a step costs: it is not a GPT's, or of an older "
                         "version; one more line of the log tells it for the whole run (--resume and a larger "
                         "--max-steps)")  # fmt: skip
    steps, flops = curves["flops"]
    return flops[-1] / steps[-1]


def plot_scaling(metrics_files: dict[str, Path], scores: dict[str, list[Score]], out: Path) -> None:
    """Write a PNG: loss over FLOPs, a line for each run, and, where there are scores, FID over epochs."""
    check_png(out)
    runs = {name: read_metrics(path) for name, path in metrics_files.items()}
    costs = {name: flops_per_step(name, metrics_files[name], curves) for name, curves in runs.items()}
    panels = 1 + bool(scores)
    figure = new_figure(5.4 * panels, 4.2)
    loss_axes, *fid_axes = figure.subplots(1, panels, squeeze=False)[0]
    colours = {}
    for name, curves in runs.items():
        steps, losses = curves["loss"]
        flops = [step * costs[name] for step in steps]
        colours[name] = loss_axes.plot(flops, trend(losses), label=name, linewidth=1.8)[0].get_color()
        loss_axes.plot(flops, losses, color=colours[name], alpha=0.25, linewidth=0.8)
        steps, losses = curves.get("val_loss", ([], []))
        loss_axes.plot([step * costs[name] for step in steps], losses, "o", color=colours[name], markersize=4)
    if any("val_loss" in curves for curves in runs.values()):
        loss_axes.plot([], [], "o", color="grey", markersize=4, label="on held-out data")
    loss_axes.set_xscale("log")
    label(loss_axes, "loss over compute", "training compute so far (FLOPs)", "loss (nats a code)")
    for axes in fid_axes:
        for name, found in scores.items():
            axes.plot([score.epochs for score in found], [score.fid for score in found], "o-", color=colours[name],
                      label=name, linewidth=1.6, markersize=5)  # fmt: skip
        one = next(iter(scores.values()))[0]
        network = "" if one.comparable else f", features of {one.network}:\ncompares with no published FID"
        label(axes, "FID over training", "epochs", f"FID of {one.judged_by[-1]:,} pictures{network}")
        axes.set_xlim(left=0)
    save_figure(figure, out)


def trend(values: Sequence[float]) -> list[float]:
    """Means of neighbours, within a twentieth of the way to each: an even smoothing of a logarithmic axis."""
    parts = [values[i - i // 20 : i + i // 20 + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def label(axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, which="both")
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=9)
