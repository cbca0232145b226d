"""Files and folders of pictures: read in order and in parts, and named when they are something else."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from feature_files import pictures
from PIL import Image
from support import run_script

from evaluations.archive import Archive, open_pictures
from evaluations.images import save_png, write_npz


def joined(path: Path, size: int) -> np.ndarray:
    return np.concatenate(list(open_pictures(path).batches(size)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_an_archive_is_read_in_parts_as_it_stands(tmp_path, save, size):
    images = pictures(10)
    save(tmp_path / "a.npz", arr_0=images)
    opened = open_pictures(tmp_path / "a.npz")
    assert opened.shape == (10, 8, 8) and len(opened) == 10
    assert [len(batch) for batch in opened.batches(size)] == [size] * (10 // size) + [10 % size] * (10 % size > 0)
    np.testing.assert_array_equal(joined(tmp_path / "a.npz", size), images)


def test_only_the_batch_in_hand_is_held(tmp_path):
    import tracemalloc

    np.savez(tmp_path / "a.npz", arr_0=np.zeros((400, 64, 64, 3), np.uint8))  # 4.9 MB
    tracemalloc.start()
    for batch in open_pictures(tmp_path / "a.npz").batches(10):
        assert batch.flags.writeable  # torch.from_numpy wants it so
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_folder_is_read_in_natural_order(tmp_path):
    images = pictures(12)
    for i, image in enumerate(images):
        save_png(tmp_path / f"{i}.png", image)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".0.png").write_bytes(b"half written")
    (tmp_path / "settings.json").write_text('{"kind": "generation"}')
    np.testing.assert_array_equal(joined(tmp_path, 5), images)
    assert open_pictures(tmp_path).kind == "generation"


def test_grey_files_become_rgb_and_deep_ones_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "0.png")
    assert (joined(tmp_path, 1) == 7).all()
    Image.fromarray(np.full((8, 8), 700, np.uint16)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0.png: .*more than 8 bits"):
        joined(tmp_path, 1)


def test_papers_and_arrays_are_found(tmp_path):
    write_npz(tmp_path / "a.npz", pictures(3), (3, 8, 8, 3), {"kind": "reference", "seed": 3}, more=np.arange(4.0))
    opened = open_pictures(tmp_path / "a.npz")
    assert opened.meta == {"kind": "reference", "seed": 3} and opened.kind == "reference"
    np.testing.assert_array_equal(opened.array("more"), np.arange(4.0))
    assert opened.beside(".txt") == tmp_path / "a.txt"


@pytest.mark.parametrize("name, kind", [
    ("GPT-B-c2i_B_384-size-384-size-256-VQ-16-topk-0-topp-1.0-temperature-1.0-cfg-2.0-seed-0.npz", "generation"),
    ("VQ-16-imagenet-size-256-size-256-codebook-size-16384-dim-8-seed-0.npz", "reconstruction"),
    ("val_imagenet.npz", "originals"),
    ("VIRTUAL_imagenet256_labeled.npz", "reference"),
    ("mine.npz", None),
])  # fmt: skip
def test_published_files_are_known_by_their_names(tmp_path, name, kind):
    np.savez(tmp_path / name, arr_0=pictures(2))
    assert open_pictures(tmp_path / name).kind == kind


def test_another_program_s_papers_are_let_be(tmp_path):
    odd = ("made by me", "[1, 2]", 7, '{"kind": ["a"], "image_size": "8", "pictures": null}')
    for i, text in enumerate(odd):
        np.savez(tmp_path / f"{i}.npz", arr_0=pictures(2), meta=np.array(text))
        opened = open_pictures(tmp_path / f"{i}.npz")
        assert opened.meta == {} and opened.kind is None


def test_names_with_dots_keep_them(tmp_path):
    (tmp_path / "cfg-2.0").mkdir()
    save_png(tmp_path / "cfg-2.0/0.png", pictures(1)[0])
    assert open_pictures(tmp_path / "cfg-2.0").beside(".txt").name == "cfg-2.0.txt"


def test_the_checksum_is_of_everything(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures(2, seed))
        for i, image in enumerate(pictures(2, seed)):
            save_png(tmp_path / name / f"{i}.png", image)
    sums = {str(path.name): open_pictures(path).sha256 for path in tmp_path.iterdir()}
    assert sums["a"] == sums["b"] != sums["c"] and sums["a.npz"] != sums["c.npz"]
    (tmp_path / "b/1.png").rename(tmp_path / "b/2.png")
    assert open_pictures(tmp_path / "b").sha256 != sums["a"]


WRONG = {
    "float": (np.zeros((2, 8, 8, 3), np.float32), "arr_0 is float32; expected uint8"),
    "grey": (np.zeros((2, 8, 8), np.uint8), r"\(2, 8, 8\), grey pictures"),
    "one channel": (np.zeros((2, 8, 8, 1), np.uint8), "grey pictures"),
    "channels first": (np.zeros((2, 3, 8, 8), np.uint8), "channels last"),
    "one number": (np.uint8(3), "channels last"),
    "none": (np.zeros((0, 8, 8, 3), np.uint8), "holds no pictures"),
    "fortran": (np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8)), "Fortran order"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_of_other_kinds_are_named(tmp_path, name):
    array, error = WRONG[name]
    np.savez(tmp_path / "a.npz", arr_0=array)
    with pytest.raises(ValueError, match=f"a.npz: .*{error}"):
        open_pictures(tmp_path / "a.npz")


def test_files_that_are_no_archives_are_named(tmp_path):
    def refused(name: str, error: str):
        with pytest.raises(ValueError, match=f"{name}: .*{error}"):
            list(open_pictures(tmp_path / name).batches(4))

    refused("nowhere.npz", "no such file")
    (tmp_path / "text.npz").write_text("FID: 2.18")
    refused("text.npz", "truncated or not an npz")
    np.savez(tmp_path / "a.npz", arr_0=pictures(500))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused("cut.npz", "truncated")
    np.savez(tmp_path / "other.npz", arr_1=pictures(2), labels=np.zeros(2))
    refused("other.npz", "holds arr_1, labels; expected arr_0")
    np.savez(tmp_path / "half.npz", mu=np.zeros(2))
    refused("half.npz", "holds mu without sigma; a mean and a covariance belong together")
    np.savez(tmp_path / "half.npz", arr_0=pictures(2), mu=np.zeros(2), sigma=np.eye(2), sigma_s=np.eye(2))
    refused("half.npz", "holds sigma_s without mu_s")
    with zipfile.ZipFile(tmp_path / "packed.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("arr_0.npy", b"x" * 500)
    packed = bytearray((tmp_path / "packed.npz").read_bytes())
    packed[60:80] = bytes(20)
    (tmp_path / "packed.npz").write_bytes(packed)
    refused("packed.npz", "truncated or not an npz")
    whole = (tmp_path / "a.npz").read_bytes()
    for name, method in (("unknown", 9), ("encrypted", None)):
        odd = bytearray(whole)
        for signature, flags, kind in ((b"PK\3\4", 6, 8), (b"PK\1\2", 8, 10)):
            at = odd.index(signature)
            odd[at + flags] |= method is None
            odd[at + kind] = odd[at + kind] if method is None else method
        (tmp_path / f"{name}.npz").write_bytes(odd)
        refused(f"{name}.npz", "truncated or not an npz")
    with zipfile.ZipFile(tmp_path / "strange.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"not an array at all")
    refused("strange.npz", "truncated or not an npz")
    (tmp_path / "empty").mkdir()
    refused("empty", "no pictures in this folder")


def test_damaged_bytes_are_noticed(tmp_path):
    """A reference fetched over a bad line must not give a score."""
    np.savez(tmp_path / "a.npz", arr_0=pictures(500))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[5000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match="a.npz: truncated or not an npz .*CRC"):
        joined(tmp_path / "a.npz", 100)


def test_an_array_cut_short_is_noticed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (9, 8, 8, 3)})
        file.write(bytes(5 * 8 * 8 * 3 + 10))
    with pytest.raises(ValueError, match="ends within picture 5 of 9"):
        joined(tmp_path / "a.npz", 4)


def test_mixed_sizes_are_named(tmp_path):
    for i, side in enumerate((8, 8, 9)):
        save_png(tmp_path / f"{i}.png", pictures(1, side=side)[0])
    with pytest.raises(ValueError, match=r"mixed sizes: 0.png is 8 x 8 px, 2.png is 9 x 9"):
        open_pictures(tmp_path)


class Harmful:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_archives_of_pickled_objects_run_no_code(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=pictures(2), meta=np.array(Harmful(tmp_path / "touched"), dtype=object))
    assert Archive(tmp_path / "a.npz").meta == {}, "papers of others are let be"
    np.savez(tmp_path / "a.npz", mu=np.array(Harmful(tmp_path / "touched"), dtype=object), sigma=np.eye(2))
    with pytest.raises(ValueError, match="a.npz: truncated or not an npz .Object arrays"):
        Archive(tmp_path / "a.npz").array("mu")
    assert not (tmp_path / "touched").exists()


MEMORY = """
from pathlib import Path
import torch
from evaluations.archive import open_pictures
from evaluations.features import FeatureNet, extract

class Cheap(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :2048].clone(), images.flatten(1)[:, :8].clone()

def held() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

net = FeatureNet("cheap", "0", False, Cheap(), torch.zeros(3, 2048))
few, many = open_pictures(FEW), open_pictures(MANY)
extract(net, few.batches(64), len(few), "")
before = held()
found = extract(net, many.batches(64), len(many), "")
assert found.pooled.shape == (len(many), 2048) and found.pool_statistics.count == len(many)
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_run_is_that_of_the_features(tmp_path):
    """Small tensors between large ones would keep malloc from using the memory of past batches again: 10 GB of it for
    50,000 pictures."""
    counts = {"few": 256, "many": 4096}
    for name, count in counts.items():
        write_npz(tmp_path / f"{name}.npz", iter(np.zeros((count, 128, 128, 3), np.uint8)), (count, 128, 128, 3), {})
    script = MEMORY.replace("FEW", repr(str(tmp_path / "few.npz"))).replace("MANY", repr(str(tmp_path / "many.npz")))
    (tmp_path / "script.py").write_text(script)
    more = float(run_script(tmp_path / "script.py").stdout)
    assert more < 3 * 4096 * 2048 * 4 / 2**20, f"{more:.0f} MB for 32 MB of features"
