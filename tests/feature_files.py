"""Small feature networks and picture files for tests of scores."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from engine.checkpoint import save_safetensors
from evaluations.convnet import ConvNet, ConvNetConfig
from evaluations.images import write_npz
from evaluations.inception import Inception
from evaluations.options import Evaluate, EvaluatorOptions, FeatureOptions

SIDE = 8  # pixels of the pictures that the classifier reads


def inception_state() -> dict[str, torch.Tensor]:
    """Random weights by the names of the ports' file; activations keep their size from layer to layer."""
    with torch.device("meta"):
        names = {name: value.shape for name, value in Inception().state_dict().items()}
    random, state = torch.Generator().manual_seed(0), {}
    for name, shape in names.items():
        place, kind = name.rsplit(".", 1)
        if place == "fc":
            state[name] = torch.randn(shape, generator=random) / 10
        elif kind == "weight":
            state[f"{place}.conv.weight"] = torch.randn(shape, generator=random) * (2 / shape[1:].numel()) ** 0.5
            for part, scale, shift in (("weight", 0.1, 1), ("bias", 0.1, 0), ("running_mean", 0.1, 0)):
                state[f"{place}.bn.{part}"] = torch.randn(shape[0], generator=random) * scale + shift
            state[f"{place}.bn.running_var"] = torch.rand(shape[0], generator=random) + 0.5
    return state


def classifier_file(path: Path, width: int = 2, seed: int = 0, side: int = SIDE) -> str:
    """A random classifier of 3 classes; a picture has 4 * width pooled features."""
    torch.manual_seed(seed)
    net = ConvNet(ConvNetConfig(width, 3, side))
    meta = {"format": 1, "kind": "classifier", "config": asdict(net.config), "class_names": None}
    save_safetensors(path, net.state_dict(), meta)
    return str(path)


def pictures(count: int, seed: int = 0, side: int = SIDE, top: int = 256) -> np.ndarray:
    """uint8 [count, side, side, 3], below `top`."""
    return np.random.default_rng(seed).integers(0, top, (count, side, side, 3), np.uint8)


def made(folder: Path, name: str, kind: str | None = None, count: int = 20, side: int = SIDE, **meta) -> Path:
    """NAME.npz with random pictures and, where they have a kind, papers."""
    path = folder / f"{name}.npz"
    papers = {"kind": kind, **meta} if kind else {}
    write_npz(path, pictures(count, side=side), (count, side, side, 3), papers)
    return path


def options(net_file: str, reference, samples, force: bool = False, **features) -> Evaluate:
    """Of the evaluator."""
    made = FeatureOptions(net_file, batch_size=7, device="cpu", **features)
    return Evaluate(EvaluatorOptions(str(reference), str(samples), force), made)
