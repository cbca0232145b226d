"""From pictures to what is compared: a network's features of every picture, and their statistics.

Axes: B pictures of a batch, N of a file, H height, W width, D pooled features, S spatial features, C classes.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from evaluations.convnet import ConvNet
from evaluations.inception import Inception
from evaluations.metrics import Gaussian

SPATIAL_CHANNELS = 7  # as sFID takes of Inception


@dataclass
class FeatureNet:
    """A frozen network that pictures are compared by, in eval mode, float32."""

    name: str
    checksum: str  # of its weights
    standard: bool  # whether published scores are in its features
    module: nn.Module  # float [B, 3, H, W] from 0 to 255 -> pooled [B, D], spatial [B, S]
    head: Tensor  # [C, D]: logits without bias
    side: int | None = None  # the only size of pictures that it reads; None: it resizes them itself

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def width(self) -> int:
        """D."""
        return self.head.shape[1]

    def caveat(self, scores_compare: str = "these scores compare") -> list[str]:
        """A report's first line where the network is not the standard one; `scores_compare`: the sentence's subject and
        verb."""
        if self.standard:
            return []
        return [f"Features of {self.name}, network {self.checksum}, not of Inception 2015-12-05: {scores_compare} with "
                "no published ones"]  # fmt: skip

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, H, W, 3], uint8 or float, from 0 to 255 -> pooled [B, D], spatial [B, S]; float32."""
        if self.side is not None and images.shape[1:3] != (self.side, self.side):
            raise ValueError(f"{self.name} reads pictures of {self.side} x {self.side} px, these are "
                             f"{images.shape[2]} x {images.shape[1]}")  # fmt: skip
        # cuDNN would round the inputs of convolutions to 10 bits (TF32), and move scores in their third digit.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            return self.module(images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float())

    @torch.inference_mode()
    def logits(self, pooled: Tensor) -> Tensor:
        """[N, D] -> [N, C] on the CPU."""
        return torch.cat([(part.to(self.device) @ self.head.T).cpu() for part in pooled.split(10_000)])


class ClassifierFeatures(nn.Module):
    """A small classifier's features, shaped as Inception's are: for small pictures, or where Inception's weights
    cannot be had."""

    def __init__(self, net: ConvNet):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        last = self.net.features(x)[-1]  # [B, 4 * width, s, s]
        return last.mean((2, 3)), last[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def inception_net(module: Inception, checksum: str, standard: bool) -> FeatureNet:
    name = "Inception 2015-12-05" if standard else "Inception of unknown weights"
    return FeatureNet(name, checksum, standard, module, module.fc.weight)


def classifier_net(net: ConvNet, checksum: str, name: str) -> FeatureNet:
    return FeatureNet(name, checksum, False, ClassifierFeatures(net), net.head.weight, net.config.image_size)


@dataclass
class Activations:
    """What is kept of a set of pictures."""

    pooled: Tensor  # float32 [N, D]
    pool_statistics: Gaussian
    spatial_statistics: Gaussian

    def state(self) -> dict[str, Tensor]:
        """As tensors by name, to be stored."""
        state = {"pooled": self.pooled}
        for name in ("pool", "spatial"):
            statistics = getattr(self, f"{name}_statistics")
            state |= {f"{name}_mean": statistics.mean, f"{name}_scatter": statistics.scatter}
        return state

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Activations":
        count = len(state["pooled"])
        both = [Gaussian(count, state[f"{name}_mean"], state[f"{name}_scatter"]) for name in ("pool", "spatial")]
        return cls(state["pooled"], *both)


class Accumulator:
    """Activations of pictures that come batch by batch."""

    def __init__(self, net: FeatureNet, keep: int = 0):
        """keep: of so many pictures the features themselves, too; none: their statistics alone."""
        self.net = net
        # One tensor, on the device: a copy a batch would wait for the network each time, and a tensor a batch lies
        # between the batches of pictures in such a way that malloc can use none of their memory again.
        self.pooled = torch.empty(keep, net.width, device=net.device)
        self.kept = 0
        self.statistics: list[Gaussian] = []

    def add(self, images: Tensor) -> None:
        """Pictures [B, H, W, 3] from 0 to 255."""
        features = self.net(images)
        if not self.statistics:
            # MPS has no float64.
            device = self.net.device if self.net.device.type == "cuda" else "cpu"
            self.statistics = [Gaussian.empty(part.shape[1], device) for part in features]
        for statistics, part in zip(self.statistics, features):
            statistics.add(Gaussian.of(part.to(statistics.mean.device)))
        if len(self.pooled):
            self.pooled[self.kept : self.kept + len(images)] = features[0]
            self.kept += len(images)

    def activations(self) -> Activations:
        both = [Gaussian(s.count, s.mean.cpu(), s.scatter.cpu()) for s in self.statistics]
        return Activations(self.pooled[: self.kept].cpu(), *both)


def extract(net: FeatureNet, batches: Iterable[np.ndarray], count: int, what: str) -> Activations:
    """Of pictures uint8 [B, H, W, 3]; `what` stands beside the progress bar. Reading goes on beside the network."""
    accumulator = Accumulator(net, keep=count)
    with tqdm(total=count, desc=what, unit="picture", disable=None, leave=False) as bar:
        for batch in ahead(batches):
            accumulator.add(torch.from_numpy(batch))
            bar.update(len(batch))
    return accumulator.activations()


def ahead(items: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same, each read while the one before is used."""
    items = iter(items)
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = reader.submit(next, items, None)
            yield item
