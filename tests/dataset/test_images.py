"""Pictures: where they come from, and that a sample is a function of (seed, epoch, row)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import build
from dataset.augmentation import center_crop_arr, mirror, ten_crop
from dataset.build import build_source
from dataset.digits import digits_arrays
from dataset.images import Crops, Images, scale
from dataset.loading import batch_loader, loader
from dataset.options import DataOptions
from dataset.order import Order


def save(path: Path, shade: int, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 40, (size[1], size[0], 3))
    Image.fromarray((noise + shade).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "pictures"
    names = ["cat/b.png", "cat/a.JPG", "cat/deep/c.webp", "ant/z.jpeg", "Dog/q.bmp", "Dog/r.PNG"]
    for number, name in enumerate(names):
        save(root / name, 30 * number)
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / ".cache").mkdir()
    return root


def test_class_folders_are_torchvisions_image_folder(folder):
    source = build_source("folder", str(folder))
    assert source.class_names == ["Dog", "ant", "cat"]
    files = [Path(source.path(row)).name for row in range(len(source))]
    assert files == ["q.bmp", "r.PNG", "z.jpeg", "a.JPG", "b.png", "c.webp"]
    assert [source.label(row) for row in range(6)] == [0, 0, 1, 2, 2, 2]
    datasets = pytest.importorskip("torchvision.datasets")
    shutil.rmtree(folder / ".cache")
    assert [(source.path(row), source.label(row)) for row in range(6)] == datasets.ImageFolder(folder).samples


def test_the_thousand_folders_of_imagenet_have_names(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_pictures", lambda root: [str(root / "a.jpg")])
    for number in range(1000):
        (tmp_path / f"n{number:08d}").mkdir()
    names = build_source("imagenet", str(tmp_path)).class_names
    assert len(set(names)) == 1000 and names[0] == "tench" and names[207] == "golden retriever"
    (tmp_path / "n00000999").rename(tmp_path / "own class")
    assert build_source("imagenet", str(tmp_path)).class_names[0] == "n00000000"
    (tmp_path / "own class").rmdir()
    assert build_source("imagenet", str(tmp_path)).class_names[0] == "n00000000"


@pytest.mark.parametrize("name", ["flat", "coco", "t2i_image"])
def test_a_flat_folder_has_all_pictures_and_no_labels(folder, name):
    source = build_source(name, str(folder))
    assert len(source) == 6 and source.class_names is None and {source.label(row) for row in range(6)} == {-1}
    assert [source.path(row) for row in range(6)] == sorted(source.path(row) for row in range(6))
    assert len(build_source(name, str(folder), face_path=str(folder / "cat"))) == 9


def test_lists(folder):
    lines = [
        {"image_path": f"cat/{name}", "label": label, "text": ["..."]}
        for name, label in (("b.png", "zebra"), ("a.JPG", "ape"))
    ]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    source = build_source("jsonl", str(folder / "list.jsonl"))
    assert source.class_names == ["ape", "zebra"] and [source.label(0), source.label(1)] == [1, 0]
    assert source.open(1).tobytes() == Image.open(folder / "cat" / "a.JPG").convert("RGB").tobytes()
    absolute = {"image_path": str(folder / "ant" / "z.jpeg"), "label": "ape"}
    (folder / "list2.jsonl").write_text(json.dumps(absolute))
    whole = build_source("t2i_image", str(folder))  # published: a folder of lists
    assert len(whole) == 3 and whole.label(2) == 0 and whole.open(2).size == (24, 20)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"image_path": "a.png", "label": 1.5}', "line 1: label 1.5 is neither"),
        ('{"image_path": "a.png", "label": -2}', "line 1: label -2 is neither"),
        ('{"image_path": "a.png", "label": true}', "line 1: label true is neither"),
        ('{"image_path": "a", "label": 1}\n{"image_path": "b", "label": "c"}', "a number in .*line 1.*a name in .*2"),
        ('{"image_path": "a.png", "label": 1}\n{"image_path": "b.png"}', "missing in .*line 2"),
        ('{"path": "a.png"}', "line 1: expected an object"),
        ('{"image_path": "a.png"}\nnonsense', "line 2: not JSON"),
        ("\n", "the list is empty"),
    ],
)  # fmt: skip
def test_bad_lists_name_the_line(tmp_path, text, message):
    (tmp_path / "l.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        build_source("jsonl", str(tmp_path / "l.jsonl"))


def test_bad_paths_say_what_to_do(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "both" / "train").mkdir(parents=True)
    cases = [
        ("nonsense", None, "--dataset nonsense: choose one of imagenet"),
        ("folder", None, "--data-path is missing"),
        ("folder", tmp_path / "nowhere", "--data-path .*nowhere: there is no such"),
        ("folder", tmp_path / "empty", "no class folders"),
        ("folder", folder / "ant", "try --dataset flat"),
        ("folder", folder / "ant" / "z.jpeg", "needs a folder"),
        ("imagenet", tmp_path / "both", "holds train, which are no classes"),
        ("flat", tmp_path / "empty", "no pictures in it"),
        ("jsonl", tmp_path / "empty", "neither a .jsonl list nor a folder of them"),
    ]
    for name, path, message in cases:
        with pytest.raises(ValueError, match=message):
            build_source(name, path and str(path))
    (folder / "void").mkdir()
    with pytest.raises(ValueError, match="no pictures in void"):
        build_source("folder", str(folder))


def test_cifar10_as_folders(tmp_path):
    for number, part in enumerate(["train", "test"]):
        for name in ("airplane", "frog"):
            save(tmp_path / part / name / f"{number}.png", 50 * number)
    train, test, both = (build_source("cifar10", str(tmp_path), split) for split in ("train", "test", "all"))
    assert train.class_names == ["airplane", "frog"] and len(train) == len(test) == 2
    assert both.paths == train.paths + test.paths and both.labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="--split val"):
        build_source("cifar10", str(tmp_path), "val")


def test_digits_are_split_in_even_halves_of_each_class():
    pytest.importorskip("sklearn")
    features, labels = digits_arrays("all")
    train, test = digits_arrays("train"), digits_arrays("test")
    assert (
        len(labels) == 1797
        and len(train[1]) + len(test[1]) == 1797
        and features.dtype == np.uint8
        and features.max() == 16
    )
    assert np.abs(np.bincount(train[1]) - np.bincount(test[1])).max() <= 1
    assert np.array_equal(train[0][train[1] == 3], features[labels == 3][::2])
    source = build_source("digits", split="test")
    assert source.class_names == list("0123456789") and len(source) == len(test[1]) and source.label(5) == test[1][5]
    pixels = np.asarray(source.open(5))
    assert np.array_equal(pixels[..., 1].ravel(), np.rint(test[0][5] * 15.9375))
    assert (pixels == pixels[..., :1]).all()
    image = Images(source, 32)[5]["image"]
    enlarged = np.asarray(source.open(5).resize((32, 32), Image.Resampling.BICUBIC))
    assert torch.equal(image, scale(torch.tensor(enlarged).permute(2, 0, 1)))


def test_a_sample_is_a_function_of_seed_epoch_and_row(folder):
    source = build_source("folder", str(folder))
    dataset = Images(source, 16, "random", seed=1, flip=True)
    keys = [(epoch, row) for epoch in range(2) for row in range(6)]
    one_by_one = {key: dataset[key]["image"] for key in keys}
    for workers, batches in ((0, [keys[3:], keys[:3]]), (2, [keys[::-1][i : i + 2] for i in range(0, 12, 2)])):
        for batch, wanted in zip(batch_loader(dataset, batches, workers), batches, strict=True):
            assert batch["index"].tolist() == [row for _, row in wanted]
            assert batch["label"].tolist() == [source.label(row) for _, row in wanted]
            assert all(torch.equal(image, one_by_one[key]) for image, key in zip(batch["image"], wanted, strict=True))
    assert not torch.equal(one_by_one[0, 2], one_by_one[1, 2])
    assert not torch.equal(one_by_one[0, 2], Images(source, 16, "random", seed=2, flip=True)[0, 2]["image"])
    assert torch.equal(dataset[2]["image"], one_by_one[0, 2])


def test_two_ranks_read_what_one_reads(folder):
    dataset = Images(build_source("folder", str(folder)), 16, "random", seed=1, flip=True)
    one = list(loader(dataset, Order(6, 4, 1), 0, 1, 1, 3, workers=0))
    two = [list(loader(dataset, Order(6, 4, 1), rank, 2, 1, 3, workers=0)) for rank in range(2)]
    for whole, *halves in zip(one, *two, strict=True):
        assert torch.equal(whole["image"], torch.cat([half["image"] for half in halves]))


def test_half_of_the_samples_are_mirrored_and_only_on_request(folder):
    source = build_source("folder", str(folder))
    plain = Images(source, 16, "center")[0, 0]["image"]
    assert (plain.shape, plain.dtype) == ((3, 16, 16), torch.float32) and -1 <= plain.min() < plain.max() <= 1
    assert all(torch.equal(Images(source, 16, "center")[epoch, 0]["image"], plain) for epoch in range(5))
    flipped = [Images(source, 16, "center", flip=True)[epoch, 0]["image"] for epoch in range(200)]
    same = [torch.equal(image, plain) for image in flipped]
    assert all(torch.equal(image, plain if kept else plain.flip(-1)) for image, kept in zip(flipped, same, strict=True))
    assert 70 < sum(same) < 130
    assert DataOptions(dataset="folder").flips and not DataOptions(dataset="digits").flips
    assert DataOptions(dataset="digits", flip="on").flips and not DataOptions(flip="off").flips


def test_pictures_taken_as_they_are_must_have_the_size(tmp_path):
    save(tmp_path / "a.png", 10, (16, 16))
    source = build_source("flat", str(tmp_path))
    assert np.array_equal(
        scale(torch.from_numpy(np.array(source.open(0)))).permute(2, 0, 1), Images(source, 16, "none")[0]["image"]
    )
    with pytest.raises(ValueError, match="a.png: is 16x16, but --image-size is 8"):
        Images(source, 8, "none")[0]


def test_an_unreadable_picture_is_named(folder):
    torn = folder / "cat" / "b.png"
    torn.write_bytes(torn.read_bytes()[:300])
    dataset = Images(build_source("folder", str(folder)), 16)
    with pytest.raises(ValueError, match=r"cat/b\.png: not a readable picture"):
        dataset[4]
    Image.new("RGB", (3000, 2)).save(torn)
    for augment in ("center", "random"):
        with pytest.raises(ValueError, match=r"cat/b\.png: a picture of 3000 x 2 pixels"):
            Images(dataset.source, 16, augment)[4]


def test_training_takes_the_next_picture_for_one_that_cannot_be_read(folder):
    source = build_source("folder", str(folder))
    dataset = Images(source, 16, "random", seed=1, flip=True, replace=True)
    whole = [dataset[3, row] for row in range(6)]
    assert all(float(sample["unreadable"]) == 0 for sample in whole)
    for row in (4, 5):
        Path(source.path(row)).write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"cat/b\.png: not a readable picture .*the next picture takes its place"):
        batch = next(iter(batch_loader(dataset, [[(3, 3), (3, 4)]], 0)))
    assert batch["index"].tolist() == [3, 0] and batch["unreadable"].tolist() == [0, 1]
    assert batch["label"].tolist() == [source.label(3), source.label(0)]
    assert torch.equal(batch["image"][1], whole[0]["image"])
    for row in range(6):
        Path(source.path(row)).write_bytes(b"torn")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="not a readable picture"):
        dataset[3, 0]


def test_crops_to_encode(folder):
    source = build_source("folder", str(folder))
    plain, other = center_crop_arr(source.open(1), 16), center_crop_arr(source.open(4), 16)
    batch = next(iter(batch_loader(Crops(source, 16), [[1, 4]], 0)))
    expected = np.stack([[plain, mirror(plain)], [other, mirror(other)]]).transpose(0, 1, 4, 2, 3)
    assert batch["images"].dtype == torch.uint8 and np.array_equal(batch["images"], expected)
    assert (batch["label"].tolist(), batch["index"].tolist(), batch["skipped"]) == ([0, 2], [1, 4], [])
    assert torch.equal(scale(batch["images"])[1, 0], Images(source, 16)[4]["image"])
    ranges = Crops(source, 16, ten_crop_ranges=(1.1, 1.05))
    assert [Crops(source, 16, flip=False).per_picture, Crops(source, 16).per_picture, ranges.per_picture] == [1, 2, 20]
    ten = np.stack(ten_crop(source.open(1), 16, 1.1) + ten_crop(source.open(1), 16, 1.05))
    assert np.array_equal(Crops.collate([ranges[1]])["images"][0], ten.transpose(0, 3, 1, 2))
    assert len(Crops(source, 16, flip=False)[1][0]) == 1
    five = Crops(source, 16, flip=False, ten_crop_ranges=(1.1,))  # what a mirror image would spoil, such as digits
    assert five.per_picture == 5 and np.array_equal(five[1][0], ten[:5])


def test_crops_set_unreadable_pictures_apart(folder):
    (folder / "Dog" / "r.PNG").write_bytes(b"not a picture")
    source = build_source("folder", str(folder))
    Image.new("RGB", (2, 3000)).save(source.path(3))
    assert "2 x 3000 pixels" in Crops(source, 16)[3].reason
    some, none = batch_loader(Crops(source, 16), [[0, 1, 2], [1]], 0)
    assert some["index"].tolist() == [0, 2] and len(some["images"]) == 2
    assert [(bad.row, bad.path) for bad in some["skipped"]] == [(1, source.path(1))] and "r.PNG" in some["skipped"][
        0
    ].reason
    assert none["images"] is None and len(none["skipped"]) == 1
