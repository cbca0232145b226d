"""PNGs that hold the codes they were drawn from: exact where they still show them, the tokenizer's where not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import MACHINE, options

from autoregressive.models.generate import Sampling
from autoregressive.options import GPTOptions, SamplingOptions
from autoregressive.sample.drawn import codes_of, read_settings, resized, save_drawn
from autoregressive.sample.grid import sample_grid
from autoregressive.sample.options import GridOptions, SampleC2I
from autoregressive.sample.pipeline import Pipeline, load_pipeline
from dataset.images import read_rgb
from evaluations.images import save_png


@pytest.fixture(scope="module")
def pipeline(files) -> Pipeline:
    return load_pipeline(*options(files), MACHINE)


@pytest.fixture
def drawn(pipeline, tmp_path) -> tuple[Path, torch.Tensor]:
    """A PNG, and its codes, which its pixels alone would not give back."""
    (codes,) = pipeline.codes(pipeline.labels([3]), Sampling(), seed=2)
    picture = pipeline.to_pictures(codes[None])[0]
    save_drawn(tmp_path / "a.png", picture, {"seed": 2}, codes, pipeline)
    assert not torch.equal(pipeline.encode(Image.fromarray(picture)), codes)
    return tmp_path / "a.png", codes


def found(path: Path, pipeline: Pipeline) -> torch.Tensor:
    return codes_of(path, read_rgb(path), pipeline)


def rewritten(path: Path, picture: Image.Image | None = None, **held) -> Path:
    """The file with other pixels, or with other entries beside its codes."""
    with Image.open(path) as image:
        text = {**image.text, "codes": json.dumps({**json.loads(image.text["codes"]), **held})}
        save_png(path, np.asarray(picture or image), text)
    return path


def test_a_file_gives_its_codes_and_settings_back(drawn, pipeline):
    path, codes = drawn
    assert torch.equal(found(path, pipeline), codes) and read_settings(path) == {"seed": 2}


@pytest.mark.parametrize("side", [16, 37, 256])
def test_they_are_found_at_any_size(side, drawn, pipeline):
    path, codes = drawn
    picture = resized(pipeline.to_pictures(codes[None]), side)[0]
    save_drawn(path, picture, {}, codes.numpy(), pipeline)
    assert torch.equal(found(path, pipeline), codes)


def test_a_picture_that_was_painted_in_is_read_as_it_looks(drawn, pipeline):
    path, codes = drawn
    picture = Image.open(path)
    picture.putpixel((5, 3), (0, 255, 0))
    again = found(rewritten(path, picture), pipeline)
    assert torch.equal(again, pipeline.encode(picture)) and not torch.equal(again, codes)
    wide = Image.new("RGB", (32, 16))
    wide.paste(Image.open(path), (8, 0))
    assert torch.equal(found(rewritten(path, wide), pipeline), pipeline.encode(wide))


@pytest.mark.parametrize(
    "held",
    [{"codes": None}, {"codes": []}, {"codes": [0] * 15}, {"codes": [256] + [0] * 15}, {"codes": [-1] + [0] * 15},
     {"codes": ["0"] * 16}, {"codes": [True] * 16}, {"codes": {"0": 0}}, {"tokenizer": "another"}],
)  # fmt: skip
def test_codes_that_cannot_be_its_own_are_passed_over(held, drawn, pipeline):
    path = rewritten(drawn[0], **held)
    assert torch.equal(found(path, pipeline), pipeline.encode(read_rgb(path)))


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, ""])
def test_whatever_a_file_says_it_is_a_picture(text, drawn, pipeline):
    path, _ = drawn
    save_png(path, np.asarray(Image.open(path)), {"settings": text, "codes": text})
    assert torch.equal(found(path, pipeline), pipeline.encode(read_rgb(path)))
    with pytest.raises(ValueError, match="this file holds no settings"):
        read_settings(path)


def command(files: Path, output: Path, **given) -> SampleC2I:
    grid = GridOptions(labels=["three"], seed=1, output=str(output / "grid.png"), single_dir=str(output))
    return SampleC2I(*options(files), MACHINE, SamplingOptions(cfg_scale=2.0, top_k=100), replace(grid, **given))


def test_the_command_completes_its_own_picture_to_itself(files, tmp_path):
    sample_grid(command(files, tmp_path / "first"))
    first = tmp_path / "first/000000.png"
    sample_grid(command(files, tmp_path / "second", prefix_image=str(first), keep_rows=2, keep_columns=1))
    assert (read_rgb(first).tobytes()) == read_rgb(tmp_path / "second/000000.png").tobytes()
    assert read_settings(tmp_path / "second/000000.png")["kept_codes"] == 9


def test_a_photograph_is_turned_upright_before_its_top_is_kept(files, pipeline, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # the camera was held sideways
    Image.fromarray(noise).save(tmp_path / "photo.png", exif=exif)
    sample_grid(command(files, tmp_path, prefix_image=str(tmp_path / "photo.png"), keep_rows=1))
    upright = Image.fromarray(np.rot90(noise, -1))
    wanted = pipeline.top_codes(upright, 1)
    assert torch.equal(found(tmp_path / "000000.png", pipeline)[:4], wanted)
    assert not torch.equal(wanted, pipeline.top_codes(Image.fromarray(noise), 1))


def test_a_picture_too_long_for_its_width_is_known_before_anything_is_loaded(files, tmp_path):
    Image.new("RGB", (300, 2)).save(tmp_path / "thin.png")
    given = command(files, tmp_path, prefix_image=str(tmp_path / "thin.png"))
    with pytest.raises(ValueError, match="--prefix-image: a picture of 300 x 2 pixels: its long side"):
        sample_grid(replace(given, gpt=GPTOptions("none.pt")))
