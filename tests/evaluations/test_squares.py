"""Pictures of any sizes as squares that networks read, held against torchvision's crop and Pillow's planes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations.squares import Squares, bytes_at, centre_square, files_below, floats_at


def picture(seed: int, height: int = 20, width: int = 20, mode: str = "RGB") -> Image.Image:
    """Noise over a colour of its own."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 120, (height, width, 3)) + random.integers(0, 136, 3)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def prepared(path: Path, res: int, side: int, floats: bool) -> np.ndarray:
    """A picture as clean-fid and CLIP read it, by torchvision and Pillow."""
    from torchvision.transforms.functional import center_crop

    with Image.open(path) as file:
        image = file.convert("RGB")
    square = center_crop(image, min(image.size)).resize((res, res), Image.LANCZOS)
    if not floats:
        return np.asarray(square.resize((side, side), Image.BICUBIC))
    planes = [Image.fromarray(np.asarray(plane).astype(np.float32)) for plane in square.split()]
    return np.clip(np.stack([np.asarray(p.resize((side, side), Image.BICUBIC)) for p in planes], -1), 0, 255)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (20, 35), (20, 37), (31, 20), (29, 20), (9, 50), (300, 301)])
def test_pictures_are_prepared_as_clean_fid_and_clip_prepare_them(height, width, tmp_path):
    picture(5, height, width).save(tmp_path / "a.png")
    for resize, side, floats in ((floats_at, 299, True), (bytes_at, 16, False)):
        found = next(Squares(tmp_path, [tmp_path / "a.png"], 24, resize, side).batches(1))[0]
        expected = prepared(tmp_path / "a.png", 24, side, floats)
        assert found.dtype == expected.dtype and found.shape == (side, side, 3)
        np.testing.assert_array_equal(found, expected)


def test_features_see_values_between_bytes_and_none_outside(tmp_path):
    board = np.kron(np.indices((12, 12)).sum(0) % 2 * 255, np.ones((2, 2)))  # bicubic overshoots at its edges
    square = np.repeat(board[:, :, None], 3, 2).astype(np.uint8)
    found = floats_at(square, 37)
    assert found.min() == 0 and found.max() == 255 and np.mean(found != np.round(found)) > 0.2


def test_a_wide_picture_loses_its_sides_not_its_shape():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (centre_square(wide, 10) == 200).all() and (centre_square(wide.transpose(1, 0, 2), 10) == 200).all()


def test_batches_keep_the_order_of_the_files(tmp_path):
    files = [tmp_path / f"{i}.png" for i in (3, 10, 0, 7, 1)]
    for seed, file in enumerate(files):
        picture(seed, width=20 + seed).save(file)
    squares = Squares(tmp_path, files, 24, bytes_at, 16)
    whole = np.concatenate(list(squares.batches(2)))
    assert len(whole) == len(squares) == 5
    for found, file in zip(whole, files):
        np.testing.assert_array_equal(found, prepared(file, 24, 16, False))


def test_pictures_are_found_in_folders_within(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    names = ["0.png", "a/1.bmp", "a/b/2.TIF"]
    for name in names:
        picture(0).save(tmp_path / name)
    for name in (".0.png", "a/notes.txt"):
        (tmp_path / name).write_text("no picture")
    assert files_below(tmp_path) == [tmp_path / name for name in names]
