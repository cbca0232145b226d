"""Scoring a tokenizer by its reconstructions: figures are those of the files, on any number of processes."""

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reconstructed import COUNT, SIDE, TORN, VQ, options, write_files
from support import ROOT, run_script

from dataset.augmentation import center_crop_arr
from dataset.build import build_source, center_crops
from dataset.images import scale
from engine.distributed import Context
from evaluations.feature_task import load_feature_net
from evaluations.images import grid, to_bytes
from evaluations.metrics import Gaussian, frechet_distance
from evaluations.reconstruct import psnr, ssim
from tokenizer.tokenizer_image import reconstruct_task
from tokenizer.tokenizer_image.perceptual import build_perceptual
from tokenizer.tokenizer_image.reconstruct_options import ClosenessOptions, ReconstructionRun
from tokenizer.tokenizer_image.reconstruct_report import Found, Networks, Report, Tally
from tokenizer.tokenizer_image.reconstruct_task import reconstruct
from tokenizer.tokenizer_image.vq_load import load_tokenizer

ROWS = [row for row in range(COUNT) if row != TORN]
NAME = f"VQ-4-tiny-imagenet-size-{SIDE}-size-{SIDE}-codebook-size-256-dim-8-seed-0"
CPU = torch.device("cpu")
NO_NETWORKS = ClosenessOptions(lpips=False, rfid=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def one(files, tmp_path_factory) -> Path:
    """A folder with the results of one process."""
    out = tmp_path_factory.mktemp("one")
    reconstruct(options(files, out))
    return out


def crops(files: Path) -> np.ndarray:
    """The originals uint8 [N, S, S, 3]."""
    source = build_source("imagenet", str(files / "pictures"))
    return np.stack([np.asarray(center_crop_arr(source.open(row), SIDE)) for row in ROWS])


def tokens(files: Path, prefer: tuple[str, ...] = ("ema",)) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and what they decode to, of all originals in batches as the run has them."""
    model = load_tokenizer(options(files, files).tokenizer, CPU, prefer=prefer).model
    images = torch.from_numpy(crops(files)).permute(0, 3, 1, 2)
    codes = torch.cat([model.encode_codes(scale(part)) for part in images.split(3)])
    return codes, torch.cat([model.decode_code(part) for part in codes.split(3)])


def arrays(out: Path, name: str = NAME) -> np.ndarray:
    return np.load(out / f"{name}.npz")["arr_0"]


def results(out: Path, name: str = NAME) -> dict:
    return json.loads((out / f"{name}_results.json").read_text())


def contents(out: Path, name: str = NAME) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / name).glob("*.png")}


def test_files_have_the_published_names_and_are_numbered_by_row(one):
    ends = [".npz", "_best.png", "_results.json", "_results.txt", "_worst.png"]
    assert sorted(path.name for path in one.iterdir()) == [NAME, *(NAME + end for end in ends)]
    assert sorted(contents(one)) == [f"{row:06d}.png" for row in ROWS]
    stored = arrays(one)
    assert stored.dtype == np.uint8 and stored.shape == (COUNT - 1, SIDE, SIDE, 3)
    for row, picture in zip(ROWS, stored):
        assert np.array_equal(np.asarray(Image.open(one / NAME / f"{row:06d}.png")), picture)
    meta = json.loads(str(np.load(one / f"{NAME}.npz")["meta"]))
    assert meta["kind"] == "reconstruction" and meta["dataset"] == "imagenet" and meta["split"] == "test"
    assert meta == json.loads((one / NAME / "settings.json").read_text())


def test_pictures_are_the_moving_average_s_reconstructions(one, files):
    np.testing.assert_array_equal(arrays(one), to_bytes(tokens(files)[1]))
    assert not np.array_equal(arrays(one), to_bytes(tokens(files, prefer=())[1]))


def test_every_figure_is_that_of_the_stored_bytes(one, files):
    scores, pair = results(one)["scores"], [torch.from_numpy(each) for each in (crops(files), arrays(one))]
    assert scores["psnr"] == pytest.approx(float(psnr(*pair).mean()))
    assert scores["ssim"] == pytest.approx(float(ssim(*pair).mean()))
    assert scores["ssim_range_2"] == pytest.approx(float(ssim(*pair, data_range=2.0).mean()))
    signed = [each.permute(0, 3, 1, 2) / 127.5 - 1 for each in pair]
    distances = build_perceptual(1.0, str(files / "net.pt"))(*signed)
    assert scores["lpips"] == pytest.approx(float(distances.mean()), rel=1e-5)
    net = load_feature_net(str(files / "net.pt"), CPU)
    sides = [Gaussian.of(net(each)[0]) for each in pair]
    expected = frechet_distance(sides[0].mean, sides[0].covariance, sides[1].mean, sides[1].covariance)
    assert scores["rfid"] == pytest.approx(expected, rel=1e-4) and scores["rfid"] > 0
    counts = np.bincount(tokens(files)[0].flatten().numpy(), minlength=256)
    share = counts[counts > 0] / counts.sum()
    assert scores["codebook_usage"] == pytest.approx((counts > 0).mean()) and 1 < (counts > 0).sum() < 256
    assert scores["code_entropy"] == pytest.approx(-(share * np.log2(share)).sum())
    assert scores["code_perplexity"] == pytest.approx(2 ** scores["code_entropy"])


def test_the_text_says_the_same_a_figure_a_line(one):
    scores, lines = results(one)["scores"], (one / f"{NAME}_results.txt").read_text().splitlines()
    assert lines[0].startswith("Features of net.pt (ConvNet-4), network ")
    assert lines[0].endswith("not of Inception 2015-12-05: the rFID compares with no published ones")
    assert lines[1] == f"PSNR: {scores['psnr']:f}, SSIM: {scores['ssim']:f}"
    starts = ("SSIM (data range 2, as published)", "LPIPS (on net.pt, not VGG16", "rFID", "Codebook usage (",
              "Code entropy (bits, at most 8)", "Code perplexity")  # fmt: skip
    names = ("ssim_range_2", "lpips", "rfid", "codebook_usage", "code_entropy", "code_perplexity")
    for line, start, name in zip(lines[2:8], starts, names):
        assert line.startswith(start) and line.endswith(f": {scores[name]:f}"), line
    assert lines[8] == f"Pictures: {COUNT - 1}"
    notes = "\n".join(lines[9:])
    assert f"1 of {COUNT} pictures cannot be read" in notes and "rFID is of 10 pictures; FID is unreliable" in notes


def test_worst_and_best_are_shown_originals_above(one, files):
    found = results(one)
    assert [len(found[which]) for which in ("worst", "best")] == [8, 8]
    distances = [each["lpips"] for each in found["worst"] + found["best"][-2:]]
    assert distances == sorted(distances, reverse=True) and len(set(distances)) == 10
    for which in ("worst", "best"):
        places = [ROWS.index(each["row"]) for each in found[which]]
        sheet = grid(np.concatenate([crops(files)[places], arrays(one)[places]]), 8)
        with Image.open(one / f"{NAME}_{which}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture)[::8, ::8], sheet)  # 16 px are shown as 128
            assert json.loads(picture.text["pictures"]) == found[which]
    assert found["worst"][0]["file"].endswith(f"{found['worst'][0]['row']:02d}.png")


def test_two_processes_give_the_same(one, files, tmp_path):
    flags = ["--data-path", files / "pictures", "--vq-ckpt", files / "vq.pt", "--perceptual-net", files / "net.pt",
             "--feature-net", files / "net.pt", "--sample-dir", tmp_path, "--max-bad", "0.1", "--device", "cpu",
             "--per-proc-batch-size", "3", "--num-workers", "0"]  # fmt: skip
    run_script(ROOT / "tokenizer/tokenizer_image/reconstruction_vq_ddp.py", *flags, ranks=2)
    assert contents(tmp_path) == contents(one)
    assert np.array_equal(arrays(tmp_path), arrays(one))
    for end in ("_worst.png", "_best.png"):
        assert (tmp_path / (NAME + end)).read_bytes() == (one / (NAME + end)).read_bytes()
    mine, theirs = results(one), results(tmp_path)
    assert theirs["scores"] == pytest.approx(mine["scores"], rel=1e-6)
    for same in ("notes", "worst", "made_by", "pictures", "codes_chosen"):
        assert theirs[same] == mine[same]


def test_more_processes_than_pictures_and_their_share_of_bad_ones(files):
    """A rank without pictures counts nothing; one bad picture is a share of all, not of one rank's few."""
    source = build_source("imagenet", str(files / "pictures"))
    read = [len(b["index"]) for b in center_crops(source, SIDE, [TORN, 5], 2, 0, max_bad=0.1, total=COUNT)]
    assert read == [1]
    with pytest.raises(ValueError, match="1 of 2 pictures cannot be read, more than --max-bad 0.1"):
        list(center_crops(source, SIDE, [TORN, 5], 2, 0, max_bad=0.1))
    networks = Networks(features=load_feature_net(str(files / "net.pt"), CPU))
    first, second, idle = (Tally(networks, 4, CPU) for _ in range(3))
    random = np.random.default_rng(0).integers(0, 256, (2, 4, SIDE, SIDE, 3), np.uint8)
    first.add([3, 1], *random[:, :2], torch.tensor([[[0, 1]]] * 2))
    second.add([0, 2], *random[:, 2:], torch.tensor([[[1, 3]]] * 2))
    found = Found.merged([idle.found(), first.found(), second.found()])
    assert found.rows.tolist() == [0, 1, 2, 3] and found.histogram.tolist() == [2, 4, 0, 2]
    order = [2, 1, 3, 0]
    np.testing.assert_array_equal(found.figures["psnr"], psnr(*torch.from_numpy(random[:, order])).numpy())
    assert [side.count for side in found.statistics] == [4, 4]


def test_too_many_unreadable_pictures_end_it(files, tmp_path):
    """Where no rank alone has more than its share, too."""
    with pytest.raises(ValueError, match=f"1 of {COUNT} pictures cannot be read, more than --max-bad 0.05"):
        reconstruct(options(files, tmp_path, NO_NETWORKS, max_bad=0.05))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    found = Found(np.arange(18), {}, torch.zeros(4), None)
    with pytest.raises(ValueError, match="2 of 20 pictures cannot be read, more than --max-bad 0.09"):
        reconstruct_task.notes_on(found, 20, ReconstructionRun(max_bad=0.09), 16, 16)
    assert len(reconstruct_task.notes_on(found, 20, ReconstructionRun(max_bad=0.1), 16, 16)) == 1
    none = Found(np.arange(0), {}, torch.zeros(4), None)
    with pytest.raises(ValueError, match="none of its pictures can be read"):
        reconstruct_task.notes_on(none, 20, ReconstructionRun(max_bad=1.0), 16, 16)


def test_another_size_is_reached_on_the_float_picture(files, tmp_path):
    report = reconstruct(options(files, tmp_path, NO_NETWORKS, image_size_eval=24))
    originals, decoded = (F.interpolate(each, (24, 24), mode="bicubic") for each in
                          (scale(torch.from_numpy(crops(files)).permute(0, 3, 1, 2)), tokens(files)[1]))  # fmt: skip
    stored = arrays(tmp_path, NAME.replace("-size-16-codebook", "-size-24-codebook"))
    np.testing.assert_array_equal(stored, to_bytes(decoded))
    pair = torch.from_numpy(to_bytes(originals)), torch.from_numpy(stored)
    assert report.scores["psnr"] == pytest.approx(float(psnr(*pair).mean()), abs=1e-6)
    assert any("--image-size 24" in note for note in report.notes)


@pytest.mark.parametrize(("trained_on", "run", "expected"), [
    (32, {}, (32, 32)), (None, {}, (256, 256)), (None, {"image_size": 384}, (384, 256)), (512, {}, (512, 256)),
    (32, {"image_size": 64}, (64, 64)), (32, {"image_size_eval": 256}, (32, 256)),
])  # fmt: skip
def test_sizes_are_the_checkpoint_s_or_the_published_ones(trained_on, run, expected, files):
    tokenizer = replace(load_tokenizer(options(files, files).tokenizer, CPU), image_size=trained_on)
    assert reconstruct_task.sizes(ReconstructionRun(**run), tokenizer) == expected


# ---- networks


def test_a_network_that_cannot_be_had_leaves_its_figure_out_and_says_why(files, tmp_path, monkeypatch):
    pytest.importorskip("lpips")

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    report = reconstruct(options(files, tmp_path, ClosenessOptions()))
    lines = (tmp_path / f"{NAME}_results.txt").read_text().splitlines()
    assert lines[0].startswith("PSNR: ") and not any(line.startswith(("LPIPS", "rFID")) for line in lines)
    said = [line for line in lines if line.startswith("note: ")]
    assert "LPIPS is left out: --perceptual-net: could not get" in said[1] and "no route to host" in said[1]
    assert "vgg16-397923af.pth" in said[1] and "--no-lpips" in said[1] and "--perceptual-weight" not in said[1]
    assert "rFID is left out: --feature-net: " in said[2] and "pt_inception-2015-12-05" in said[2]
    assert {"lpips", "rfid"}.isdisjoint(report.scores) and len(said) == 3
    shown = [each["psnr"] for each in results(tmp_path)["worst"]]
    assert shown == sorted(shown), "without LPIPS the worst are those of the least PSNR"


def test_a_classifier_of_another_size_is_refused(files, tmp_path):
    nets = ClosenessOptions(lpips=False, feature_net=str(files / "net.pt"))
    with pytest.raises(ValueError, match="--feature-net .*: reads pictures of 16 px alone; give --image-size-eval 16"):
        reconstruct(options(files, tmp_path, nets, image_size_eval=24))
    assert not list(tmp_path.iterdir())


def test_networks_are_neither_fetched_nor_missed_where_they_are_not_wanted(files, monkeypatch):
    for name in ("lpips_vgg", "load_feature_net"):
        monkeypatch.setattr(reconstruct_task, name, lambda *_, **__: pytest.fail("was loaded"))
    assert reconstruct_task.load_networks(NO_NETWORKS, 16, Context(0, 1, CPU)) == Networks()
    tiny = reconstruct_task.load_networks(ClosenessOptions(rfid=False), 8, Context(0, 1, CPU))
    assert tiny.perceptual is None and "VGG16 needs pictures of 16 px" in tiny.notes[0]


def test_the_other_ranks_load_what_rank_0_fetched(monkeypatch):
    asked = []
    monkeypatch.setattr(Context, "any", lambda self, flag: flag)
    monkeypatch.setattr(Context, "share", lambda self, value: "no route")
    assert reconstruct_task.where_there(lambda: asked.append(1), Context(1, 2, CPU)) == (None, "no route")
    assert not asked, "where rank 0 failed, nobody else tries"
    monkeypatch.setattr(Context, "share", lambda self, value: None)
    assert reconstruct_task.where_there(lambda: "net", Context(1, 2, CPU)) == ("net", None)
    monkeypatch.setattr(Context, "any", lambda self, flag: True)
    net, why = reconstruct_task.where_there(lambda: "net", Context(0, 2, CPU))
    assert net is None and "has not got its weights" in why


def test_scores_of_inception_s_own_features_come_without_a_caveat(files):
    net = replace(load_feature_net(str(files / "net.pt"), CPU), standard=True)
    tally = Tally(Networks(features=net), 4, CPU)
    tally.add([0], *np.zeros((2, 1, SIDE, SIDE, 3), np.uint8), torch.tensor([[[0]]]))
    report = Report(tally.found(), tally.networks, {}, [], "cpu")
    assert report.lines()[0] == "PSNR: inf, SSIM: 1.000000"
    assert report.data()["scores"]["psnr"] is None
    assert any("1 of 1 pictures are reproduced exactly" in note for note in report.notes)
    assert "rfid" not in report.scores and any("two pictures at least" in note for note in report.notes)
    random = np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE, 3), np.uint8)
    tally.add([1, 2, 3], *random, torch.tensor([[[0]]] * 3))
    report = Report(tally.found(), tally.networks, {}, [], "cpu")
    assert report.lines()[0].startswith("PSNR: ") and report.scores["rfid"] > 0
    assert report.scores["psnr"] == pytest.approx(float(psnr(*torch.from_numpy(random)).mean()))


# ---- folders and disks


def test_a_run_overwrites_its_own_and_no_other_s(one, files, tmp_path):
    shutil.copytree(one, tmp_path / "again")
    folder = tmp_path / "again" / NAME
    (folder / "000000.png").write_bytes(b"old")
    (folder / f"{TORN:06d}.png").write_bytes(b"of a time when it could be read")
    reconstruct(options(files, tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(one)
    held = torch.load(files / "vq.pt")
    torch.save({**held, "ema": held["model"]}, tmp_path / "other.pt")
    other = options(files, tmp_path / "again", NO_NETWORKS)
    other.tokenizer.vq_ckpt = str(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"--sample-dir .*other settings \(tokenizer_checksum"):
        reconstruct(other)
    with pytest.raises(ValueError, match=r"other settings \(precision float32"):
        reconstruct(options(files, tmp_path / "again", NO_NETWORKS, precision="bf16"))
    assert contents(tmp_path / "again") == contents(one)


def test_a_full_disk_leaves_no_half_npz(files, tmp_path):
    """Pictures of a few kB each still fit, the npz of all does not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"could not write .*{NAME}\.npz"):
            reconstruct(options(files, tmp_path, NO_NETWORKS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    reconstruct(options(files, tmp_path, NO_NETWORKS))
    assert len(arrays(tmp_path)) == COUNT - 1


def test_a_published_tokenizer_of_other_codes_is_named_so(files, tmp_path):
    model = VQ(codebook_size=64, codebook_embed_dim=4)
    torch.save({"model": model.state_dict()}, tmp_path / "vq.pt")
    bare = options(files, tmp_path, NO_NETWORKS, image_size=SIDE)
    bare.tokenizer.vq_ckpt, bare.tokenizer.vq_model = str(tmp_path / "vq.pt"), "VQ-4-tiny"
    reconstruct(bare)
    assert (tmp_path / f"{NAME.replace('256-dim-8', '64-dim-4')}.npz").is_file()
