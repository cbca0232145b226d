"""The originals' npz, and that the evaluator takes it for reconstructions of the same pictures alone."""

import json
import resource
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reconstructed import COUNT, SIDE, TORN, data, options, write_files
from support import ROOT, run_script

from dataset.augmentation import center_crop_arr
from dataset.build import build_source
from tokenizer.tokenizer_image.reconstruct_options import ClosenessOptions
from tokenizer.tokenizer_image.reconstruct_task import reconstruct
from tokenizer.validation.val_options import OriginalsOptions, WriteOriginals
from tokenizer.validation.val_task import write_originals

EVALUATOR = "evaluations/c2i/evaluator.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


def originals(files: Path, out: Path, path: str | None = None, **changed) -> WriteOriginals:
    chosen = {"image_size": SIDE, "sample_dir": str(out), "per_proc_batch_size": 3, "max_bad": 0.1, **changed}
    return WriteOriginals(OriginalsOptions(**chosen), data(files, path))


@pytest.fixture(scope="module")
def pair(files, tmp_path_factory) -> tuple[Path, Path]:
    """The originals, and their reconstructions."""
    out = tmp_path_factory.mktemp("pair")
    reconstruct(options(files, out, ClosenessOptions(lpips=False, rfid=False)))
    return write_originals(originals(files, out)), next(out.glob("VQ-*.npz"))


def test_the_originals_are_the_centre_crops_in_order(files, pair):
    source = build_source("imagenet", str(files / "pictures"))
    crops = [np.asarray(center_crop_arr(source.open(row), SIDE)) for row in range(COUNT) if row != TORN]
    with np.load(pair[0]) as held, np.load(pair[1]) as reconstructed:
        assert held["arr_0"].dtype == np.uint8 and np.array_equal(held["arr_0"], np.stack(crops))
        meta, theirs = (json.loads(str(each["meta"])) for each in (held, reconstructed))
        assert len(reconstructed["arr_0"]) == len(crops)
    assert meta == {"kind": "originals", "image_size": SIDE, "seed": 0, **{n: theirs[n] for n in
                    ("dataset", "split", "source")}}  # fmt: skip
    assert pair[0].name == "val_imagenet.npz" and not list(pair[0].parent.glob(".*"))


def test_several_processes_write_the_same_file(files, pair, tmp_path):
    flags = ["--data-path", files / "pictures", "--image-size", SIDE, "--sample-dir", tmp_path, "--max-bad", "0.1",
             "--num-workers", "0"]  # fmt: skip
    run_script(ROOT / "tokenizer/validation/val_ddp.py", *flags, ranks=2)
    with np.load(tmp_path / "val_imagenet.npz") as theirs, np.load(pair[0]) as mine:
        assert np.array_equal(theirs["arr_0"], mine["arr_0"]) and str(theirs["meta"]) == str(mine["meta"])


def test_unreadable_pictures_are_left_out_up_to_a_share(files, tmp_path, capsys):
    with pytest.raises(ValueError, match=f"1 of {COUNT} pictures cannot be read, more than --max-bad 0.05"):
        write_originals(originals(files, tmp_path, max_bad=0.05))
    assert not list(tmp_path.iterdir())
    torn = tmp_path / "torn"
    torn.mkdir()
    shutil.copy(files / "pictures" / "ant" / f"{TORN:02d}.png", torn / "0.png")
    every = originals(files, tmp_path, max_bad=1.0)
    with pytest.raises(ValueError, match="none of its pictures can be read"):
        write_originals(replace(every, data=replace(every.data, data_path=str(torn), dataset="flat")))
    assert [path.name for path in tmp_path.iterdir()] == ["torn"]


def test_a_full_disk_leaves_the_file_before(files, tmp_path):
    path = write_originals(originals(files, tmp_path))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    pictures = (COUNT - 1) * SIDE * SIDE * 3
    for size in (pictures // 2, pictures - 10, pictures + 50):  # at last what waits aside fits, but the npz does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match=r"could not write .*val_imagenet\.npz"):
                write_originals(originals(files, tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def evaluate(reference: Path, samples: Path, files: Path, capsys, *more: str) -> tuple[int, str]:
    """Exit code and words of `python3 evaluations/c2i/evaluator.py`."""
    previous = sys.argv
    sys.argv = [str(ROOT / EVALUATOR), *map(str, (reference, samples, "--feature-net", files / "net.pt", *more))]
    capsys.readouterr()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = previous
    said = capsys.readouterr()
    return code, said.out + said.err


def enough(pictures: Path, count: int = 24) -> str:
    """A flat folder of pictures, so many that the classifier's 16 features are few beside them."""
    random = np.random.default_rng(1)
    pictures.mkdir()
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(pictures / f"{i}.png")
    return str(pictures)


def test_the_evaluator_takes_the_pair_and_its_fid_is_the_reported_one(files, tmp_path, capsys):
    path = enough(tmp_path / "pictures")
    report = reconstruct(options(files, tmp_path, path=path, dataset="flat"))
    chosen = originals(files, tmp_path, path)
    val = write_originals(replace(chosen, data=replace(chosen.data, dataset="flat")))
    code, said = evaluate(val, next(tmp_path.glob("VQ-*.npz")), files, capsys)
    assert code == 0, said
    fid = json.loads(next(tmp_path.glob("VQ-*-seed-0.json")).read_text())["scores"]["fid"]
    assert report.scores["rfid"] == pytest.approx(fid, rel=1e-6)


def test_the_evaluator_refuses_originals_that_are_others(files, pair, tmp_path, capsys):
    """Of another folder, of another size, and in the wrong order."""
    fewer = tmp_path / "fewer"
    shutil.copytree(files / "pictures", fewer)
    (fewer / "cat" / "10.png").unlink()
    others = write_originals(originals(files, tmp_path, str(fewer)))
    code, said = evaluate(others, pair[1], files, capsys)
    assert code == 2 and "holds other pictures (source" in said and "--data-path" in said
    larger = write_originals(originals(files, tmp_path / "larger", image_size=24))
    code, said = evaluate(larger, pair[1], files, capsys)
    assert code == 2 and "those of" in said and "24 x 24" in said and "--image-size-eval 24" in said
    code, said = evaluate(pair[1], pair[0], files, capsys)
    assert code == 2 and "holds reconstructions, but stands in the place of the reference" in said
