"""The commands that draw a sheet through vLLM draw what those without it do."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support import ROOT, command, environment, free_port, run_script
from test_served_codes import written
from tiny_pipeline import ENCODER, MACHINE, options, write_gpt, write_text_files

pytest.importorskip("vllm", reason="needs vLLM: bash scripts/test_serve.sh")

import psutil

from autoregressive.models.generate import Sampling
from autoregressive.models.gpt import build_gpt
from autoregressive.options import SamplingOptions
from autoregressive.sample.pipeline import load_pipeline, load_text_pipeline
from autoregressive.serve import launch, sheets
from autoregressive.serve.options import EngineOptions, ServedC2I

C2I, T2I = "autoregressive/serve/sample_c2i.py", "autoregressive/serve/sample_t2i.py"


def flags(folder: Path, *more: str) -> list[str]:
    return ["--gpt-ckpt", folder / "gpt.pt", "--vq-ckpt", folder / "vq.pt", "--cache-dir", folder / "cache",
            "--precision", "none", "--output", folder / "sheet.png", "--single-dir", folder / "single", "--greedy",
            *more]  # fmt: skip


def held_codes(folder: Path) -> list[list[int]]:
    return [json.loads(Image.open(path).text["codes"])["codes"] for path in sorted((folder / "single").iterdir())]


def test_classes_without_guidance_on_two_machines(tmp_path):
    """Both of which are this one; each has a copy of the GPT."""
    pair = written(tmp_path)
    pipeline = load_pipeline(*pair, MACHINE)
    labels = [str(label) for label in range(10)] * 2
    wanted = pipeline.codes(pipeline.labels(labels), Sampling(greedy=True))
    drawn = flags(tmp_path, "--cfg-scale", "1", "--labels", *labels[:10], "--num-images", "20", "--per-row", "5",
                  "--decode-batch-size", "3", "--max-num-seqs", "5", "--data-parallel-size", "2", "--nnodes", "2",
                  "--master-port", str(free_port()))  # fmt: skip
    lender = subprocess.Popen(command(C2I, *drawn, "--node-rank", "1"), env=environment(), cwd=ROOT)
    try:
        said = run_script(C2I, *drawn)
        lent = psutil.Process(lender.pid).children(recursive=True)
        assert lent and lender.poll() is None
    finally:
        lender.terminate()
    assert not psutil.wait_procs([*lent, lender], timeout=30)[1]
    assert held_codes(tmp_path) == wanted.tolist()
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    pictures = pipeline.to_pictures(wanted)
    for i, path in enumerate(sorted((tmp_path / "single").iterdir())):
        assert np.abs(np.asarray(Image.open(path)).astype(int) - pictures[i]).max() <= 1
    assert sheet.shape[0] * 5 == pytest.approx(sheet.shape[1] * 4, rel=0.05), "4 rows of 5"
    assert f"{20 * 64} codes, decoded beside, in " in said.stdout and "codes/s)" in said.stdout
    settings = json.loads(Image.open(tmp_path / "sheet.png").text["settings"])
    assert settings["served"] == "vllm" and settings["count"] == 20 and settings["cfg_scale"] == 1


def test_prompts(tmp_path):
    files = write_text_files(tmp_path)
    gpt = build_gpt("GPT-1M", model_type="t2i", cls_token_num=120, caption_dim=32)
    write_gpt(files / "gpt.pt", gpt, class_names=None, image_size=32)
    pair, encoder = options(files, {"gpt_type": "t2i", "cls_token_num": 120}), replace(ENCODER, t5_path=files / "t5")
    pipeline = load_text_pipeline(*pair, encoder, MACHINE)
    texts = ["a red fox", "a lighthouse in a storm, oil on canvas", ""]
    wanted = pipeline.codes(sampling=Sampling(4, cfg_interval=20, greedy=True), **pipeline.captions(texts))
    told = ["--t5-path", files / "t5", "--t5-model-type", ENCODER.t5_model_type, "--t5-precision", "none"]
    run_script(T2I, *flags(files, "--cfg-scale", "4", "--cfg-interval", "20", "--prompts", *texts, *told))
    assert held_codes(files) == wanted.tolist()


def test_what_cannot_be_served_is_said(tmp_path):
    written(tmp_path)
    for more, words in (
        (["--cfg-scale", "1.505"], "--cfg-scale 1.505: served models take steps of 0.01"),
        (["--cfg-scale", "3", "--cfg-schedule", "linear"], "--cfg-schedule linear: served models guide constantly"),
        (["--tensor-parallel-size", "3"], "--tensor-parallel-size 3: must divide the GPT's"),
    ):
        done = run_script(C2I, *flags(tmp_path, *more), code=2)
        assert words in done.stderr and not (tmp_path / "sheet.png").exists()


def test_an_engine_that_does_not_start_is_said(monkeypatch):
    class Broken:
        @staticmethod
        def from_engine_args(_):
            raise RuntimeError("Engine core initialization failed")

    monkeypatch.setattr("autoregressive.serve.vllm_names.AsyncLLM", Broken)
    with pytest.raises(ValueError, match="vLLM did not start.*Engine core initialization failed.*remove /folder"):
        launch.start(SimpleNamespace(model="/folder"))


def test_where_vllm_is_not_there_its_environment_is_named(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="bash scripts/serve.sh makes one"):
        launch.check_plugin()
    monkeypatch.undo()
    monkeypatch.setattr(launch, "entry_points", lambda group: [])
    with pytest.raises(ValueError, match="pip install --no-deps -e"):
        launch.check_plugin()
    monkeypatch.undo()
    launch.check_plugin()


def test_no_import_of_torchvision():
    """Its builds do not fit vLLM's torch."""
    parts = ["painter", "sheets", "listen", "model", "plugin", "convert", "wire", "ledger", "api"]
    imports = "; ".join(f"import autoregressive.serve.{part}" for part in parts)
    code = f"import sys; sys.modules['torchvision'] = None; {imports}; assert sys.modules['torchvision'] is None"
    subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, check=True)


@pytest.mark.parametrize("sampling, words", [
    (Sampling(1.505), "steps of 0.01"),
    (Sampling(3, cfg_schedule="linear"), "--cfg-schedule linear"),
])  # fmt: skip
def test_it_is_said_before_the_engine_starts(tmp_path, monkeypatch, sampling, words):
    monkeypatch.setattr(launch, "arguments_for", None)
    with pytest.raises(ValueError, match=words):
        launch.prepare(*written(tmp_path), EngineOptions(cache_dir=str(tmp_path / "cache")), sampling, True)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_whoever_lends_has_the_first_machine_s_model(monkeypatch, scale):
    seen = []
    monkeypatch.setattr(sheets, "lend", lambda *given: seen.append(given))
    options = ServedC2I(engine=EngineOptions(nnodes=2, node_rank=1), sampling=SamplingOptions(cfg_scale=scale))
    sheets.run(options, ("gpt", "vq"), "class", None)
    assert seen == [("gpt", "vq", options.engine, scale > 1)]
