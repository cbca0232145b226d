"""The published layout, one file per picture: read as it lies, and equal to its conversion."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.codes import Codes, PublishedCodes, check, convert_published, open_codes

VOCAB = 300
LABELS = np.arange(9) % 3
SQUARE = np.random.default_rng(1).integers(0, VOCAB, (9, 10, 4))  # [pictures, crops, codes]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def publish(folder: Path, codes: np.ndarray, name: str = "own32") -> Path:
    for part in ("codes", "labels"):
        (folder / f"{name}_{part}").mkdir(parents=True)
    for number, each in enumerate(codes):
        np.save(folder / f"{name}_codes" / f"{number}.npy", each[None].astype(np.uint16))
        np.save(folder / f"{name}_labels" / f"{number}.npy", LABELS[number : number + 1])
    return folder


def test_published_codes_equal_their_conversion(tmp_path):
    published = open_codes(publish(tmp_path / "old", SQUARE))
    assert isinstance(published, PublishedCodes)
    store = convert_published(tmp_path / "old", None, tmp_path / "new", VOCAB, ["ant", "bee", "cat"], shard_size=4)
    pictures, crop = np.array([8, 1, 1, 5]), np.array([9, 0, 3, 4])
    for each in (published, store):
        assert (each.count, each.grid, each.crops, each.image_size) == (9, (2, 2), 10, 32)
        assert np.array_equal(each.codes(pictures), SQUARE[pictures])
        assert np.array_equal(each.codes(pictures, crop), SQUARE[pictures, crop])
        assert np.array_equal(each.labels(pictures), LABELS[pictures])
        check(each, VOCAB, (2, 2), 3, {"name": "any", "checksum": "any"})
    keys = [(0, 3), (1, 8)]
    one, two = (Codes(each, seed=2).__getitems__(keys) for each in (published, store))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert store.class_names == ["ant", "bee", "cat"] and store.tokenizer is None


def test_a_conversion_continues(tmp_path):
    publish(tmp_path / "old", SQUARE)
    convert_published(tmp_path / "old", 32, tmp_path / "whole", VOCAB, shard_size=4)

    def killed_after_one(shards):
        yield shards[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_published(tmp_path / "old", 32, tmp_path / "parts", VOCAB, shard_size=4, progress=killed_after_one)
    rest = []
    convert_published(
        tmp_path / "old", 32, tmp_path / "parts", VOCAB, shard_size=4, progress=lambda s: rest.extend(s) or s
    )
    assert rest == [1, 2] and content(tmp_path / "whole") == content(tmp_path / "parts")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_second_ten_crop_folder_serves_half_of_the_draws(tmp_path, below):
    first = publish(tmp_path / "own_ten_crop" / below, np.zeros((3, 10, 4)))
    publish(tmp_path / "own_ten_crop_105" / below, np.ones((3, 10, 4)))
    codes = PublishedCodes(first, 32)
    assert codes.crops == 20 and codes.codes([0])[0].mean() == 0.5
    drawn = [Codes(codes, 0).__getitems__([(epoch, 1)])["codes"].float().mean().item() for epoch in range(200)]
    assert set(drawn) == {0.0, 1.0} and 70 < sum(drawn) < 130
    assert convert_published(first, 32, tmp_path / "out", VOCAB).crops == 20


def test_published_shapes(tmp_path):
    single = PublishedCodes(publish(tmp_path / "single", SQUARE[:, 0]))  # [1, codes]
    assert single.crops == 1 and np.array_equal(single.codes([2]), SQUARE[2:3, :1])
    mirrored = PublishedCodes(publish(tmp_path / "flip", SQUARE[:, :2], "imagenet256"))
    assert mirrored.crops == 2 and mirrored.image_size == 256 and mirrored.class_names[207] == "golden retriever"
    named = PublishedCodes(publish(tmp_path / "cifar", SQUARE, "cifar1032"), 32)
    assert named.image_size == 32


def test_several_published_sizes_need_the_flag(tmp_path):
    publish(publish(tmp_path, SQUARE, "own32"), SQUARE[:4], "own64")
    assert (open_codes(tmp_path, 32).count, open_codes(tmp_path, 64).count) == (9, 4)
    with pytest.raises(ValueError, match="own32_codes, own64_codes.*give --image-size"):
        open_codes(tmp_path)
    with pytest.raises(
        ValueError, match="DATASET128_codes in it; found: own32_codes, own64_codes; give another --image-size"
    ):
        open_codes(tmp_path, 128)


def test_faults_of_a_published_folder_are_named(tmp_path):
    folder = publish(tmp_path, SQUARE)
    codes = folder / "own32_codes"
    with pytest.raises(ValueError, match=r"holds the code \d+, allowed are 0 to 99"):
        check(PublishedCodes(folder), 100, (2, 2), 3)
    with pytest.raises(ValueError, match="--vocab-size 100: picture 0 "):
        convert_published(folder, 32, tmp_path / "out", 100)
    np.save(codes / "3.npy", SQUARE[3:4, :2])
    with pytest.raises(ValueError, match=r"3\.npy: \[2, 4\] crops and codes, but file 0 has \[10, 4\]"):
        PublishedCodes(folder).codes([3])
    (codes / "3.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"3\.npy: truncated"):
        PublishedCodes(folder).codes([3])
    np.save(codes / "0.npy", np.zeros((1, 2, 4)))
    with pytest.raises(ValueError, match=r"0\.npy: expected integers .*float64"):
        PublishedCodes(folder)


def test_published_files_must_be_complete_and_alike(tmp_path):
    folder = publish(tmp_path / "own_ten_crop", SQUARE)
    (folder / "own32_labels" / "8.npy").unlink()
    with pytest.raises(ValueError, match="own32_labels has 8 files, .*own32_codes has 9"):
        PublishedCodes(folder)
    (folder / "own32_codes" / "3.npy").unlink()
    with pytest.raises(ValueError, match=r"own32_codes/3\.npy is missing, though there is a 8\.npy"):
        PublishedCodes(folder)
    np.save(folder / "own32_codes" / "3.npy", SQUARE[3:4])
    np.save(folder / "own32_labels" / "8.npy", LABELS[8:9])
    publish(tmp_path / "own_ten_crop_105", SQUARE[:, :2])
    with pytest.raises(ValueError, match=r"own_ten_crop has crops and codes \[10, 4\], .*_105 has \[2, 4\]; rename"):
        PublishedCodes(folder)
    with pytest.raises(ValueError, match="6 codes are not a square grid"):
        PublishedCodes(publish(tmp_path / "oblong", np.zeros((9, 2, 6))))
