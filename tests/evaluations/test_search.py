"""The search for the guidance scale: resumed it is the uninterrupted one, and a wrong pairing never starts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_files import classifier_file
from PIL import Image
from support import ROOT, run_script
from tiny_pipeline import MACHINE, options, write_files

import evaluations.search_report as search_report
import evaluations.search_task as search_task
from autoregressive.options import GuidanceOptions
from autoregressive.sample.options import BulkOptions
from autoregressive.sample.pipeline import Pipeline
from evaluations.c2i.evaluate_task import evaluate
from evaluations.images import write_npz
from evaluations.options import CachedNetOptions, Evaluate, EvaluatorOptions, FeatureOptions
from evaluations.plots import save_figure
from evaluations.scaling import named_scores
from evaluations.search_options import Search, SearchOptions
from evaluations.search_report import SETTING, draw_search, table
from evaluations.search_task import search

COUNT = 20  # the network has 16 features: fewer pictures are refused
NAME = "GPT-1M-gpt-size-16-size-16-VQ-4-tiny-topk-0-topp-1.0-temperature-1.0-cfg-{}-seed-0"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A pipeline, networks to judge by, and things to be judged against."""
    folder = write_files(tmp_path_factory.mktemp("search"))
    classifier_file(folder / "net.safetensors", width=4, side=16)
    classifier_file(folder / "small.safetensors", width=4)
    random = np.random.default_rng(0)
    for name, count, side, kind in (("reference", 30, 16, "reference"), ("val_set", 30, 16, "originals"),
                                    ("large", 30, 24, "reference"), ("few", 9, 16, "reference")):  # fmt: skip
        pictures = random.integers(0, 256, (count, side, side, 3), np.uint8)
        write_npz(folder / f"{name}.npz", pictures, pictures.shape, {"kind": kind})
    return folder


def asked(files: Path, output: Path, bulk: dict | None = None, guidance: dict | None = None, net: str = "net",
          reference: str = "reference", **changed) -> Search:  # fmt: skip
    gpt, vq = options(files)
    chosen = SearchOptions(str(files / f"{reference}.npz"), cfg_scales=(1.0, 2.0, 4.0), num_samples=COUNT,
                           output=str(output))  # fmt: skip
    features = CachedNetOptions(str(files / f"{net}.safetensors"), batch_size=7, cache=False)
    return Search(replace(chosen, **changed), gpt, vq, MACHINE, GuidanceOptions(**(guidance or {})),
                  BulkOptions(**{"per_proc_batch_size": 6, **(bulk or {})}), features)  # fmt: skip


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    search(asked(files, output))
    return output


def held(output: Path) -> dict:
    return json.loads((output / "search.json").read_text())


def scores(output: Path) -> list[tuple]:
    return [(*(point[name] for name in SETTING), *point["scores"].items()) for point in held(output)["points"]]


class Sampled:
    """Counts the pictures that the pipeline samples; stops before a batch that goes beyond `limit`."""

    def __init__(self, monkeypatch, limit: int = 10**6):
        self.count, self.limit, self.codes = 0, limit, Pipeline.codes
        monkeypatch.setattr(Pipeline, "codes", lambda *given, **more: self.call(*given, **more))

    def call(self, pipeline, cond, *given, **more):
        if self.count + len(cond) > self.limit:
            raise KeyboardInterrupt
        self.count += len(cond)
        return self.codes(pipeline, cond, *given, **more)


def test_the_report_says_first_that_it_compares_with_nothing_and_marks_the_best(whole):
    lines = (whole / "search.txt").read_text().splitlines()
    assert "not of Inception 2015-12-05: these scores compare with no published ones" in lines[0]
    points = held(whole)["points"]
    assert [point["cfg_scale"] for point in points] == [1.0, 2.0, 4.0] and len({str(p["scores"]) for p in points}) == 3
    winner = min(points, key=lambda point: point["scores"]["fid"])
    marked = [line.split() for line in lines if line.endswith("<- best FID")]
    assert [float(line[0]) for line in marked] == [winner["cfg_scale"]]
    best = f"best FID: {winner['scores']['fid']:#.4g} at --cfg-scale {winner['cfg_scale']:g} --top-k 0"
    assert any(line.startswith(best) for line in lines)
    assert f"FID of {COUNT} pictures compares with FID of as many alone" in lines[-1]
    assert sorted(path.name for path in whole.iterdir()) == ["search.json", "search.png", "search.txt"]


@pytest.mark.parametrize("stop", [8, 28, 45])
def test_stopped_and_resumed_is_the_uninterrupted_search_and_samples_nothing_twice(stop, whole, files, tmp_path,
                                                                                   monkeypatch):  # fmt: skip
    with monkeypatch.context() as patch:
        first = Sampled(patch, limit=stop)
        with pytest.raises(KeyboardInterrupt):
            search(asked(files, tmp_path))
    assert len(held(tmp_path)["points"] if stop >= COUNT else []) == stop // COUNT
    if stop >= COUNT:
        text = (tmp_path / "search.txt").read_text()
        assert f"{3 - stop // COUNT} settings are still to be scored" in text, "what is there can be read already"
    second = Sampled(monkeypatch)
    search(asked(files, tmp_path))
    assert scores(tmp_path) == scores(whole)
    assert (tmp_path / "search.txt").read_text() == (whole / "search.txt").read_text()
    assert first.count + second.count == 3 * COUNT and first.count >= stop - 6
    assert not (tmp_path / "samples").exists()


def test_pictures_of_a_scored_setting_are_removed_though_the_search_was_stopped_before(files, tmp_path, monkeypatch):
    """Those that were asked to be kept are kept, whatever later searches ask for."""
    search(asked(files, tmp_path, cfg_scales=(1.0,), keep_samples=True))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search_task, "draw_search", lambda points, *_: stop(points))

        def stop(points):
            if len(points) == 2:
                raise KeyboardInterrupt

        search(asked(files, tmp_path, cfg_scales=(2.0,)))
    names = {NAME.format(scale) + end for scale in (1.0, 2.0) for end in ("", ".npz")}
    kept = {path.name for path in (tmp_path / "samples").iterdir() if "features" not in path.name}
    assert kept == names, "scored, but not removed yet"
    search(asked(files, tmp_path, cfg_scales=(1.0, 2.0)))
    kept = {path.name for path in (tmp_path / "samples").iterdir() if "features" not in path.name}
    assert kept == {name for name in names if "cfg-1.0" in name}


def test_a_finished_search_samples_nothing_and_further_settings_extend_it(whole, files, tmp_path, monkeypatch):
    sampled = Sampled(monkeypatch)
    search(asked(files, tmp_path, cfg_scales=(4.0,)))
    search(asked(files, tmp_path, cfg_scales=(2.0, 1.0, 2.0, 4.0)))
    assert sampled.count == 3 * COUNT and scores(tmp_path) == scores(whole)
    (tmp_path / "search.txt").unlink()
    assert search(asked(files, tmp_path)) == held(tmp_path)["points"] and sampled.count == 3 * COUNT
    assert (tmp_path / "search.txt").exists(), "table and picture are made from the points, whenever they are lost"
    search(asked(files, tmp_path, cfg_scales=(2.0,), top_ks=(0, 5), temperatures=(1.0, 0.5)))
    assert sampled.count == 6 * COUNT
    found = [tuple(point[name] for name in SETTING) for point in held(tmp_path)["points"]]
    assert found == [(2.0, 0, 1.0, 0.5), (1.0, 0, 1.0, 1.0), (2.0, 0, 1.0, 1.0), (4.0, 0, 1.0, 1.0),
                     (2.0, 5, 1.0, 0.5), (2.0, 5, 1.0, 1.0)]  # fmt: skip


def test_a_point_has_the_evaluator_s_figures_on_the_kept_samples(whole, files, tmp_path):
    search(asked(files, tmp_path, cfg_scales=(2.0,), keep_samples=True))
    npz = tmp_path / "samples" / (NAME.format(2.0) + ".npz")
    assert len(list(npz.with_name(npz.stem).glob("*.png"))) == COUNT
    features = FeatureOptions(str(files / "net.safetensors"), device="cpu", cache=False)
    report = evaluate(Evaluate(EvaluatorOptions(str(files / "reference.npz"), str(npz)), features))
    (point,) = held(tmp_path)["points"]
    assert point["scores"] == pytest.approx(report.scores, rel=1e-5)  # other batches of the network
    assert point["samples"]["sha256"] == report.data()["samples"]["sha256"]
    assert scores(tmp_path) == scores(whole)[1:2]


def test_the_evaluator_tells_the_scaling_plot_the_epochs_of_sampled_pictures(files, tmp_path):
    state = torch.load(files / "gpt.pt")
    torch.save({**state, "steps": 30, "order": {"samples": 47, "global_batch_size": 8}}, tmp_path / "gpt.pt")
    plain = asked(files, tmp_path / "out", cfg_scales=(2.0,), keep_samples=True)
    search(replace(plain, gpt=replace(plain.gpt, gpt_ckpt=str(tmp_path / "gpt.pt"))))
    npz = tmp_path / "out" / "samples" / (NAME.format(2.0) + ".npz")
    features = FeatureOptions(str(files / "net.safetensors"), device="cpu", cache=False)
    report = evaluate(Evaluate(EvaluatorOptions(str(files / "reference.npz"), str(npz)), features))
    (score,) = named_scores([f"B={npz.with_name(npz.name.removesuffix('npz') + 'json')}"], ["B"])["B"]
    assert (score.epochs, score.fid, score.comparable) == (6.0, report.scores["fid"], False)


@pytest.mark.parametrize("changed, words", [
    (dict(num_samples=21), "--num-samples was 20, is 21"),
    (dict(bulk={"global_seed": 1}), "--global-seed was 0, is 1"),
    (dict(bulk={"balance": True}), "--balance was False, is True"),
    (dict(guidance={"cfg_schedule": "linear"}), "--cfg-schedule was constant, is linear"),
    (dict(reference="other"), "--reference was"),
    (dict(net="other"), "--feature-net was"),
])  # fmt: skip
def test_a_search_of_other_settings_is_refused(changed, words, whole, files, monkeypatch):
    before = (whole / "search.json").read_bytes()
    pictures = np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), np.uint8)
    write_npz(files / "other.npz", pictures, pictures.shape, {"kind": "reference"})
    classifier_file(files / "other.safetensors", width=4, seed=1, side=16)
    sampled = Sampled(monkeypatch)
    with pytest.raises(ValueError, match=f"--output .*holds a search of other settings: {words}[^;]*$"):
        search(asked(files, whole, cfg_scales=(3.0,), **changed))
    assert sampled.count == 0 and (whole / "search.json").read_bytes() == before


def test_a_search_of_other_weights_is_refused_and_of_a_renamed_file_not(whole, files, tmp_path, monkeypatch):
    sampled = Sampled(monkeypatch)
    state = torch.load(files / "gpt.pt")
    torch.save(state, tmp_path / "renamed.pt")
    plain = asked(files, whole)
    search(replace(plain, gpt=replace(plain.gpt, gpt_ckpt=str(tmp_path / "renamed.pt"))))
    state["model"]["output.weight"][0] += 1
    torch.save(state, tmp_path / "gpt.pt")
    with pytest.raises(ValueError, match="--output .*other settings: --gpt-ckpt was"):
        search(replace(plain, gpt=replace(plain.gpt, gpt_ckpt=str(tmp_path / "gpt.pt"))))
    assert sampled.count == 0


def test_a_search_json_of_something_else_is_refused(files, tmp_path):
    for text in ("{}", "[]", '{"settings": {'):
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(ValueError, match=r"--output .*search\.json was not written by this command"):
            search(asked(files, tmp_path))


@pytest.mark.parametrize("changed, words", [
    (dict(reference="val_set"), "samples: holds generations, .*val_set.npz original pictures"),
    (dict(num_samples=15), "samples: 15 pictures; FID is unreliable under 16.*sample more by --num-samples"),
    (dict(reference="few"), "few.npz: 9 pictures; FID is unreliable"),
    (dict(image_size_eval=16, reference="large"), "pictures of 16 x 16 px, those of .*large.npz are 24 x 24"),
    (dict(net="small"), "--image-size-eval 16: small.safetensors .* reads pictures of 8 px alone"),
    (dict(reference="missing"), "missing.npz: there is no such file"),
])  # fmt: skip
def test_a_wrong_pairing_is_refused_before_anything_is_sampled(changed, words, files, tmp_path, monkeypatch):
    monkeypatch.setattr(search_task, "sample_into", lambda *given: pytest.fail("was sampled"))
    with pytest.raises(ValueError, match=f"(?s){words}"):
        search(asked(files, tmp_path, **changed))
    assert not list(tmp_path.iterdir())


def test_force_scores_a_wrong_pairing_and_the_report_says_so(files, tmp_path):
    search(asked(files, tmp_path, cfg_scales=(2.0,), reference="few", force=True))
    said = (tmp_path / "search.txt").read_text()
    assert f"note: {files / 'few.npz'}: 9 pictures; FID is unreliable" in said


def test_missing_inception_weights_are_said_before_the_models_are_loaded(files, tmp_path, monkeypatch):
    def fetch(flag):
        raise ValueError(f"{flag}: Inception's weights are not there")

    monkeypatch.setattr("evaluations.feature_task.fetch_inception", fetch)
    monkeypatch.setattr(search_task, "load_pipeline", lambda *given: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match="--feature-net: Inception's weights are not there"):
        search(replace(asked(files, tmp_path), features=CachedNetOptions()))


def test_two_processes_find_the_same(whole, files, tmp_path):
    flags = ["--gpt-ckpt", files / "gpt.pt", "--vq-ckpt", files / "vq.pt", "--reference", files / "reference.npz",
             "--feature-net", files / "net.safetensors", "--cfg-scales", "1", "2", "4", "--num-samples", COUNT,
             "--output", tmp_path, "--precision", "none", "--device", "cpu", "--batch-size", "7",
             "--no-cache"]  # fmt: skip
    run_script(ROOT / "evaluations/search.py", *flags, ranks=2)
    assert scores(tmp_path) == scores(whole)


@pytest.mark.parametrize("given, words", [
    ({"cfg_scales": (1.5, 0.5)}, "--cfg-scales 0.5: must be at least 1"),
    ({"cfg_scales": (float("nan"),)}, "--cfg-scales nan"),
    ({"top_ks": ()}, "--top-ks: give at least one"),
    ({"top_ks": (-1,)}, "--top-ks -1"),
    ({"top_ps": (1.5,)}, "--top-ps 1.5"),
    ({"temperatures": (0.0,)}, "--temperatures 0.0"),
    ({"num_samples": 3}, "--num-samples 3: must be at least 4"),
])  # fmt: skip
def test_values_out_of_range_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        SearchOptions("reference.npz", **given)


# ---- table and picture


def point(scale: float, fid: float, top_k: int = 0, **others) -> dict:
    return {"cfg_scale": scale, "top_k": top_k, "top_p": 1.0, "temperature": 1.0,
            "scores": {"fid": fid, "inception_score": 9 * scale, **others}}  # fmt: skip


def test_the_table_names_the_best_and_says_where_to_look_further():
    inner = [point(2.0, 3.0), point(1.0, 5.0), point(3.0, 4.0), point(1.0, 6.0, top_k=7)]
    lines = table(inner)
    assert [line.split()[:2] for line in lines[1:5]] == [["1", "0"], ["2", "0"], ["3", "0"], ["1", "7"]]
    assert lines[2].endswith("<- best FID") and sum("<- best" in line for line in lines) == 1
    assert lines[-1] == "best FID: 3.000 at --cfg-scale 2 --top-k 0 --top-p 1 --temperature 1"
    assert "Precision" not in lines[0], "a score that no point has is no column"
    assert "add larger ones" in table([point(1.0, 3.0), point(2.0, 2.0)])[-1]
    assert "add smaller ones" in table([point(1.5, 2.0), point(2.0, 3.0)])[-1]
    assert table([point(1.0, 2.0), point(2.0, 3.0)])[-1].startswith("best FID"), "nothing is below 1"
    assert "Precision" in table([*inner, point(4.0, 9.0, precision=0.5)])[0]


def test_a_score_that_is_no_number_is_never_the_best():
    points = [point(1.0, float("nan")), point(2.0, 7.0), point(3.0, float("nan"))]
    assert search_report.best(points)["cfg_scale"] == 2.0
    lines = table(points)
    assert lines[2].endswith("<- best FID") and lines[-1].startswith("best FID: 7.000 at --cfg-scale 2")


def test_the_picture_marks_the_best_in_every_panel(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(search_report, "save_figure", lambda *given: saved.append(given[0]) or save_figure(*given))
    shares = {"precision": 0.5, "recall": 0.25}
    one = [point(1.0, 5.0, **shares), point(3.0, 9.0, **shares), point(2.0, 3.0, **shares)]
    draw_search(one, tmp_path / "one.png", "one")
    draw_search([*one, point(2.0, 4.0, top_k=7, **shares)], tmp_path / "two.png", "two")
    draw_search([point(1.0, 5.0)], tmp_path / "few.png", "few")
    assert [len(figure.axes) for figure in saved] == [4, 4, 2], "a panel for each score that there is"
    for axes, value in zip(saved[0].axes, (3.0, 18.0, 0.5, 0.25)):
        line, (across,), star = axes.lines[0], axes.lines[1].get_xdata()[:1], axes.lines[2]
        assert line.get_xdata().tolist() == [1.0, 2.0, 3.0] and across == 2.0
        assert (star.get_marker(), star.get_xdata(), star.get_ydata()) == ("*", [2.0], [value])
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title()
    assert [len(figure.legends) for figure in saved] == [0, 1, 0], "a legend where there is something to tell apart"
    assert [text.get_text() for text in saved[1].legends[0].get_texts()] == ["top-k 0", "top-k 7"]
    with Image.open(tmp_path / "one.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    for r, c in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = pixels[r * height : (r + 1) * height, c * width : (c + 1) * width]
        assert ((part[..., 0] > 180) & (part[..., 2] < 80)).sum() > 30, "red: the mark"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.png", "one.png", "two.png"]
