"""The two discriminators that can train a tokenizer. Pictures [B, 3, H, W] in [-1, 1] -> logits, real is positive.

PatchGAN: Isola et al. 2017 (pix2pix), as in VQGAN. StyleGAN-like: the residual discriminator of Karras et al. 2020
(StyleGAN2), with plain convolutions and without the minibatch statistic.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchGAN(nn.Module):
    """One logit per patch: [B, 3, H, W] -> [B, 1, h, w]. The patch is 16, 34, 70 pixels wide for 1, 2, 3 layers.

    Batch norm takes its statistics over the batch that this process sees.
    """

    def __init__(self, num_layers: int = 3, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        in_width = width
        for i in range(1, num_layers + 1):
            out_width = width * min(2**i, 8)
            stride = 1 if i == num_layers else 2
            layers += [
                nn.Conv2d(in_width, out_width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out_width),
                nn.LeakyReLU(0.2),
            ]
            in_width = out_width
        layers.append(nn.Conv2d(in_width, 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class Blur(nn.Module):
    """The separable [1, 2, 1] low-pass, so that the stride after it does not alias (Zhang 2019)."""

    f: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = torch.outer(self.f, self.f)
        kernel = (kernel / kernel.sum()).to(x.dtype).expand(channels, 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=channels)


class ResidualBlock(nn.Module):
    """[B, C, H, W] -> [B, C', H/2, W/2]."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        self.conv_res = nn.Conv2d(in_width, out_width, 1, stride=2)
        self.net = nn.Sequential(
            nn.Conv2d(in_width, out_width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(out_width, out_width, 3, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.downsample = nn.Sequential(Blur(), nn.Conv2d(out_width, out_width, 3, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.downsample(self.net(x)) + self.conv_res(x)) / math.sqrt(2)


class StyleGANDiscriminator(nn.Module):
    """One logit per picture: [B, 3, S, S] -> [B, 1], S = image_size."""

    def __init__(self, image_size: int = 256):
        super().__init__()
        if image_size < 32 or image_size & (image_size - 1):
            raise ValueError(
                f"--disc-type stylegan with --image-size {image_size}: it takes a power of two from 32 on; "
                "use --disc-type patchgan for other sizes"
            )
        self.image_size = image_size
        sizes = [image_size >> i for i in range(int(math.log2(image_size)) - 1)]  # S, S/2, ..., 4
        widths = [min(512, 16384 // size) for size in sizes]
        self.blocks = nn.ModuleList([nn.Conv2d(3, widths[0], 3, padding=1), nn.LeakyReLU(0.2)])
        self.blocks.extend(ResidualBlock(i, o) for i, o in zip(widths, widths[1:]))
        self.final_conv = nn.Sequential(nn.Conv2d(widths[-1], 512, 3, padding=1), nn.LeakyReLU(0.2))
        self.final_linear = nn.Sequential(nn.Linear(512 * 4 * 4, 512), nn.LeakyReLU(0.2), nn.Linear(512, 1))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, a=0.2)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"a picture of {x.shape[-2]}x{x.shape[-1]}: this discriminator takes --image-size {self.image_size}"
            )
        for block in self.blocks:
            x = block(x)
        return self.final_linear(self.final_conv(x).flatten(1))  # [B, 512, 4, 4] -> [B, 1]


def build_discriminator(disc_type: str, image_size: int) -> nn.Module:
    """--disc-type patchgan or stylegan for pictures of `image_size`; published shapes from 128 and 32 pixels on."""
    if disc_type == "stylegan":
        return StyleGANDiscriminator(image_size)
    if disc_type == "patchgan":
        if image_size < 16:
            raise ValueError(f"--disc-type patchgan with --image-size {image_size}: takes 16 pixels or more")
        # Three layers judge patches of 70 pixels, more than the whole of a small picture.
        return PatchGAN(num_layers=3 if image_size >= 128 else 2)
    raise ValueError(f"--disc-type {disc_type}: choose patchgan or stylegan")
