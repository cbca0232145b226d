"""Pictures as bytes, grids, PNG files and npz archives."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluations.images import PngWriter, claim, grid, pngs_to_npz, save_grid, save_png, to_bytes, write_npz


def pictures(count: int, height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_bytes_are_clamped_and_truncated_as_published():
    values = torch.tensor([-1.5, -1.0, -0.999, -0.5, 0.0, 0.003, 0.5, 0.9921, 1.0, 3.0])
    expected = [0, 0, 0, 64, 128, 128, 191, 254, 255, 255]  # 127.5 x + 128, without its fraction
    out = to_bytes(values.expand(1, 3, 2, 10))
    assert out.dtype == np.uint8 and out.shape == (1, 2, 10, 3)
    assert out[0, 1, :, 2].tolist() == expected


def test_bytes_keep_rows_columns_and_colours_apart():
    images = torch.full((1, 3, 2, 3), -1.0)
    images[0, 2, 0, 1] = 1.0
    assert np.argwhere(to_bytes(images)).tolist() == [[0, 0, 1, 2]]


@pytest.mark.parametrize(("count", "per_row", "padding"), [(1, 4, 2), (7, 3, 2), (8, 4, 1), (3, 8, 0)])
def test_grid_is_torchvisions(count, per_row, padding):
    from torchvision.utils import make_grid

    images = pictures(count)
    expected = make_grid(torch.from_numpy(images).permute(0, 3, 1, 2), per_row, padding).permute(1, 2, 0).numpy()
    if count == 1:  # make_grid does not frame a single picture
        expected = np.pad(expected, ((padding, padding), (padding, padding), (0, 0)))
    np.testing.assert_array_equal(grid(images, per_row, padding), expected)


def test_small_pictures_are_enlarged_by_whole_numbers(tmp_path):
    images = pictures(4, 32, 32)
    save_grid(tmp_path / "grid.png", images, 2, {"settings": "caf\u00e9 \u2615"})
    with Image.open(tmp_path / "grid.png") as picture:
        found = np.asarray(picture)
        assert picture.text["settings"] == "caf\u00e9 \u2615"
    np.testing.assert_array_equal(found[::4, ::4], grid(images, 2))
    np.testing.assert_array_equal(found[3::4, 3::4], grid(images, 2))


def test_npz_holds_what_was_given(tmp_path):
    images, labels = pictures(6), np.arange(6)
    write_npz(tmp_path / "s.npz", iter(images), images.shape, {"cfg": 1.5}, labels=labels)
    with np.load(tmp_path / "s.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        np.testing.assert_array_equal(arrays["labels"], labels)
        assert arrays["labels"].dtype == np.int64
        assert json.loads(str(arrays["meta"])) == {"cfg": 1.5}


def failing(images):
    yield from images[:2]
    raise OSError("no space left on device")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (lambda images: iter(images[:5]), "5 pictures"),
        (lambda images: iter([images[0], images[1][:3]]), "picture 1 is"),
        (lambda images: iter(images.astype(np.float32)), "picture 0 is float32"),
        (failing, "no space"),
    ],
)
def test_a_failed_npz_leaves_the_old_one_alone(tmp_path, given, error):
    images, path = pictures(6), tmp_path / "s.npz"
    path.write_bytes(b"old")
    with pytest.raises((ValueError, OSError), match=error):
        write_npz(path, given(images), images.shape, {})
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"] and path.read_bytes() == b"old"


def test_a_failed_png_leaves_the_old_one_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def half(self, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="no space"):
        save_png(path, pictures(1)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and path.read_bytes() == b"old"


def test_pngs_become_an_npz_in_the_order_of_their_numbers(tmp_path):
    images, folder = pictures(4, 6, 6), tmp_path / "many"
    with PngWriter(folder) as writer:
        writer.write([7, 2], images[:2])
        writer.write([0, 3], images[2:])
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:06d}.png" for i in (0, 2, 3, 7)]
    pngs_to_npz(tmp_path / "many.npz", folder, [0, 2, 7], 6, {"seed": 1}, labels=np.arange(3))
    with np.load(tmp_path / "many.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images[[2, 1, 0]])
        assert json.loads(str(arrays["meta"])) == {"seed": 1} and arrays["labels"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_folder_whose_settings_are_torn_is_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"settings\.json: not settings as JSON .*write it anew or remove it"):
        claim(tmp_path, {"seed": 1})
    assert (tmp_path / "settings.json").read_text() == text


@pytest.mark.parametrize("batches", [1, 2])
def test_a_png_that_could_not_be_written_is_heard_of(tmp_path, monkeypatch, batches):
    def full(self, file, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"could not write .*000000\.png: No space left"), PngWriter(tmp_path) as writer:
        for i in range(batches):
            writer.write([i], pictures(1))
