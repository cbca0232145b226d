"""What benchmarks measure is what they say: contenders see the same, and nothing is left out."""

import torch

from benchmarks import evaluation_contenders as contenders
from benchmarks.options import EvaluationBenchmark
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
