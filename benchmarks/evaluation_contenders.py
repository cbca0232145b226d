"""What a score costs: pictures through the Inception network, precision and recall, the Fréchet distance, memory.

All networks have the same random weights and see the same pictures, which lie in memory.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import publish, rounds, shortest
from benchmarks.options import EvaluationBenchmark
from evaluations.archive import open_pictures
from evaluations.c2i.evaluate_task import compare as score
from evaluations.feature_task import load_feature_net
from evaluations.features import Accumulator, FeatureNet
from evaluations.images import write_npz
from evaluations.inception import POOL, SPATIAL, Inception
from evaluations.metrics import Gaussian, frechet_distance, precision_recall
from evaluations.options import FeatureOptions


def write_weights(path: Path) -> None:
    """Random weights in the file format of the ports."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Inception().state_dict().items()}
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        place, kind = name.rsplit(".", 1)
        if place == "fc":
            state[name] = torch.randn(shape) / 10
        elif kind == "weight":
            state[f"{place}.conv.weight"] = torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5
            state |= {f"{place}.bn.{part}": torch.ones(shape[0]) for part in ("weight", "running_var")}
            state |= {f"{place}.bn.{part}": torch.zeros(shape[0]) for part in ("bias", "running_mean")}
    torch.save(state, path)


# ---- feature extraction: seconds a picture


def extraction(options: EvaluationBenchmark, network: Callable[[Tensor], object]) -> dict[str, float]:
    """Of uint8 pictures [B, H, W, 3] on the CPU; `network` moves and prepares them."""
    size = options.image_size
    images = torch.randint(0, 256, (options.pictures, size, size, 3), dtype=torch.uint8)

    def work() -> None:
        for batch in images.split(options.batch_size):
            network(batch)
        if options.device == "cuda":
            torch.cuda.synchronize()

    # The same arithmetic for all: ours never rounds the inputs of convolutions to TF32.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        network(images[: options.batch_size])  # warm
        return {"picture": shortest(work, 1) / options.pictures}


def ours(options: EvaluationBenchmark, weights: Path) -> dict[str, float]:
    """With all that a score needs: statistics of both kinds of features, and the features kept."""
    # The pictures go through it twice, and a batch to warm up.
    accumulator = Accumulator(load_feature_net(str(weights), options.device), 2 * options.pictures + options.batch_size)
    return extraction(options, accumulator.add)


def pytorch_fid(options: EvaluationBenchmark, weights: Path) -> dict[str, float]:
    """Features of pool_3 alone; no statistics."""
    from pytorch_fid import inception

    with mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(weights)):
        net = inception.InceptionV3([3]).to(options.device).eval()
    return extraction(options, lambda x: net(x.to(options.device).permute(0, 3, 1, 2).float() / 255)[0].cpu())


def torch_fidelity(options: EvaluationBenchmark, weights: Path) -> dict[str, float]:
    """Features of pool_3 alone; no statistics."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net = FeatureExtractorInceptionV3("net", ["2048"], feature_extractor_weights_path=str(weights)).to(options.device)
    return extraction(options, lambda x: net(x.to(options.device).permute(0, 3, 1, 2).contiguous())[0].cpu())


# ---- distances: seconds


def vectors(count: int, seed: int) -> Tensor:
    """Non-negative and correlated, as pooled features are."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(64, POOL, generator=torch.Generator().manual_seed(0)) / 8
    noise = torch.randn(count, POOL, generator=random).mul_(0.2)
    return noise.add_(torch.randn(count, 64, generator=random) @ mixing).relu_()


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Once: these take from seconds to minutes."""
    start = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - start}


def our_precision(options: EvaluationBenchmark, sampled: int) -> dict[str, float]:
    a, b = (x.to(options.device) for x in (vectors(options.real, 1), vectors(sampled, 2)))
    return timed(lambda: precision_recall(a, b))


def their_precision(options: EvaluationBenchmark, sampled: int) -> dict[str, float]:
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = (x.to(options.device) for x in (vectors(options.real, 1), vectors(sampled, 2)))
    return timed(lambda: prc_features_to_metric(b, a, prc_neighborhood=3, prc_batch_size=10_000, verbose=False,
                                                save_cpu_ram=True))  # fmt: skip


def our_distance(options: EvaluationBenchmark) -> dict[str, float]:
    a, b = Gaussian.of(vectors(4000, 1)), Gaussian.of(vectors(4000, 2))
    return timed(lambda: frechet_distance(a.mean, a.covariance, b.mean, b.covariance))


def their_distance(options: EvaluationBenchmark) -> dict[str, float]:
    from pytorch_fid.fid_score import calculate_frechet_distance

    a, b = (vectors(4000, seed).numpy().astype(np.float64) for seed in (1, 2))
    statistics = [f(x, **more) for x in (a, b) for f, more in ((np.mean, {"axis": 0}), (np.cov, {"rowvar": False}))]
    return timed(lambda: calculate_frechet_distance(*statistics))


# ---- the whole evaluator, but for the network


class Cheap(nn.Module):
    """As wide as Inception, at the cost of nothing: some of a picture's pixels."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.flatten(1)
        return flat[:, :POOL].clone(), flat[:, POOL : POOL + SPATIAL]  # a view would keep all of the picture


def whole(options: EvaluationBenchmark) -> dict[str, float]:
    """Reading, statistics, keeping, precision and recall, both distances: of an archive on the disk."""
    size, numbers = options.image_size, np.random.default_rng(0)
    net = FeatureNet("cheap", "0" * 16, False, Cheap(), torch.zeros(1008, POOL))

    def images(count: int):
        few = numbers.integers(256, size=(64, size, size, 3), dtype=np.uint8)
        return (np.roll(few[i % 64], i // 64) for i in range(count))

    with tempfile.TemporaryDirectory() as folder:
        for name, count in (("real", options.real), ("sampled", options.archive)):
            write_npz(Path(folder) / f"{name}.npz", images(count), (count, size, size, 3), {})
        sides = [open_pictures(Path(folder) / f"{name}.npz") for name in ("real", "sampled")]
        with contextlib.redirect_stderr(io.StringIO()):
            return timed(lambda: score(*sides, net, FeatureOptions(batch_size=options.batch_size)))


def compare(options: EvaluationBenchmark) -> None:
    """Measure everything and publish the table."""
    if options.pictures < options.batch_size:
        raise ValueError(f"--pictures {options.pictures}: must be at least --batch-size {options.batch_size}")
    networks = {"ours, with statistics": ours, "pytorch-fid": pytorch_fid, "torch-fidelity": torch_fidelity}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        write_weights(weights)
        best = rounds({name: (network, options, weights) for name, network in networks.items()}, options.repeats)
    once: dict[str, tuple] = {}
    for count in options.sampled:
        sizes = f"{count:,} x {options.real:,}"
        once[f"precision and recall, {sizes}: ours"] = (our_precision, options, count)
        once[f"precision and recall, {sizes}: torch-fidelity"] = (their_precision, options, count)
    once["Fréchet distance, 2048 features: ours"] = (our_distance, options)
    once["Fréchet distance, 2048 features: pytorch-fid"] = (their_distance, options)
    if options.archive:
        once[f"the evaluator without its network, {options.archive:,} x {options.real:,} pictures"] = (whole, options)
    fastest = max(1 / best[name]["picture"] for name in list(networks)[1:])
    rows = []
    for name in networks:
        rate = 1 / best[name]["picture"]
        rows.append([f"features: {name}", f"{rate:.1f}", f"{rate / fastest:.2f}", "", f"{best[name]['peak']:.0f}"])
    for name, figures in rounds(once, 1).items():
        rows.append([name, "", "", f"{figures['seconds']:.1f}", f"{figures['peak']:.0f}"])
    note = (
        f"{options.pictures} generated pictures of {options.image_size} px in memory, batches of {options.batch_size}, "
        f"random weights, float32 without TF32, on {options.device}; best of {options.repeats} rounds. Ours gives "
        "pool_3 and the spatial features with the statistics of both, the others pool_3 alone. Precision and recall "
        "of 2048 features, k = 3, torch-fidelity's with save_cpu_ram."
    )
    if options.archive:
        note += (" The last line reads archives from the disk through a network that costs nothing, and computes all "
                 "five scores: its memory is what a run needs beside the network.")  # fmt: skip
    columns = ["", "pictures/s", "times the faster other", "seconds", "peak MiB"]
    output = f"benchmarks/results/evaluation_{options.device}.md" if options.output == "auto" else options.output
    card = torch.cuda.get_device_name() if options.device == "cuda" else None
    publish(output, "Evaluation", columns, rows, [note], card)
