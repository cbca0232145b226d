"""How close reconstructions are to their originals, and how evenly a codebook is used.

PSNR and SSIM (Wang et al. 2004) are those of scikit-image for pictures in [0, 1], channel by channel, by a uniform
window of 7 pixels. They are computed of bytes: the windows' sums are then whole numbers, exact on every device.

Axes: B pictures, H height, W width, K codes in the codebook.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 7
K1, K2 = 0.01, 0.03


def wide(x: Tensor) -> Tensor:
    """float64, but float32 on Apple's MPS, which has no wider."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Of pictures uint8 [B, H, W, 3] -> dB [B]; infinite where the two are the same."""
    error = (wide(originals) - wide(reconstructions)).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def ssim(originals: Tensor, reconstructions: Tensor, data_range: float = 1.0) -> Tensor:
    """Of pictures uint8 [B, H, W, 3] of at least 7 x 7 pixels, taken as [0, 1] -> [B].

    `data_range` decides the two constants alone; published reports of this tokenizer had 2, which makes it larger.
    """
    count = WINDOW**2
    x, y = (images.permute(0, 3, 1, 2).float() for images in (originals, reconstructions))
    sum_x, sum_y = window_sums(x), window_sums(y)
    # Sample covariances, divided by count - 1.
    scale = 1 / (count * (count - 1))
    var_x = (count * window_sums(x * x) - sum_x * sum_x) * scale
    var_y = (count * window_sums(y * y) - sum_y * sum_y) * scale
    covariance = (count * window_sums(x * y) - sum_x * sum_y) * scale
    mean_x, mean_y = sum_x / count, sum_y / count
    c1, c2 = ((k * data_range * 255) ** 2 for k in (K1, K2))
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (alike / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))).mean((1, 2, 3))


def window_sums(x: Tensor) -> Tensor:
    """Whole numbers [B, 3, H, W] up to 255^2 -> their sums in every window that lies within, [B, 3, H - 6, W - 6]."""
    return wide(F.avg_pool2d(x, WINDOW, stride=1, divisor_override=1))  # under 2^24, so that float32 adds exactly


def usage(histogram: Tensor) -> float:
    """The share of the codes that were chosen at least once; `histogram` [K] counts them."""
    return float((histogram > 0).double().mean())


def entropy(histogram: Tensor) -> float:
    """Of the choice of a code, in bits: log2 K where all are chosen equally often, 0 where it is always the same."""
    p = histogram.double() / histogram.sum()
    return float(-torch.xlogy(p, p).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64)))
