"""Inception Score, FID, sFID, precision and recall of a file of pictures, by ADM's protocol (Dhariwal and Nichol 2021).

Axes: N pictures, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import write_json, write_text
from engine.logger import circumstances
from evaluations.archive import Pictures, open_pictures
from evaluations.feature_task import activations_of, load_feature_net
from evaluations.features import Activations, FeatureNet
from evaluations.metrics import NEIGHBOURS, SPLIT, frechet_distance, inception_score, precision_recall
from evaluations.options import CachedNetOptions, Evaluate
from evaluations.pairing import checked

# Printed in this order, by these names.
SCORES = {"inception_score": "Inception Score", "fid": "FID", "sfid": "sFID", "precision": "Precision",
          "recall": "Recall"}  # fmt: skip


@dataclass
class Side:
    """Reference or samples: pictures where there are any, their features, and the statistics that count."""

    pictures: Pictures
    activations: Activations | None
    statistics: dict[str, tuple[Tensor, Tensor]]  # "pool", "spatial" -> mean, covariance
    from_file: bool  # whether the statistics stand in the file

    def papers(self) -> dict:
        return {
            "file": self.pictures.path.name,
            "sha256": self.pictures.sha256,
            "pictures": len(self.pictures),
            "kind": self.pictures.kind,
            "statistics": "of the file" if self.from_file else "of its pictures",
            "made_by": {name: value for name, value in self.pictures.meta.items() if name != "kind"},
        }


def open_side(pictures: Pictures, net: FeatureNet, options: CachedNetOptions, what: str) -> Side:
    """Features of its pictures, and its statistics: those of the file where it has them."""
    if len(pictures) == 1:
        raise ValueError(f"{pictures.path}: holds one picture, whose features have no covariance; give more")
    statistics = statistics_in(pictures, net)
    from_file = bool(statistics)
    activations = activations_of(pictures, pictures.sha256, net, options, what) if len(pictures) else None
    if not from_file:
        both = {"pool": activations.pool_statistics, "spatial": activations.spatial_statistics}
        statistics = {part: (own.mean, own.covariance) for part, own in both.items()}
    return Side(pictures, activations, statistics, from_file)


def statistics_in(pictures: Pictures, net: FeatureNet) -> dict[str, tuple[Tensor, Tensor]]:
    """The statistics that the file holds, if any; ValueError where they are damaged, or another network's."""
    found = {}
    for part, names in (("pool", ("mu", "sigma")), ("spatial", ("mu_s", "sigma_s"))):
        if not set(names) <= set(pictures.names):
            continue
        mean, covariance = (np.asarray(pictures.array(name), np.float64) for name in names)
        if mean.ndim != 1 or covariance.shape != mean.shape * 2 or not (
            np.isfinite(mean).all() and np.isfinite(covariance).all()
        ):
            raise ValueError(f"{pictures.path}: {names[0]} is {mean.shape}, {names[1]} {covariance.shape}; expected a "
                             "mean [D] and a covariance [D, D] of finite numbers")  # fmt: skip
        found[part] = (torch.from_numpy(mean), torch.from_numpy(covariance))
    if not found:
        return found
    made_with = pictures.meta.get("network", net.checksum if net.standard else None)
    width = len(found["pool"][0]) if "pool" in found else 0
    if width != net.width or made_with != net.checksum:
        raise ValueError(f"{pictures.path}: its statistics are of another network's features ({width} of them, network "
                         f"{made_with or 'Inception 2015-12-05'}) than those of {net.name} ({net.width}, network "
                         f"{net.checksum}); give --feature-net the network that made them, or make a reference by "
                         "evaluations/c2i/reference.py with this one")  # fmt: skip
    return found


def score(reference: Side, samples: Side, net: FeatureNet) -> tuple[dict[str, float], list[str]]:
    """The scores that the two sides allow, and a sentence on each that they do not."""
    notes = []
    scores = {"inception_score": inception_score(net.logits(samples.activations.pooled))}
    for name, part in (("fid", "pool"), ("sfid", "spatial")):
        lacking = [side.pictures.path.name for side in (reference, samples) if part not in side.statistics]
        if lacking:
            notes.append(f"{SCORES[name]} is left out: {' and '.join(lacking)} has no mu_s and sigma_s")
            continue
        ours, theirs = samples.statistics[part], reference.statistics[part]
        if len(ours[0]) != len(theirs[0]):
            raise ValueError(f"{reference.pictures.path}: {SCORES[name]} compares {len(theirs[0])} features there with "
                             f"{len(ours[0])} of {samples.pictures.path}; they are of different networks")  # fmt: skip
        scores[name] = frechet_distance(*ours, *theirs)
    fewest = min(reference.pictures, samples.pictures, key=len)
    if len(fewest) <= NEIGHBOURS:
        notes.append(f"Precision and recall are left out: {fewest.path.name} has {len(fewest)} pictures (arr_0), they "
                     f"need more than {NEIGHBOURS}")  # fmt: skip
    else:
        real, sampled = (side.activations.pooled.to(net.device) for side in (reference, samples))
        scores["precision"], scores["recall"] = precision_recall(real, sampled)
    return scores, notes


@dataclass
class Report:
    """Scores with all that is needed to judge them."""

    scores: dict[str, float]
    net: FeatureNet
    reference: Side
    samples: Side
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """First whether the scores compare with published ones, if not; then the scores."""
        scores = [f"{words}: {self.scores[name]}" for name, words in SCORES.items() if name in self.scores]
        return [*self.net.caveat(), *scores, *(f"note: {note}" for note in self.notes)]

    def data(self) -> dict:
        return {
            "scores": self.scores,
            "comparable_with_published": self.net.standard,
            "notes": self.notes,
            "protocol": {
                "source": "Dhariwal and Nichol 2021 (ADM)",
                **{f"{name}_features": len(self.samples.statistics[part][0])
                   for name, part in (("fid", "pool"), ("sfid", "spatial")) if part in self.samples.statistics},
                "inception_score_split": SPLIT,
                "precision_recall_neighbours": NEIGHBOURS,
                "precision_recall_distances": "float32",
            },
            "network": {"name": self.net.name, "checksum": self.net.checksum},
            "reference": self.reference.papers(),
            "samples": self.samples.papers(),
            **circumstances(self.net.device),
        }


def evaluate(options: Evaluate) -> Report:
    """Score sample_batch against ref_batch; print the report, write it as .txt and .json beside the samples."""
    paths = (options.evaluator.ref_batch, options.evaluator.sample_batch)
    reference, samples = (open_pictures(path) for path in paths)
    if not len(samples):
        raise ValueError(f"{samples.path}: holds statistics, but no pictures (arr_0) to score; the reference comes "
                         "first, the samples second")  # fmt: skip
    net = load_feature_net(options.features.feature_net, options.features.device)
    notes = checked(reference, samples, net.width, options.evaluator.force)
    report = compare(reference, samples, net, options.features, notes)
    text = "\n".join(report.lines()) + "\n"
    write_text(samples.beside(".txt"), text)
    write_json(samples.beside(".json"), report.data())
    print(f"{text}-> {samples.beside('.txt')} and .json")
    return report


def compare(reference: Pictures, samples: Pictures, net: FeatureNet, options: CachedNetOptions,
            notes: Sequence[str] = ()) -> Report:  # fmt: skip
    """The report on a pairing, whether it fits or not; `notes` are sentences that go into it."""
    return compare_with(open_side(reference, net, options, "reference"), samples, net, options, notes)


def compare_with(reference: Side, samples: Pictures, net: FeatureNet, options: CachedNetOptions,
                 notes: Sequence[str] = ()) -> Report:  # fmt: skip
    """The same against a reference that is open already."""
    side = open_side(samples, net, options, "samples")
    scores, left_out = score(reference, side, net)
    return Report(scores, net, reference, side, [*notes, *left_out])
