"""Scores from features: the expected figures, closed forms, and a count by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluations.metrics import Gaussian, frechet_distance, inception_score, precision_recall
from golden.fill import activations, probabilities

EXPECTED = json.loads((Path(__file__).parents[1] / "golden/metrics.json").read_text())


def features(*arguments) -> torch.Tensor:
    return torch.from_numpy(activations(*arguments))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = Gaussian.of(a), Gaussian.of(b)
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- expected figures


def test_precision_and_recall_of_the_published_program():
    """It measures distances in float16: a few of its pictures lie on the other side of a ball's surface."""
    found = precision_recall(features("ref", 1200, 64), features("sample", 900, 64, 1.1, 0.05))
    assert found == pytest.approx((EXPECTED["precision"], EXPECTED["recall"]), abs=0.01)


def test_frechet_distance_of_the_published_program():
    assert distance(features("sample", 900, 64, 1.1, 0.05), features("ref", 1200, 64)) == pytest.approx(
        EXPECTED["frechet_distance"], abs=1e-6
    )
    fewer = distance(features("sample small", 30, 64), features("ref small", 40, 64))
    assert fewer == pytest.approx(EXPECTED["frechet_distance_fewer_samples_than_dimensions"], abs=1e-6)


def test_inception_score_of_the_published_program():
    logits = torch.from_numpy(probabilities("probs", 12000, 20)).log()
    assert inception_score(logits) == pytest.approx(EXPECTED["inception_score"], rel=1e-6)


# ---- Fréchet distance


def test_equal_sets_are_at_no_distance():
    x = normal(300, 40) @ normal(40, 40, seed=1)
    assert distance(x, x) == pytest.approx(0, abs=1e-9)
    assert distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


def test_a_shift_counts_by_its_square():
    x, shift = normal(300, 40), normal(40, seed=1)
    assert distance(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-10)


def test_diagonal_covariances_differ_by_their_standard_deviations():
    a, b = normal(30).abs(), normal(30, seed=1).abs()
    zero = torch.zeros(30)
    found = frechet_distance(zero, torch.diag(a.square()), zero, torch.diag(b.square()))
    assert found == pytest.approx(float((a - b).square().sum()), rel=1e-10)


def test_a_rotation_of_the_features_changes_nothing():
    rotation, _ = torch.linalg.qr(normal(20, 20, seed=2))
    a, b = normal(100, 20) * torch.arange(1, 21), normal(90, 20, seed=1)
    assert distance(a @ rotation, b @ rotation) == pytest.approx(distance(a, b), rel=1e-10)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-10)


@pytest.mark.parametrize("small", [0.0, 1e-14, 1e-9])
def test_near_singular_covariances_are_no_trouble(small):
    """One direction with spread, the others with next to none: the roots differ by what the directions differ."""
    a, b = torch.full((50,), small, dtype=torch.float64), torch.full((50,), small, dtype=torch.float64)
    a[0], b[1] = 4.0, 9.0  # orthogonal directions: nothing in common
    rotation, _ = torch.linalg.qr(normal(50, 50))
    cov_a, cov_b = rotation @ torch.diag(a) @ rotation.T, rotation @ torch.diag(b) @ rotation.T
    zero = torch.zeros(50)
    expected = float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(zero, cov_a, zero, cov_b) == pytest.approx(expected, abs=1e-5)
    assert frechet_distance(zero, cov_a, zero, cov_a) == pytest.approx(0, abs=1e-9)


# ---- statistics


def test_statistics_in_parts_are_those_of_the_whole():
    x = normal(500, 7) * 3 + 1000.0
    whole, parts = Gaussian.of(x), Gaussian.empty(7)
    for part in x.split([1, 99, 250, 150]):
        parts.add(Gaussian.of(part))
    assert parts.count == 500
    np.testing.assert_allclose(parts.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(parts.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(whole.covariance, parts.covariance, rtol=1e-9)
    parts.add(Gaussian.empty(7))
    assert parts.count == 500 and torch.isfinite(parts.mean).all()
    nothing = Gaussian.empty(7)
    nothing.add(Gaussian.empty(7))
    assert nothing.count == 0 and torch.isfinite(nothing.mean).all()


def test_float32_features_far_from_zero_lose_nothing():
    """Sums of squares would: 1e6 squared leaves float64 four digits for a spread of 0.01."""
    x = (normal(1000, 3) * 0.01 + 1e6).float()
    parts = Gaussian.empty(3)
    for part in x.split(64):
        parts.add(Gaussian.of(part))
    np.testing.assert_allclose(parts.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-6)


def test_one_picture_has_no_covariance():
    with pytest.raises(ValueError, match="at least two pictures"):
        _ = Gaussian.of(normal(1, 3)).covariance


# ---- Inception Score


def test_inception_score_of_sure_and_of_clueless_networks():
    sure = torch.eye(10).repeat(3, 1) * 1000  # every class, without doubt: exp(log 10)
    assert inception_score(sure) == pytest.approx(10)
    assert inception_score(torch.zeros(7, 10)) == pytest.approx(1)


def test_splits_follow_the_order_of_the_file():
    sorted_classes = torch.eye(4).repeat_interleave(5, 0) * 1000  # a split holds one class only
    assert inception_score(sorted_classes, split=5) == pytest.approx(1)
    assert inception_score(sorted_classes, split=20) == pytest.approx(4)
    assert inception_score(sorted_classes, split=15) == pytest.approx((3 + 1) / 2)  # the last split is what is left


# ---- precision and recall


def by_hand(real: np.ndarray, sampled: np.ndarray, k: int) -> tuple[float, float]:
    def radius(points, i):
        return sorted(((points - points[i]) ** 2).sum(1))[k]  # the 0-th is the point itself

    def share(points, others):
        balls = [radius(others, i) for i in range(len(others))]
        return np.mean([any(((p - o) ** 2).sum() <= r for o, r in zip(others, balls)) for p in points])

    return share(sampled, real), share(real, sampled)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_count_what_lies_in_the_others_balls(k):
    real, sampled = normal(60, 4) + 500, normal(45, 4, seed=1) * 0.7 + 500.5
    expected = by_hand(real.numpy(), sampled.numpy(), k)
    assert min(expected) > 0.1 and max(expected) < 1 and expected[0] != expected[1]
    for block in (7, 1000):
        assert precision_recall(real.float(), sampled.float(), k, block) == pytest.approx(expected)


def test_equal_and_far_sets():
    x = normal(20, 4).float()
    assert precision_recall(x, x.clone()) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_pictures_drawn_again_and_again_have_balls_of_their_own():
    copies = normal(1, 4).float().repeat(10, 1)
    spread = normal(30, 4, seed=1).float() * 10
    assert precision_recall(torch.cat([spread, copies]), copies)[0] == 1


def test_precision_and_recall_need_neighbours():
    with pytest.raises(ValueError, match="more than 3 pictures, there are 3 sampled"):
        precision_recall(normal(9, 4), normal(3, 4))
