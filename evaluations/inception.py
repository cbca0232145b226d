"""The network that FID is defined on: Inception-v3 as TensorFlow's graph of 2015-12-05 has it (Szegedy et al. 2016).

It differs from later Inception-v3s: average pooling leaves padding out of the mean, the last block pools by maximum,
and there are 1008 classes. Batch normalisation (eps 0.001) is folded into the convolutions; parameters are otherwise
named as in the ports to torch whose weight file it reads.

Axes: B pictures, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299  # pixels that the network sees
POOL, SPATIAL, CLASSES = 2048, 17 * 17 * 7, 1008
EPSILON = 1e-3
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
IGNORED = ("num_batches_tracked", "AuxLogits.")  # of a weight file: they have no say in the features


class ConvReLU(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(super().forward(x))


def conv(in_width: int, out_width: int, height: int, width: int | None = None, stride: int = 1,
         same: bool = True) -> ConvReLU:  # fmt: skip
    """A kernel of height x width (default: a square); `same`: padded so that the map keeps its size."""
    width = width or height
    padding = (height // 2, width // 2) if same else 0
    return ConvReLU(in_width, out_width, (height, width), stride=stride, padding=padding)


class PoolBranch(ConvReLU):
    """3x3 average pooling without the padding, then a 1x1 convolution.

    Both are linear, and the mean of a constant is the constant: convolving first pools a fraction of the channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv_forward(x, self.weight, self.bias)
        return F.relu_(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))


class InceptionA(nn.Module):
    """35 x 35."""

    def __init__(self, in_width: int, pool_width: int):
        super().__init__()
        self.branch1x1 = conv(in_width, 64, 1)
        self.branch5x5_1 = conv(in_width, 48, 1)
        self.branch5x5_2 = conv(48, 64, 5)
        self.branch3x3dbl_1 = conv(in_width, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3)
        self.branch3x3dbl_3 = conv(96, 96, 3)
        self.branch_pool = PoolBranch(in_width, pool_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(x)], 1)


class InceptionB(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self, in_width: int):
        super().__init__()
        self.branch3x3 = conv(in_width, 384, 3, stride=2, same=False)
        self.branch3x3dbl_1 = conv(in_width, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3)
        self.branch3x3dbl_3 = conv(96, 96, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    """17 x 17."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        self.branch1x1 = conv(in_width, 192, 1)
        self.branch7x7_1 = conv(in_width, width, 1)
        self.branch7x7_2 = conv(width, width, 1, 7)
        self.branch7x7_3 = conv(width, 192, 7, 1)
        self.branch7x7dbl_1 = conv(in_width, width, 1)
        self.branch7x7dbl_2 = conv(width, width, 7, 1)
        self.branch7x7dbl_3 = conv(width, width, 1, 7)
        self.branch7x7dbl_4 = conv(width, width, 7, 1)
        self.branch7x7dbl_5 = conv(width, 192, 1, 7)
        self.branch_pool = PoolBranch(in_width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(x)], 1)


class InceptionD(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self, in_width: int):
        super().__init__()
        self.branch3x3_1 = conv(in_width, 192, 1)
        self.branch3x3_2 = conv(192, 320, 3, stride=2, same=False)
        self.branch7x7x3_1 = conv(in_width, 192, 1)
        self.branch7x7x3_2 = conv(192, 192, 1, 7)
        self.branch7x7x3_3 = conv(192, 192, 7, 1)
        self.branch7x7x3_4 = conv(192, 192, 3, stride=2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    """8 x 8."""

    def __init__(self, in_width: int, max_pool: bool):
        super().__init__()
        self.branch1x1 = conv(in_width, 320, 1)
        self.branch3x3_1 = conv(in_width, 384, 1)
        self.branch3x3_2a = conv(384, 384, 1, 3)
        self.branch3x3_2b = conv(384, 384, 3, 1)
        self.branch3x3dbl_1 = conv(in_width, 448, 1)
        self.branch3x3dbl_2 = conv(448, 384, 3)
        self.branch3x3dbl_3a = conv(384, 384, 1, 3)
        self.branch3x3dbl_3b = conv(384, 384, 3, 1)
        self.max_pool = max_pool
        self.branch_pool = ConvReLU(in_width, 192, 1) if max_pool else PoolBranch(in_width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else x
        branches = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three),
                    self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]  # fmt: skip
        return torch.cat(branches, 1)


class Inception(nn.Module):
    """Pictures -> features. The names in comments are the graph's."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = conv(3, 32, 3, stride=2, same=False)
        self.Conv2d_2a_3x3 = conv(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = conv(32, 64, 3)
        self.Conv2d_3b_1x1 = conv(64, 80, 1)
        self.Conv2d_4a_3x3 = conv(80, 192, 3, same=False)
        self.Mixed_5b = InceptionA(192, 32)  # mixed
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)  # mixed_6
        self.Mixed_6e = InceptionC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280, max_pool=False)
        self.Mixed_7c = InceptionE(2048, max_pool=True)
        self.fc = nn.Linear(POOL, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, 3, H, W] from 0 to 255 -> pool_3 [B, 2048], and mixed_6/conv[..., :7] flattened, [B, 2023].

        Pictures of another size than 299 are resized as the graph does it.
        """
        x = images if images.shape[-2:] == (SIDE, SIDE) else resize(images)
        x = ((x - 128) / 128).contiguous(memory_format=torch.channels_last)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [B, 64, 147, 147]
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # [B, 192, 71, 71]
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # [B, 288, 35, 35]
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # [B, 768, 17, 17]
        x = self.Mixed_6d(x)
        spatial = x[:, :7].permute(0, 2, 3, 1).flatten(1)  # the 1x1 branch comes first; channels last, as the graph's
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # [B, 2048, 8, 8]
        return x.mean((2, 3)), spatial


def resize(images: Tensor, side: int = SIDE) -> Tensor:
    """[B, 3, H, W] -> [B, 3, side, side] by TensorFlow 1's ResizeBilinear.

    No anti-aliasing, and the corners of the pixel grids coincide: output i lies at i * H / side, not at
    (i + 0.5) * H / side - 0.5.
    """
    for dim in (2, 3):
        size = images.shape[dim]
        places = torch.arange(side, dtype=torch.float32, device=images.device) * (size / side)
        low = places.long()
        share = (places - low).view(-1, 1) if dim == 2 else places - low
        high = (low + 1).clamp(max=size - 1)
        images = torch.lerp(images.index_select(dim, low), images.index_select(dim, high), share.to(images.dtype))
    return images


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of Inception() from a weight file's, with convolutions and batch norms apart.

    KeyError where a convolution has no batch norm.
    """
    out = {}
    for name, value in state.items():
        if any(part in name for part in IGNORED):
            continue
        if name.endswith(".conv.weight"):
            place = name.removesuffix(".conv.weight")
            weight, bias, mean, variance = (state[f"{place}.bn.{key}"].double() for key in BATCH_NORM)
            gain = weight / (variance + EPSILON).sqrt()
            out[f"{place}.weight"] = (value.double() * gain[:, None, None, None]).to(value.dtype)
            out[f"{place}.bias"] = (bias - mean * gain).to(value.dtype)
        elif ".bn." not in name:
            out[name] = value
    return out
