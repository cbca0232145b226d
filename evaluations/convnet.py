"""A small residual classifier for pictures of 32 to 64 pixels, to score samples and to measure distances by.

Pre-activation residual blocks (He et al. 2016). Pictures are float [B, 3, S, S] in [-1, 1].
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class ConvNetConfig:
    width: int = 64  # channels of the first stage; the next have twice and four times as many
    num_classes: int = 10
    image_size: int = 32  # from 64 on, the first convolution strides down to 32

    def __post_init__(self) -> None:
        for name in ("width", "num_classes", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"a classifier with {name}={getattr(self, name)}: must be at least 1")


class Block(nn.Module):
    def __init__(self, in_width: int, out_width: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        same = in_width == out_width and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_width, out_width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        h = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return h + (x if self.shortcut is None else self.shortcut(active))


class ConvNet(nn.Module):
    """Three stages of two blocks: at 32, 16 and 8 pixels."""

    def __init__(self, config: ConvNetConfig):
        super().__init__()
        self.config = config
        widths = [config.width, 2 * config.width, 4 * config.width]
        self.stem = nn.Conv2d(3, config.width, 3, stride=max(1, config.image_size // 32), padding=1, bias=False)
        self.stages = nn.ModuleList()
        for i, (in_width, out_width) in enumerate(zip([config.width, *widths], widths)):
            stride = 1 if i == 0 else 2
            self.stages.append(nn.Sequential(Block(in_width, out_width, stride), Block(out_width, out_width, 1)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.head = nn.Linear(widths[-1], config.num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """The activations after each stage, non-negative: [B, width * 2^i, s_i, s_i]."""
        maps = []
        x = self.stem(x)
        for stage, norm in zip(self.stages, self.norms):
            x = stage(x)
            maps.append(F.relu(norm(x)))
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """[B, 4 * width]: the last activations, averaged over positions."""
        return self.features(x)[-1].mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        return self.head(self.pooled(x))
