"""Crops: the published pixels."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.augmentation import center_crop_arr, mirror, random_crop_arr, ten_crop, to_tensor
from golden.fill import uniform

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "crops.npz")


def picture(height: int, width: int) -> Image.Image:
    small = ((uniform(f"img{height}x{width}", (6, 6, 3)) + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("center_crop")])
def test_center_crop_equals_the_published_one(key):
    source, size = key.removeprefix("center_crop/").split("_to_")
    crop = center_crop_arr(picture(*map(int, source.split("x"))), int(size))
    assert np.array_equal(np.asarray(crop), GOLDEN[key])


def test_ten_crop_equals_torchvisions():
    crops = ten_crop(picture(200, 260), 64, 1.1)
    assert np.array_equal(np.stack(crops), GOLDEN["ten_crop/200x260_to_64_range1.1"])
    with pytest.raises(ValueError, match="--crop-range 0.9"):
        ten_crop(picture(200, 260), 64, 0.9)


@pytest.mark.parametrize("area", [64, 65, 66, 67, 69, 71])
def test_ten_crop_of_odd_margins(area):
    transforms = pytest.importorskip("torchvision.transforms")
    source = picture(200, 260)
    expected = transforms.TenCrop(64)(center_crop_arr(source, area))
    ours = ten_crop(source, 64, (area + 0.5) / 64)
    assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_random_crop_spans_the_published_range():
    source = picture(100, 100)
    crops = [random_crop_arr(source, 40, draws=(scale, 0.0, 0.0)) for scale in (0.0, 0.5, 1 - 2**-53)]
    halved = source.resize((50, 50), Image.Resampling.BOX)  # 100 >= 2 * 40, 2 * 45 and 2 * 50
    whole = [np.asarray(halved.resize((side, side), Image.Resampling.BICUBIC))[:40, :40] for side in (40, 45, 50)]
    assert all(np.array_equal(crop, expected) for crop, expected in zip(crops, whole, strict=True))


def test_random_crop_reaches_every_corner_and_stays_inside():
    gradient = np.zeros((20, 30, 3), np.uint8)
    gradient[..., 0], gradient[..., 1] = np.arange(20)[:, None], np.arange(30)
    places = set()
    for top in np.linspace(0, 1 - 2**-53, 9):
        for left in np.linspace(0, 1 - 2**-53, 23):
            crop = np.asarray(random_crop_arr(Image.fromarray(gradient), 16, 0.8, 1.0, (1 - 2**-53, top, left)))
            assert crop.shape == (16, 16, 3)
            places.add(tuple(crop[0, 0, :2].tolist()))
    assert places == {(top, left) for top in range(5) for left in range(15)}


def test_a_picture_much_longer_than_wide_is_refused():
    center_crop_arr(Image.new("RGB", (100, 2)), 8)
    for crop in (center_crop_arr, random_crop_arr, lambda picture, size: ten_crop(picture, size, 1.1)):
        with pytest.raises(ValueError, match="a picture of 2 x 101 pixels: its long side may be 50 times"):
            crop(Image.new("RGB", (2, 101)), 8)


def test_random_crop_without_draws_is_random():
    assert len({random_crop_arr(picture(100, 140), 32).tobytes() for _ in range(8)}) > 4


def test_to_tensor_equals_torchvisions():
    transforms = pytest.importorskip("torchvision.transforms")
    source = picture(100, 140)
    both = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])(source)
    assert np.array_equal(to_tensor(source), both.numpy())
    assert np.array_equal(to_tensor(mirror(source)), to_tensor(source)[..., ::-1])


def test_options_order_and_crops_need_no_torch():
    code = "import sys, dataset.options, dataset.order, dataset.augmentation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
