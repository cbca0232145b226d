"""Loss over compute and FID over epochs, from the files that training and evaluation leave."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluations.scaling as scaling
from engine.config import parse
from evaluations.options import PlotScaling
from evaluations.plots import named_runs, save_figure
from evaluations.scaling import named_scores, plot_scaling, trend


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are saved."""
    found: list = []
    monkeypatch.setattr(scaling, "save_figure", lambda *given: found.append(given[0]) or save_figure(*given))
    return found


def write_run(folder: Path, cost: float, steps: range = range(10, 1001, 10), since: int = 0) -> str:
    """A log whose lines tell FLOPs from step `since` on, and the loss 2 + 10 / step."""
    folder.mkdir()
    lines = [{"step": step, "loss": 2 + 10 / step} for step in steps]
    lines = [line | ({"flops": cost * line["step"]} if line["step"] >= since else {}) for line in lines]
    lines.append({"step": steps[-1], "val_loss": 3.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"{folder.name}={folder}"


def write_score(path: Path, fid: float, epochs: float | None, *, network: str = "n", reference: str = "r",
                pictures: int = 50_000, published: bool = True) -> str:  # fmt: skip
    """What evaluations/c2i/evaluator.py writes, in short."""
    path.write_text(json.dumps({
        "scores": {"fid": fid}, "comparable_with_published": published,
        "network": {"checksum": network, "name": "net.safetensors"}, "reference": {"sha256": reference},
        "samples": {"pictures": pictures, "made_by": {} if epochs is None else {"epochs": epochs}},
    }))  # fmt: skip
    return str(path)


def test_losses_stand_over_flops_and_fid_over_epochs_in_the_run_s_colour(tmp_path, figures):
    runs = named_runs([write_run(tmp_path / "B", 1e12), write_run(tmp_path / "L", 4e12, since=900)])
    scores = named_scores([
        "L=" + write_score(tmp_path / "l.json", 3.0, 50.0),
        "B=80:" + write_score(tmp_path / "b2.json", 5.0, 70.0),
        "B=" + write_score(tmp_path / "b1.json", 9.0, 20.0),
        "L=70.5:" + write_score(tmp_path / "l2.json", 2.5, None),
    ], runs)  # fmt: skip
    plot_scaling(runs, scores, tmp_path / "made" / "scaling.png")
    (figure,) = figures
    losses, fids = figure.axes
    assert losses.get_xscale() == "log" and all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    named = {line.get_label(): line for line in losses.lines}
    for name, cost in (("B", 1e12), ("L", 4e12)):
        np.testing.assert_allclose(named[name].get_xdata(), cost * np.arange(10, 1001, 10))
        raw = next(line for line in losses.lines if line is not named[name] and len(line.get_xdata()) == 100
                   and line.get_color() == named[name].get_color())  # fmt: skip
        np.testing.assert_allclose(raw.get_ydata(), 2 + 10 / np.arange(10, 1001, 10))
        val = next(line for line in losses.lines if line.get_xdata().tolist() == [cost * 1000])
        assert val.get_ydata().tolist() == [3.0] and val.get_color() == named[name].get_color()
    points = {line.get_label(): line for line in fids.lines}
    assert points["B"].get_xydata().tolist() == [[20.0, 9.0], [80.0, 5.0]], "by epochs, given ones before told ones"
    assert points["L"].get_xydata().tolist() == [[50.0, 3.0], [70.5, 2.5]]
    assert all(points[name].get_color() == named[name].get_color() for name in "BL")
    with Image.open(tmp_path / "made" / "scaling.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=2) > 60
    assert coloured[:, : coloured.shape[1] // 2].any() and coloured[:, coloured.shape[1] // 2 :].any()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["scaling.png"]


def test_without_scores_there_is_one_panel_and_strange_features_are_named(tmp_path, figures):
    runs = named_runs([write_run(tmp_path / "B", 1e12)])
    plot_scaling(runs, {}, tmp_path / "a.png")
    scores = named_scores(["B=" + write_score(tmp_path / "b.json", 5.0, 80.0, published=False)], runs)
    plot_scaling(runs, scores, tmp_path / "b.png")
    assert [len(figure.axes) for figure in figures] == [1, 2]
    assert "net.safetensors" in figures[1].axes[1].get_ylabel() and "no published" in figures[1].axes[1].get_ylabel()


def test_a_trend_is_even_on_a_logarithmic_axis():
    values = [float(i % 2) for i in range(400)]
    assert trend(values)[:20] == values[:20] and len(trend(values)) == 400
    assert trend(values)[300] == pytest.approx(0.5, abs=0.02)
    assert trend([5.0] * 100) == pytest.approx([5.0] * 100)


def test_a_run_that_does_not_tell_its_cost_is_refused_with_the_remedy(tmp_path):
    runs = named_runs([write_run(tmp_path / "old", 1e12, since=10**9)])
    with pytest.raises(ValueError, match="--runs old: .*metrics.jsonl does not tell what a step costs: .*--resume"):
        plot_scaling(runs, {}, tmp_path / "scaling.png")
    (tmp_path / "old" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="--runs old: .*no losses yet"):
        plot_scaling(runs, {}, tmp_path / "scaling.png")
    with pytest.raises(ValueError, match="must end in .png"):
        plot_scaling(runs, {}, tmp_path / "scaling.pdf")


@pytest.mark.parametrize("changed, words", [
    (dict(epochs=None), r"--scores B=.*does not tell how long the GPT was trained .* NAME=EPOCHS:FILE"),
    (dict(network="m"), r"--scores B=.*does not compare with that of B=.*another network \(m, there n\)"),
    (dict(reference="q"), r"another reference \(q, there r\)"),
    (dict(pictures=5000), r"another number of pictures \(5000, there 50000\)"),
])  # fmt: skip
def test_scores_that_do_not_compare_are_refused(changed, words, tmp_path):
    first = write_score(tmp_path / "first.json", 5.0, 10.0)
    with pytest.raises(ValueError, match=words):
        named_scores([f"B={first}", "B=" + write_score(tmp_path / "b.json", 5.0, **{"epochs": 20.0, **changed})], "B")


@pytest.mark.parametrize("given, words", [
    ("C={}/a.json", "with a name of --runs"),
    ("{}/a.json", "with a name of --runs"),
    ("B={}/nowhere.json", "there is no file .*nowhere.json"),
    ("B=5:{}/nowhere.json", "there is no file .*nowhere.json"),
    ("B={}/torn.json", "not a SAMPLES.json"),
    ("B={}/search.json", "not a SAMPLES.json"),
])  # fmt: skip
def test_a_wrong_score_file_is_named(given, words, tmp_path):
    write_score(tmp_path / "a.json", 5.0, 10.0)
    (tmp_path / "torn.json").write_text('{"scores": {"fi')
    (tmp_path / "search.json").write_text('{"settings": {}, "points": []}')
    with pytest.raises(ValueError, match=f"--scores .*{words}"):
        named_scores([given.format(tmp_path)], ["A", "B"])


def test_the_flags_parse_as_written_in_the_docs():
    given = parse(PlotScaling, ["--runs", "B=x", "L=y", "--scores", "B=a.json", "B=5:b.json", "--output", "s.png"])
    assert given == PlotScaling(("B=x", "L=y"), ("B=a.json", "B=5:b.json"), "s.png")
