"""PSNR, SSIM and the figures of a codebook: scikit-image's, the formulas' and those of cases that are known."""

import numpy as np
import pytest
import torch

from evaluations.reconstruct import entropy, psnr, ssim, usage


def pairs(height: int = 19, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Five pairs: smooth with noise, pure noise, an offset, black and white, a picture beside its negative."""
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 50, height)[:, None, None] * np.array([1, 0.5, 0])
    smooth = ramp.astype(np.uint8)
    noise = random.integers(0, 256, (2, height, width, 3), np.uint8)
    noisy = np.clip(smooth + random.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
    first = np.stack([smooth, noise[0], smooth // 2, np.zeros_like(smooth), noise[1]])
    return first, np.stack([noisy, noise[1], smooth // 2 + 40, np.full_like(smooth, 255), 255 - noise[1]])


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def window_by_window(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """Wang et al. 2004, eq. 13, of [H, W, 3] in [0, 1]."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    for channel in range(3):
        for top in range(x.shape[0] - 6):
            for left in range(x.shape[1] - 6):
                a, b = (image[top : top + 7, left : left + 7, channel].ravel() for image in (x, y))
                (var_a, cov), (_, var_b) = np.cov(a, b)
                means = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
                found.append(means * (2 * cov + c2) / (var_a + var_b + c2))
    return float(np.mean(found))


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_is_the_formula_s_in_every_window(data_range):
    first, second = pairs()
    expected = [window_by_window(x / 255, y / 255, data_range) for x, y in zip(first, second)]
    np.testing.assert_allclose(ssim(*tensors(first, second), data_range), expected, rtol=1e-10)


def test_both_are_scikit_image_s():
    metrics = pytest.importorskip("skimage.metrics")
    first, second = pairs(40, 33)
    for i, (x, y) in enumerate(zip(first / 255.0, second / 255.0)):
        assert float(psnr(*tensors(first, second))[i]) == pytest.approx(
            metrics.peak_signal_noise_ratio(x, y, data_range=1.0), rel=1e-12
        )
        for data_range in (1.0, 2.0):
            expected = metrics.structural_similarity(x, y, channel_axis=-1, data_range=data_range)
            assert float(ssim(*tensors(first, second), data_range)[i]) == pytest.approx(expected, rel=1e-9)


def test_psnr_of_known_errors():
    x = np.full((3, 8, 8, 3), 100, np.uint8)
    y = x + np.array([0, 1, 51], np.uint8)[:, None, None, None]
    y[2, :, :, 1:] -= 51  # one channel of three is off by a fifth of the range
    assert psnr(*tensors(x, y)).tolist() == pytest.approx([np.inf, 20 * np.log10(255), 10 * np.log10(3 * 25)])


def test_the_same_picture_is_as_close_as_can_be():
    first, second = tensors(*pairs())
    assert torch.equal(ssim(first, first), torch.ones(5, dtype=torch.float64))
    assert (ssim(first, second) < 1).all()
    torch.testing.assert_close(ssim(first, second), ssim(second, first), rtol=1e-12, atol=0)


def test_a_picture_s_figures_do_not_depend_on_its_batch():
    first, second = tensors(*pairs())
    for figure in (psnr, ssim):
        alone = torch.cat([figure(first[i : i + 1], second[i : i + 1]) for i in range(5)])
        assert torch.equal(alone, figure(first, second))


def test_codebook_figures_of_known_histograms():
    even, one, half = torch.full((16,), 3), torch.tensor([0, 9, 0, 0]), torch.tensor([2, 2, 0, 4])
    assert [usage(h) for h in (even, one, half)] == [1.0, 0.25, 0.75]
    assert [entropy(h) for h in (even, one, half)] == pytest.approx([4.0, 0.0, 1.5])
