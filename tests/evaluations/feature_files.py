"""Small feature networks and picture files for tests of scores."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from engine.checkpoint import save_safetensors
from evaluations.convnet import ConvNet, ConvNetConfig
from evaluations.inception import Inception

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


def classifier_file(path: Path, width: int = 2, seed: int = 0) -> str:
    """A random classifier of 3 classes; a picture has 4 * width pooled features."""
    torch.manual_seed(seed)
    net = ConvNet(ConvNetConfig(width, 3, SIDE))
    meta = {"format": 1, "kind": "classifier", "config": asdict(net.config), "class_names": None}
    save_safetensors(path, net.state_dict(), meta)
    return str(path)


def pictures(count: int, seed: int = 0, side: int = SIDE, top: int = 256) -> np.ndarray:
    """uint8 [count, side, side, 3], below `top`."""
    return np.random.default_rng(seed).integers(0, top, (count, side, side, 3), np.uint8)
