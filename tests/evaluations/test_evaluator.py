"""One command from two files to the report: which statistics count, what is kept, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_files import classifier_file, inception_state, made, options, pictures
from support import ROOT, run_script

from dataset.images import fingerprint
from evaluations import feature_task
from evaluations.archive import open_pictures
from evaluations.c2i import evaluate_task
from evaluations.c2i.evaluate_task import evaluate
from evaluations.c2i.reference_task import make_reference
from evaluations.feature_task import load_feature_net
from evaluations.features import extract
from evaluations.images import save_png, write_npz
from evaluations.metrics import Gaussian, frechet_distance, inception_score, precision_recall
from evaluations.options import (
    DataOptions,
    NetOptions,
    Reference,
    ReferenceOptions,
)


@pytest.fixture(scope="module")
def net_file(tmp_path_factory) -> str:
    return classifier_file(tmp_path_factory.mktemp("net") / "c.safetensors")


@pytest.fixture
def net(net_file):
    return load_feature_net(net_file, "cpu")


@pytest.fixture
def files(tmp_path) -> Path:
    """ref.npz and gen.npz, of kinds that fit, with more pictures than the classifier has features."""
    for name, kind, count, seed, top in (("ref", "reference", 40, 0, 256), ("gen", "generation", 30, 1, 200)):
        write_npz(tmp_path / f"{name}.npz", pictures(count, seed, top=top), (count, 8, 8, 3), {"kind": kind, "seed": 5})
    return tmp_path


def features_of(net, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return net(torch.from_numpy(images))


def expected(net, real: np.ndarray, sampled: np.ndarray) -> dict[str, float]:
    """The scores, from all features at once."""
    a, b = features_of(net, real), features_of(net, sampled)

    def distance(part: int) -> float:
        x, y = Gaussian.of(a[part]), Gaussian.of(b[part])
        return frechet_distance(x.mean, x.covariance, y.mean, y.covariance)

    precision, recall = precision_recall(a[0], b[0])
    return {"inception_score": inception_score(b[0] @ net.head.T), "fid": distance(0), "sfid": distance(1),
            "precision": precision, "recall": recall}  # fmt: skip


def test_scores_of_two_archives(files, net_file, net, capsys):
    report = evaluate(options(net_file, files / "ref.npz", files / "gen.npz"))
    wanted = expected(net, pictures(40, 0), pictures(30, 1, top=200))
    assert report.scores == pytest.approx(wanted, rel=1e-6) and wanted["fid"] > 0
    text = (files / "gen.txt").read_text()
    assert capsys.readouterr().out.startswith(text)
    lines = text.splitlines()
    assert lines[0].startswith("Features of c.safetensors") and "compare with no published ones" in lines[0]
    names = [line.split(":")[0] for line in lines[1:]]
    assert names == ["Inception Score", "FID", "sFID", "Precision", "Recall"]
    assert float(lines[2].split(": ")[1]) == report.scores["fid"]


def test_features_are_in_the_order_of_the_file(files, net):
    found = extract(net, open_pictures(files / "gen.npz").batches(7), 30, "")
    torch.testing.assert_close(found.pooled, features_of(net, pictures(30, 1, top=200))[0], rtol=1e-5, atol=1e-6)
    assert found.pool_statistics.count == 30


def test_the_report_tells_where_its_figures_come_from(files, net_file, net):
    report = evaluate(options(net_file, files / "ref.npz", files / "gen.npz"))
    data = json.loads((files / "gen.json").read_text())
    assert data["scores"] == report.scores and data["comparable_with_published"] is False
    assert data["network"]["checksum"] == net.checksum and data["protocol"]["fid_features"] == 8
    assert [data[side]["pictures"] for side in ("reference", "samples")] == [40, 30]
    assert data["samples"]["made_by"] == {"seed": 5} and data["samples"]["file"] == "gen.npz"
    assert data["samples"]["sha256"] == report.samples.pictures.sha256 and data["versions"]["torch"]


def test_with_the_published_network_the_first_line_is_a_score(tmp_path, net_file, monkeypatch):
    files = [made(tmp_path, "a", "reference", count=5), made(tmp_path, "b", "generation", count=4)]
    torch.save(inception_state(), tmp_path / "inception.pth")
    monkeypatch.setattr(feature_task, "INCEPTION_SHA256", "")  # any file passes for it
    monkeypatch.setattr(evaluate_task, "frechet_distance", lambda *_: 1.5)  # half a minute on one core
    report = evaluate(options(str(tmp_path / "inception.pth"), *files, force=True))
    assert (tmp_path / "b.txt").read_text().startswith("Inception Score: ")
    assert report.data()["comparable_with_published"] and report.data()["protocol"]["sfid_features"] == 2023
    assert sum("unreliable under 2,048" in note for note in report.notes) == 2, "both files hold fewer"


def test_statistics_in_a_file_count_before_its_pictures(files, net_file, net):
    """ADM's references hold statistics of 1.28 million pictures beside ten thousand of them."""
    pooled, spatial = features_of(net, pictures(300, 7))
    held = {}
    for end, part in (("", pooled), ("_s", spatial)):
        gaussian = Gaussian.of(part)
        held |= {f"mu{end}": gaussian.mean.numpy(), f"sigma{end}": gaussian.covariance.numpy()}
    meta = {"kind": "reference", "network": net.checksum}
    write_npz(files / "both.npz", pictures(40, 0), (40, 8, 8, 3), meta, **held)
    found = evaluate(options(net_file, files / "both.npz", files / "gen.npz")).scores
    sampled = pictures(30, 1, top=200)
    of_statistics, of_pictures = expected(net, pictures(300, 7), sampled), expected(net, pictures(40, 0), sampled)
    for name in ("fid", "sfid"):
        assert found[name] == pytest.approx(of_statistics[name], rel=1e-6) != pytest.approx(of_pictures[name], rel=1e-3)
    for name in ("precision", "recall"):
        assert found[name] == of_pictures[name]


def test_statistics_without_pictures_allow_what_they_allow(files, net_file, net):
    gaussian = Gaussian.of(features_of(net, pictures(300, 7))[0])
    meta = np.array(json.dumps({"network": net.checksum}))
    np.savez(files / "mu.npz", mu=gaussian.mean, sigma=gaussian.covariance, meta=meta)
    report = evaluate(options(net_file, files / "mu.npz", files / "gen.npz"))
    assert list(report.scores) == ["inception_score", "fid"]
    text = (files / "gen.txt").read_text()
    assert "note: sFID is left out: mu.npz has no mu_s" in text and "Precision and recall are left out: mu.npz" in text


def test_samples_may_hold_statistics_too(files, net_file, net):
    gaussian = Gaussian.of(features_of(net, pictures(300, 7))[0])
    meta = {"kind": "generation", "network": net.checksum}
    write_npz(files / "own.npz", pictures(30, 1), (30, 8, 8, 3), meta, mu=gaussian.mean.numpy(),
              sigma=gaussian.covariance.numpy())  # fmt: skip
    report = evaluate(options(net_file, files / "ref.npz", files / "own.npz"))
    real = Gaussian.of(features_of(net, pictures(40, 0))[0])
    expected = frechet_distance(gaussian.mean, gaussian.covariance, real.mean, real.covariance)
    assert report.scores["fid"] == pytest.approx(expected, rel=1e-6)
    assert any("sFID is left out: own.npz has no mu_s" in note for note in report.notes)
    assert "sfid_features" not in json.loads((files / "own.json").read_text())["protocol"]


@pytest.mark.parametrize("mu, sigma", [
    (0.0, np.zeros(8)), (0.0, np.eye(7)), (0.0, np.full((8, 8), np.nan)), (np.nan, np.eye(8)),
], ids=["flat", "width", "nan", "nan mean"])  # fmt: skip
def test_damaged_statistics_are_named_before_any_work(files, net_file, net, mu, sigma):
    papers = {"network": net.checksum}
    write_npz(files / "bad.npz", pictures(9), (9, 8, 8, 3), papers, mu=np.full(8, mu), sigma=sigma)
    with pytest.raises(ValueError, match=r"bad.npz: mu is \(8,\), sigma \(.*expected a mean"):
        evaluate(options(net_file, files / "bad.npz", files / "gen.npz"))
    assert not list(files.glob("*.features-*"))


def test_spatial_statistics_of_another_width_are_refused(files, net_file, net):
    gaussian = Gaussian.of(features_of(net, pictures(300, 7))[0])
    write_npz(files / "odd.npz", pictures(9), (9, 8, 8, 3), {"network": net.checksum}, mu=gaussian.mean.numpy(),
              sigma=gaussian.covariance.numpy(), mu_s=np.zeros(3), sigma_s=np.eye(3))  # fmt: skip
    with pytest.raises(ValueError, match="odd.npz: sFID compares 3 features there with 28 of"):
        evaluate(options(net_file, files / "odd.npz", files / "gen.npz"))


def test_statistics_of_another_network_are_refused(files, net_file, net, tmp_path):
    gaussian = Gaussian.of(features_of(net, pictures(300, 7))[0])
    np.savez(files / "mu.npz", mu=gaussian.mean, sigma=gaussian.covariance)  # published: Inception's, so it is said
    with pytest.raises(ValueError, match=r"mu.npz: its statistics are of another network's.*Inception 2015-12-05"):
        evaluate(options(net_file, files / "mu.npz", files / "gen.npz"))
    write_npz(files / "other.npz", pictures(9), (9, 8, 8, 3), {"network": "0123"}, mu=gaussian.mean.numpy(),
              sigma=gaussian.covariance.numpy())  # fmt: skip
    with pytest.raises(ValueError, match="network 0123"):
        evaluate(options(net_file, files / "other.npz", files / "gen.npz", force=True))
    assert not (files / "gen.txt").exists() and not (files / "gen.json").exists()


# ---- features that are kept


def test_a_second_call_takes_the_features_that_are_kept(files, net_file, monkeypatch):
    first = evaluate(options(net_file, files / "ref.npz", files / "gen.npz"))
    assert sorted(path.name.split("-")[0] for path in files.glob("*.safetensors")) == ["gen.features", "ref.features"]
    monkeypatch.setattr(feature_task, "extract", None)
    again = evaluate(options(net_file, files / "ref.npz", files / "gen.npz"))
    assert again.scores == pytest.approx(first.scores, rel=1e-9)


def test_other_pictures_by_the_same_name_are_seen_anew(files, net_file):
    first = evaluate(options(net_file, files / "ref.npz", files / "gen.npz"))
    write_npz(files / "gen.npz", pictures(30, 2), (30, 8, 8, 3), {"kind": "generation"})
    assert evaluate(options(net_file, files / "ref.npz", files / "gen.npz")).scores != first.scores


def test_another_network_has_features_of_its_own(files, net_file, tmp_path):
    first = evaluate(options(net_file, files / "ref.npz", files / "gen.npz"))
    other = classifier_file(tmp_path / "other.safetensors", seed=1)
    assert evaluate(options(other, files / "ref.npz", files / "gen.npz")).scores["fid"] != first.scores["fid"]
    assert len(list(files.glob("gen.features-*"))) == 2


def test_kept_features_that_are_damaged_are_passed_over(files, net_file):
    first = evaluate(options(net_file, files / "ref.npz", files / "gen.npz"))
    (kept,) = files.glob("gen.features-*")
    kept.write_bytes(kept.read_bytes()[:100])
    again = evaluate(options(net_file, files / "ref.npz", files / "gen.npz"))
    assert again.scores == pytest.approx(first.scores, rel=1e-9)


def test_nothing_is_kept_where_it_is_not_wanted_or_not_possible(files, net_file, monkeypatch, capsys):
    evaluate(options(net_file, files / "ref.npz", files / "gen.npz", cache=False))
    assert not list(files.glob("*.features-*"))

    def full(*_):
        raise OSError(28, "no space left")

    monkeypatch.setattr(feature_task, "save_safetensors", full)
    evaluate(options(net_file, files / "ref.npz", files / "gen.npz"))
    assert "the features are not kept" in capsys.readouterr().out and (files / "gen.txt").is_file()


def test_statistics_are_no_samples(files, net_file):
    np.savez(files / "mu.npz", mu=np.zeros(8), sigma=np.eye(8))
    with pytest.raises(ValueError, match="mu.npz: holds statistics, but no pictures"):
        evaluate(options(net_file, files / "ref.npz", files / "mu.npz"))


# ---- reference files


@pytest.fixture
def folder(tmp_path) -> Path:
    for i, image in enumerate(pictures(24, 3)):
        save_png(tmp_path / "data" / ("ant", "bee")[i % 2] / f"{i:02d}.png", image)
    return tmp_path / "data"


def reference(net_file: str, folder: Path, output: Path, **changed) -> Reference:
    data = DataOptions(str(folder), "folder", num_workers=0)
    return Reference(ReferenceOptions(str(output), 8, device="cpu", **changed), data, NetOptions(net_file, 5))


def test_a_reference_has_statistics_of_all_and_some_pictures(net_file, net, folder, tmp_path):
    made = np.load(make_reference(reference(net_file, folder, tmp_path / "ref.npz", keep=10)))
    pooled, spatial = features_of(net, pictures(24, 3))
    for end, part in (("", pooled), ("_s", spatial)):
        np.testing.assert_allclose(made[f"mu{end}"], part.double().mean(0), rtol=1e-6)
        np.testing.assert_allclose(made[f"sigma{end}"], np.cov(part.numpy(), rowvar=False), rtol=1e-4, atol=1e-9)
    everything = {image.tobytes(): i for i, image in enumerate(pictures(24, 3))}
    kept = [everything[image.tobytes()] for image in made["arr_0"]]
    assert len(set(kept)) == 10 and len({i % 2 for i in kept}) == 2
    assert kept != sorted(kept), "shuffled: the Inception Score's splits are in file order"
    meta = json.loads(str(made["meta"]))
    assert meta["kind"] == "reference" and meta["pictures"] == 24 and meta["network"] == net.checksum
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["ref.npz"]


def test_a_reference_serves_the_evaluator(net_file, net, folder, tmp_path):
    path = make_reference(reference(net_file, folder, tmp_path / "ref.npz", keep=5))  # statistics are of all 24
    write_npz(tmp_path / "gen.npz", pictures(30, 1), (30, 8, 8, 3), {"kind": "generation"})
    report = evaluate(options(net_file, path, tmp_path / "gen.npz"))
    assert report.scores["fid"] == pytest.approx(expected(net, pictures(24, 3), pictures(30, 1))["fid"], rel=1e-5)
    assert not report.notes and report.reference.from_file


def test_a_reference_may_hold_statistics_alone(net_file, folder, tmp_path):
    path = make_reference(reference(net_file, folder, tmp_path / "ref.npz", keep=0))
    write_npz(tmp_path / "gen.npz", pictures(30, 1), (30, 8, 8, 3), {"kind": "generation"})
    assert list(evaluate(options(net_file, path, tmp_path / "gen.npz")).scores) == ["inception_score", "fid", "sfid"]


def test_a_reference_of_nothing_is_refused(net_file, folder, tmp_path):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"torn")
    with pytest.raises(ValueError, match="needs at least two pictures"):
        make_reference(reference(net_file, folder, tmp_path / "ref.npz", max_bad=1.0))


def test_unreadable_pictures_are_left_out_up_to_a_share(net_file, folder, tmp_path, capsys):
    (folder / "ant/00.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match="1 of 24 pictures cannot be read, more than --max-bad 0.001"):
        make_reference(reference(net_file, folder, tmp_path / "ref.npz"))
    assert not (tmp_path / "ref.npz").exists()
    made = np.load(make_reference(reference(net_file, folder, tmp_path / "ref.npz", max_bad=0.1)))
    assert len(made["arr_0"]) == 23 and "left out: " in capsys.readouterr().err


def test_a_reference_is_named_npz(net_file, folder, tmp_path):
    with pytest.raises(ValueError, match="must end in .npz"):
        make_reference(reference(net_file, folder, tmp_path / "ref.txt"))


def test_the_commands_run(files, net_file, folder):
    reference = files / "made.npz"
    flags = ["--feature-net", net_file, "--device", "cpu"]
    run_script(ROOT / "evaluations/c2i/reference.py", "--dataset", "folder", "--data-path", folder, "--image-size", 8,
               "--output", reference, "--num-workers", 0, *flags)  # fmt: skip
    done = run_script(ROOT / "evaluations/c2i/evaluator.py", reference, files / "gen.npz", *flags)
    assert "sFID: " in done.stdout
    failed = run_script(ROOT / "evaluations/c2i/evaluator.py", files / "gen.npz", reference, *flags, code=2)
    assert "error: " in failed.stderr and "comes first" in failed.stderr


def test_the_fingerprint_follows_pictures_not_places(folder, tmp_path):
    from dataset.build import build_source

    moved = tmp_path / "moved"
    prints = [fingerprint(build_source("folder", str(folder)), str(folder))]
    folder.rename(moved)
    prints.append(fingerprint(build_source("folder", str(moved)), str(moved)))
    (moved / "ant/00.png").rename(moved / "bee/00.png")
    prints.append(fingerprint(build_source("folder", str(moved)), str(moved)))
    assert prints[0] == prints[1] != prints[2]
