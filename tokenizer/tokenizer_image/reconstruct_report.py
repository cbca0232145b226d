"""What is measured of reconstructions: by each process of its own pictures, then of all, as one report.

Axes: B pictures of a batch, N of a process or of all, H height, W width, K codes in the codebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log2

import numpy as np
import torch
from torch import Tensor

from dataset.images import scale
from engine.logger import circumstances
from evaluations.features import Accumulator, FeatureNet
from evaluations.metrics import Gaussian, frechet_distance
from evaluations.pairing import too_few
from evaluations.reconstruct import entropy, psnr, ssim, usage
from tokenizer.tokenizer_image.perceptual import FeatureDistance

SHOWN = 8  # worst and best pictures
# Printed in this order, a figure a line; PSNR and SSIM share the first, as published.
SCORES = {"ssim_range_2": "SSIM (data range 2, as published)", "lpips": "LPIPS", "rfid": "rFID",
          "codebook_usage": "Codebook usage", "code_entropy": "Code entropy (bits)",
          "code_perplexity": "Code perplexity"}  # fmt: skip
PROTOCOL = {
    "pictures": "the bytes that are stored, against the originals' bytes",
    "psnr": "mean over the pictures, data range 1 of [0, 1]; those that are reproduced exactly are left out",
    "ssim": "7 x 7 uniform window, sample covariance, K1 0.01, K2 0.03, mean over channels; data range 1 of [0, 1]",
    "rfid": "Fréchet distance of the reconstructions' pooled features to the originals'",
    "codebook_usage": "share of the codes that were chosen at least once",
}


@dataclass
class Networks:
    """Those that are there, and a sentence on each that is not."""

    perceptual: FeatureDistance | None = None
    perceptual_name: str = "VGG16"
    perceptual_checksum: str | None = None
    features: FeatureNet | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Found:
    """The figures of each picture, and the statistics of all of them."""

    rows: np.ndarray  # int64 [N]
    figures: dict[str, np.ndarray]  # float64 [N] each
    histogram: Tensor  # int64 [K]
    statistics: tuple[Gaussian, Gaussian] | None  # originals, reconstructions

    @classmethod
    def merged(cls, parts: Sequence["Found"]) -> "Found":
        """Of all processes, in the order of the rows, so that means do not depend on who had which."""
        rows = np.concatenate([part.rows for part in parts])
        order = np.argsort(rows)
        figures = {name: np.concatenate([part.figures[name] for part in parts])[order] for name in parts[0].figures}
        statistics = parts[0].statistics
        for part in parts[1:]:
            for mine, theirs in zip(statistics or (), part.statistics or ()):
                mine.add(theirs)
        return cls(rows[order], figures, sum(part.histogram for part in parts), statistics)

    def worst_to_best(self) -> np.ndarray:
        """Places in `rows`: by LPIPS where there is one, else by PSNR; ties in the order of the rows."""
        goodness = -self.figures["lpips"] if "lpips" in self.figures else self.figures["psnr"]
        return np.argsort(goodness, kind="stable")


class Tally:
    """Takes in a process's pictures, batch by batch."""

    def __init__(self, networks: Networks, codes: int, device: torch.device):
        self.networks, self.device = networks, device
        self.rows: list[int] = []
        self.batches: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "ssim_range_2": []}
        if networks.perceptual is not None:
            self.batches["lpips"] = []
        self.histogram = torch.zeros(codes, dtype=torch.int64)
        self.sides = [Accumulator(networks.features) for _ in range(2)] if networks.features else []

    @torch.inference_mode()
    def add(self, rows: Sequence[int], originals: np.ndarray, reconstructions: np.ndarray, codes: Tensor) -> None:
        """Pictures uint8 [B, H, W, 3], codes int64 [B, h, w]."""
        pair = [torch.from_numpy(images).to(self.device) for images in (originals, reconstructions)]
        self.rows += rows
        self.histogram += torch.bincount(codes.flatten().cpu(), minlength=len(self.histogram))
        found = {"psnr": psnr(*pair), "ssim": ssim(*pair), "ssim_range_2": ssim(*pair, data_range=2.0)}
        if self.networks.perceptual is not None:
            signed = [scale(images.permute(0, 3, 1, 2)) for images in pair]
            # TF32 would move the figure in its third digit, as it does rFID.
            with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
                found["lpips"] = self.networks.perceptual(*signed)
        for name, values in found.items():
            self.batches[name].append(values.cpu().double())
        for side, images in zip(self.sides, pair):
            side.add(images)

    def found(self) -> Found:
        figures = {name: torch.cat([torch.empty(0, dtype=torch.float64), *batches]).numpy()
                   for name, batches in self.batches.items()}  # fmt: skip
        statistics = None
        if self.sides:
            width = self.networks.features.width
            statistics = tuple(side.activations().pool_statistics if side.statistics else Gaussian.empty(width)
                               for side in self.sides)  # fmt: skip
        return Found(np.array(self.rows, np.int64), figures, self.histogram, statistics)


@dataclass
class Report:
    """The figures with all that is needed to judge them."""

    found: Found
    networks: Networks
    made_by: dict
    notes: list[str]
    device: str
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, figures = len(self.found.rows), self.found.figures
        self.notes = [*self.notes, *self.networks.notes]
        differing = np.isfinite(figures["psnr"])
        self.scores = {name: float(values.mean()) for name, values in figures.items()}
        if not differing.all():
            self.notes.append(f"{count - differing.sum()} of {count} pictures are reproduced exactly, with an infinite "
                              "PSNR; the mean is that of the others")  # fmt: skip
            self.scores["psnr"] = float(figures["psnr"][differing].mean()) if differing.any() else float("inf")
        if self.found.statistics is not None:
            self.add_rfid(*self.found.statistics)
        bits = entropy(self.found.histogram)
        self.scores |= {"codebook_usage": usage(self.found.histogram), "code_entropy": bits, "code_perplexity": 2**bits}

    def add_rfid(self, originals: Gaussian, reconstructions: Gaussian) -> None:
        width = self.networks.features.width
        if originals.count < 2:
            self.notes.append("rFID is left out: it needs two pictures at least")
            return
        self.scores["rfid"] = frechet_distance(originals.mean, originals.covariance,
                                               reconstructions.mean, reconstructions.covariance)  # fmt: skip
        if originals.count < width:
            self.notes.append(f"rFID is of {too_few(originals.count, width)}")

    def lines(self) -> list[str]:
        first = self.networks.features.caveat("the rFID compares") if "rfid" in self.scores else []
        names = dict(SCORES)
        if self.networks.perceptual_name != "VGG16":
            names["lpips"] += f" (on {self.networks.perceptual_name}, not VGG16: compares with no published one)"
        used, codes = int((self.found.histogram > 0).sum()), len(self.found.histogram)
        names["codebook_usage"] += f" ({used} of {codes} codes)"
        names["code_entropy"] = f"Code entropy (bits, at most {log2(codes):g})"
        return [*first, f"PSNR: {self.scores['psnr']:f}, SSIM: {self.scores['ssim']:f}",
                *(f"{words}: {self.scores[name]:f}" for name, words in names.items() if name in self.scores),
                f"Pictures: {len(self.found.rows)}", *(f"note: {note}" for note in self.notes)]  # fmt: skip

    def data(self) -> dict:
        networks, used = self.networks, {}
        if networks.perceptual is not None:
            used["lpips"] = {"name": networks.perceptual_name, "checksum": networks.perceptual_checksum,
                             "comparable_with_published": networks.perceptual_name == "VGG16"}  # fmt: skip
        if networks.features is not None:
            used["rfid"] = {"name": networks.features.name, "checksum": networks.features.checksum,
                            "features": networks.features.width,
                            "comparable_with_published": networks.features.standard}  # fmt: skip
        return {
            "scores": {name: finite(value) for name, value in self.scores.items()},
            "pictures": len(self.found.rows),
            "codes_chosen": int((self.found.histogram > 0).sum()),
            "notes": self.notes,
            "protocol": PROTOCOL,
            "networks": used,
            "made_by": self.made_by,
            **circumstances(self.device),
        }


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else None
