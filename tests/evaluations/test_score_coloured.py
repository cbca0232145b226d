"""The judge of coloured digits: right about real pictures, and about which prompt a picture was made from."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.coloured_digits import make, write_pictures
from evaluations.coloured_digits import take_apart
from evaluations.coloured_digits_options import ScoreColouredDigits
from evaluations.coloured_digits_task import score
from evaluations.images import save_png
from evaluations.prompt_grid import LINE, MARGIN, captioned_grid, wrapped

COUNT = 60


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    write_pictures(folder, 10, 600, 0)
    return folder


def sampled(folder: Path, swap: str = "", shrink: int = 1) -> ScoreColouredDigits:
    """Real pictures of the train split as if they had been sampled from their captions; `swap` asks for another one's
    digit, colour or ground."""
    lines, table = [], ["Prompt\tdigit\tcolour\tground"]
    for i in range(COUNT):
        sample, other = make(5, "train", i), make(5, "train", (i + 1) % COUNT)
        path = folder / f"images/{i:06d}.png"
        save_png(path, sample.picture[::shrink, ::shrink])
        lines.append(json.dumps({"text": f"{i} {sample.text[0]}", "image_path": str(path)}))
        kind = sample.kind._replace(**({swap: getattr(other.kind, swap)} if swap else {}))
        table.append("\t".join(map(str, (f"{i} {sample.text[0]}", *kind))))
    (folder / "result.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "prompts.tsv").write_text("\n".join(table) + "\n")
    return folder


def shares(folder: Path, real: Path) -> dict:
    return score(ScoreColouredDigits(str(folder), str(real), str(folder / "prompts.tsv"), str(folder / "score.json")))


def test_real_pictures_are_read_rightly_and_so_is_the_ceiling(real, tmp_path):
    found = shares(sampled(tmp_path), real)
    assert found["samples"]["colour"] == found["samples"]["ground"] == 1 and found["samples"]["digit"] > 0.9
    assert found["real"]["all three"] > 0.9 and found["real"]["pictures"] == 600
    assert json.loads((tmp_path / "score.json").read_text()) == found


def test_the_first_pictures_are_shown_under_their_prompts(real, tmp_path):
    sampled(tmp_path, shrink=2)
    options = ScoreColouredDigits(str(tmp_path), str(real), str(tmp_path / "prompts.tsv"), grid=str(tmp_path / "g.png"),
                                  grid_pictures=12)  # fmt: skip
    score(options)
    texts = [json.loads(line)["text"] for line in (tmp_path / "result.jsonl").read_text().splitlines()[:12]]
    pictures = np.stack([make(5, "train", i).picture[::2, ::2] for i in range(12)])
    with Image.open(tmp_path / "g.png") as grid:
        assert np.array_equal(np.asarray(grid), captioned_grid(pictures, texts, 10, 6))


def test_a_share_below_the_least_is_an_error(real, tmp_path):
    sampled(tmp_path, "colour")
    options = ScoreColouredDigits(str(tmp_path), str(real), str(tmp_path / "prompts.tsv"), str(tmp_path / "score.json"),
                                  least=0.85)  # fmt: skip
    with pytest.raises(ValueError, match="--least 0.85: the share of pictures with the right colour is 0"):
        score(options)
    assert (tmp_path / "score.json").is_file()


@pytest.mark.parametrize("part", ["digit", "colour", "ground"])
def test_a_picture_of_something_else_is_noticed_by_what_differs(part, real, tmp_path):
    found = shares(sampled(tmp_path, part), real)["samples"]
    assert found[part] < 0.35 and all(found[other] > 0.9 for other in {"digit", "colour", "ground"} - {part})
    assert found["all three"] <= found[part]


def test_a_picture_is_taken_apart_by_its_frame():
    picture = np.full((1, 20, 20, 3), (10, 20, 200), np.uint8)
    picture[0, 5:15, 9:12] = (250, 200, 0)
    parts = take_apart(picture)
    assert parts.ground[0].tolist() == [10, 20, 200] and parts.figure[0].tolist() == [250, 200, 0]
    assert parts.shapes[0].max() == 1 and parts.shapes[0][:, 0].max() == 0
    nothing = take_apart(np.full((1, 20, 20, 3), 7, np.uint8))
    assert np.isnan(nothing.figure).all() and not nothing.shapes.any()


def test_every_caption_stands_under_its_own_picture():
    images = np.zeros((3, 30, 60, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
    sheet = captioned_grid(images, ["one", "", "two words that are wrapped"], 2)
    wide, high = 60 + 2 * MARGIN, 30 + LINE + 2 * MARGIN
    assert sheet.shape[1] == 2 * wide and (sheet[MARGIN : MARGIN + 30, MARGIN : MARGIN + 60] == [200, 0, 0]).all()
    dark = (sheet.max(-1) < 150) & (sheet[..., 0] < 150)
    assert dark[MARGIN + 30 : high, :wide].any() and not dark[:high, wide:].any() and dark[high + MARGIN + 30 :].any()
    with pytest.raises(ValueError, match="1 captions for 3 pictures"):
        captioned_grid(images, ["a"], 2)


def test_lines_are_no_wider_than_the_picture():
    assert wrapped("aa bbb c", 6, len) == ["aa bbb", "c"]
    assert wrapped("abcdefgh i", 3, len) == ["abc", "def", "gh", "i"] and wrapped("", 3, len) == []
