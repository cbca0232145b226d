"""What benchmarks measure is what they say: contenders see the same, and nothing is left out."""

import os
import sys
from collections import Counter
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from support import ROOT

from benchmarks import evaluation_contenders as contenders
from benchmarks import training_contenders as training
from benchmarks.measure import rounds
from benchmarks.options import EvaluationBenchmark, TrainingBenchmark
from benchmarks.sampling_contenders import llama
from engine.trainer import Trainer
from evaluations.c2i import evaluate_task
from evaluations.feature_task import load_feature_net
from evaluations.inception import POOL, SPATIAL


def test_the_random_network_of_the_benchmark_is_a_whole_one(tmp_path):
    contenders.write_weights(tmp_path / "weights.pth")
    net = load_feature_net(str(tmp_path / "weights.pth"), "cpu")
    pooled, spatial = net(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    assert pooled.shape == (2, POOL) and spatial.shape == (2, SPATIAL)
    assert pooled.isfinite().all() and pooled.std() > 0.1, "values that neither vanish nor explode"


def test_the_evaluator_is_measured_with_all_of_its_scores(monkeypatch):
    reports, compare = [], contenders.score
    monkeypatch.setattr(evaluate_task, "frechet_distance", lambda *_: 1.5)  # half a minute on one core
    monkeypatch.setattr(contenders, "score", lambda *given: reports.append(compare(*given)))
    figures = contenders.whole(EvaluationBenchmark(image_size=40, real=9, archive=70, batch_size=32))
    (report,) = reports
    assert list(report.scores) == list(evaluate_task.SCORES) and figures["seconds"] > 0
    assert [len(side.activations.pooled) for side in (report.reference, report.samples)] == [9, 70]


def in_turn(contenders: dict[str, tuple], repeats: int, killed: dict | None = None) -> dict[str, dict[str, float]]:
    """measure.rounds in this process."""
    return {name: {**work(*arguments), "peak": 1.0} for name, (work, *arguments) in contenders.items()}


def starved(*_) -> dict[str, float]:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> TrainingBenchmark:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks/training.py")])
    monkeypatch.setattr(training, "rounds", in_turn)
    monkeypatch.setattr(training, "machine", lambda _: {"operation": 1e-9})
    return TrainingBenchmark(str(tmp_path / "table.md"), ("GPT-1M",), 4, 2, steps=2, warmup=1, device="cpu",
                             precision="none")  # fmt: skip


def rows(options: TrainingBenchmark) -> dict[str, list[str]]:
    """Of the table that the benchmark writes."""
    with open(options.output) as file:
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in file if line.startswith("| GPT")]
    return {name: row for name, *row in cells}


def test_every_contender_trains_and_ours_by_the_trainer_s_own_step(tiny, monkeypatch):
    calls, step = Counter(), Trainer.train_step
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: calls.update([type(self).__name__]))
    monkeypatch.setattr(Trainer, "train_step", lambda *given: calls.update(["step"]) or step(*given))
    training.compare(tiny)
    assert list(rows(tiny)) == [f"GPT-1M, {name}" for name in training.CONTENDERS]
    assert all(float(row[0].replace(",", "")) > 0 and all(row) for row in rows(tiny).values())
    assert calls == {"step": 4 * 3, "Transformer": 2, "LlamaForCausalLM": 1}


def test_what_does_not_fit_says_so_and_the_others_go_on(tiny, monkeypatch):
    monkeypatch.setitem(training.CONTENDERS, "ours", (starved,))
    tiny = training.replace(tiny, only=("ours", "transformers"))
    training.compare(tiny)
    assert rows(tiny)["GPT-1M, ours"][0] == "does not fit" and rows(tiny)["GPT-1M, transformers"][1] == "1.00"


def test_a_contender_that_the_system_ends_is_counted_as_said():
    assert rounds({"gone": (os._exit, 1)}, 2, killed={"seconds": 2.0})["gone"] == {"seconds": 2.0, "peak": float("inf")}
    with pytest.raises(BrokenProcessPool):
        rounds({"gone": (os._exit, 1)}, 1)


def test_both_train_the_same_shape_on_the_same_loss():
    model = training.build_gpt("GPT-1M", block_size=4)
    theirs = llama(model.config, "sdpa")
    only_ours = model.cls_embedding.embedding_table.weight.numel()
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters()) - only_ours
    torch.nn.init.normal_(model.output.weight)
    batch = training.random_batch(model, 3)
    task = training.EitherHead(model.eval(), "GPT-1M", {}, None, None)
    parts = task.conditional_loss(model, batch, None)
    task.whole_logits = True
    whole = task.conditional_loss(model, batch, None)
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("changed, message", [({"gpt_model": ("GPT-9B",)}, "--gpt-model GPT-9B: choose from GPT-B"),
                                              ({"only": ("mine",)}, "--only mine: choose from ours"),
                                              ({"codes": 5}, "--codes 5: must be a square number")])  # fmt: skip
def test_what_cannot_be_measured_is_said_first(tiny, changed, message):
    with pytest.raises(ValueError, match=message):
        training.compare(training.replace(tiny, **changed))
