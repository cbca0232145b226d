"""Distances between sets of feature vectors: Gaussian statistics, Fréchet distance, Inception Score, precision, recall.

The protocol of Dhariwal and Nichol 2021 ("ADM"); everything but the distances of precision and recall is float64.

Axes: N pictures, D features of one, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SPLIT = 5000  # pictures of a split of the Inception Score, in file order
NEIGHBOURS = 3  # k of precision and recall


@dataclass
class Gaussian:
    """Mean [D] and scatter [D, D] (the sum of outer products of the deviations) of `count` vectors, float64."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> "Gaussian":
        options = {"dtype": torch.float64, "device": device}
        return cls(0, torch.zeros(width, **options), torch.zeros(width, width, **options))

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Of vectors [N, D], at least one."""
        features = features.double()
        mean = features.mean(0)
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    @property
    def covariance(self) -> Tensor:
        """[D, D], divided by count - 1, as numpy.cov."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two pictures, there is {self.count}")
        return self.scatter / (self.count - 1)

    def add(self, other: "Gaussian") -> None:
        """Take the vectors of `other` in, too; exact however the means differ (Chan, Golub and LeVeque 1979)."""
        total = self.count + other.count
        if other.count == 0:
            return
        apart = other.mean.to(self.mean) - self.mean
        self.scatter += other.scatter.to(self.mean)
        self.scatter += torch.outer(apart, apart) * (self.count * other.count / total)
        self.mean = self.mean + apart * (other.count / total)
        self.count = total


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2) of two Gaussians (Dowson and Landau 1982; Heusel et al. 2017).

    The trace of the root is the sum of the singular values of A^1/2 B^1/2. That is real and exact for singular
    covariances too (fewer pictures than features), where a root of the product A B needs an offset to be found.
    """
    a, b = covariance_a.double(), covariance_b.double()
    cross = torch.linalg.svdvals(root(a) @ root(b)).sum()
    return float((mean_a.double() - mean_b.double()).square().sum() + a.trace() + b.trace() - 2 * cross)


def root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix; eigenvalues that rounding made negative are 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def inception_score(logits: Tensor, split: int = SPLIT) -> float:
    """Of logits [N, C]: exp(mean KL(p(y|x), p(y))) of each split in order, averaged (Salimans et al. 2016, eq. 1)."""
    scores = []
    for part in logits.split(split):
        log_p = part.double().log_softmax(1)
        log_mean = log_p.logsumexp(0) - torch.tensor(len(part), dtype=torch.float64).log()
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())
    return float(torch.stack(scores).mean())


def precision_recall(real: Tensor, sampled: Tensor, k: int = NEIGHBOURS, block: int = 1000) -> tuple[float, float]:
    """Shares of `sampled` [N, D] within the manifold of `real` [M, D], and the reverse (Kynkäänniemi et al. 2019).

    A set's manifold is the union of balls around its vectors, each reaching to its k-th nearest neighbour. Squared
    distances, float32, `block` rows of them at a time, on the device of the vectors.
    """
    for name, features in (("reference", real), ("sampled", sampled)):
        if len(features) <= k:
            raise ValueError(f"precision and recall need more than {k} pictures, there are {len(features)} {name} ones")
    centre = real.mean(0)  # distances from differences of large norms would be rounded more
    real, sampled = real - centre, sampled - centre
    real_radii, sampled_radii = radii(real, k, block), radii(sampled, k, block)
    norms = real.square().sum(1)
    inside_real, near_a_sample = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for part, part_radii in zip(sampled.split(block), sampled_radii.split(block)):
        distances = squared_distances(part, real, norms)  # [block, M]
        inside_real.append((distances <= real_radii).any(1))
        near_a_sample |= (distances <= part_radii[:, None]).any(0)
    # On the CPU, as MPS has no float64.
    return float(torch.cat(inside_real).cpu().double().mean()), float(near_a_sample.cpu().double().mean())


def radii(features: Tensor, k: int, block: int) -> Tensor:
    """[N]: the squared distance of each vector to its k-th nearest other one."""
    norms = features.square().sum(1)
    nearest = []
    for part in features.split(block):
        distances = squared_distances(part, features, norms)  # [block, N]
        nearest.append(distances.topk(k + 1, largest=False).values[:, -1])  # the nearest of all is the vector itself
    return torch.cat(nearest)


def squared_distances(rows: Tensor, columns: Tensor, column_norms: Tensor) -> Tensor:
    """[rows, columns], never negative."""
    distances = torch.addmm(column_norms[None], rows, columns.T, alpha=-2)
    return distances.add_(rows.square().sum(1)[:, None]).clamp_(min=0)
