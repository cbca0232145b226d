"""Loss curves from metrics.jsonl."""

import json

import numpy as np
import pytest
from PIL import Image

from evaluations.plots import named_runs, plot_losses, read_metrics, smoothed


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [{"step": step, "loss": 3.0 / step, "usage": 0.5} for step in range(1, 61)]
    lines.append({"step": 60, "val_loss": 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 61, "lo')
    return folder


def test_every_figure_keeps_its_own_steps_and_a_cut_line_is_passed_over(run):
    curves = read_metrics(run / "metrics.jsonl")
    assert set(curves) == {"loss", "usage", "val_loss"}
    assert curves["loss"][0] == list(range(1, 61)) and curves["loss"][1][1] == 1.5
    assert curves["val_loss"] == ([60], [0.1])


def test_smoothing_keeps_length_and_straight_lines():
    line = [2.0 * i for i in range(20)]
    assert len(smoothed(line, 4)) == 20
    assert smoothed(line, 4)[2:-2] == pytest.approx(line[2:-2])
    assert smoothed([1.0, 5.0, 3.0], 0) == [1.0, 5.0, 3.0]


def test_two_runs_become_one_picture_with_ink_in_every_panel(run, tmp_path):
    out = tmp_path / "made" / "losses.png"
    plot_losses(named_runs([f"gpt={run}", f"again={run / 'metrics.jsonl'}"]), out)
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=2) > 60  # curves; text and frames are grey
    rows, columns = 2, 3  # four panels, three side by side
    height, width = (side // n for side, n in zip(coloured.shape, (rows, columns)))
    ink = [[bool(coloured[r * height : (r + 1) * height, c * width : (c + 1) * width].any()) for c in range(columns)]
           for r in range(rows)]  # fmt: skip
    assert ink == [[True, True, True], [True, False, False]]
    assert [p.name for p in out.parent.iterdir()] == ["losses.png"]


@pytest.mark.parametrize(("given", "error"), [
    (["gpt"], "expected NAME=DIR"),
    (["=x"], "expected NAME=DIR"),
    (["gpt=nowhere"], "no metrics.jsonl"),
])  # fmt: skip
def test_a_wrong_run_is_named(given, error):
    with pytest.raises(ValueError, match=f"--runs {given[0]}: .*{error}"):
        named_runs(given)


def test_a_name_stands_for_one_run(run):
    with pytest.raises(ValueError, match="a name of its own"):
        named_runs([f"gpt={run}", f"gpt={run}"])


def test_a_run_without_losses_and_a_strange_file_name_are_refused(tmp_path, run):
    empty = tmp_path / "metrics.jsonl"
    empty.write_text("")
    with pytest.raises(ValueError, match="--runs a: .*no losses yet"):
        plot_losses({"a": empty}, tmp_path / "losses.png")
    with pytest.raises(ValueError, match="must end in .png"):
        plot_losses({"a": run / "metrics.jsonl"}, tmp_path / "losses.xyz")
