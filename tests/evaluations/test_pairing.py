"""Which pictures are scored against which: what does not fit is refused before any work, with what would."""

import json
from pathlib import Path

import numpy as np
import pytest
from feature_files import classifier_file, made, options, pictures

from evaluations.c2i.evaluate_task import evaluate
from evaluations.images import save_png


@pytest.fixture(scope="module")
def net_file(tmp_path_factory) -> str:
    return classifier_file(tmp_path_factory.mktemp("net") / "c.safetensors")


PAIRS = [
    ("reference", "reconstruction", "against the pictures that were reconstructed: val_imagenet.npz"),
    ("originals", "generation", "against statistics of the training set: ADM's VIRTUAL_imagenet256_labeled.npz"),
    ("generation", "reference", "stands in the place of the reference, which comes first"),
    ("reconstruction", "reconstruction", "stands in the place of the reference"),
    (None, "reference", "stands in the place of the samples; the reference comes first"),
]


@pytest.mark.parametrize("reference, samples, error", PAIRS)
def test_wrong_pairings_are_refused_with_what_fits(tmp_path, net_file, reference, samples, error):
    a, b = made(tmp_path, "a", reference), made(tmp_path, "b", samples)
    with pytest.raises(ValueError, match=error):
        evaluate(options(net_file, a, b))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"], "before any work"
    report = evaluate(options(net_file, a, b, force=True))
    assert any(error.split(":")[0] in note for note in report.notes) and "note: " in (tmp_path / "b.txt").read_text()


@pytest.mark.parametrize("reference, samples", [
    ("reference", "generation"), ("originals", "reconstruction"), (None, "generation"), ("originals", None),
    ("reference", "originals"),
])  # fmt: skip
def test_pairings_that_fit_pass(tmp_path, net_file, reference, samples):
    same = {"dataset": "coco", "source": "ab"}
    assert not evaluate(options(net_file, made(tmp_path, "a", reference, **same),
                                made(tmp_path, "b", samples, **same))).notes  # fmt: skip


def test_files_of_others_are_taken_at_their_names(tmp_path, net_file):
    reconstruction = made(tmp_path, "b", "reconstruction", dataset="imagenet", split="all", source="1")
    assert not evaluate(options(net_file, made(tmp_path, "val_imagenet"), reconstruction)).notes


def test_published_names_are_refused_too(tmp_path, net_file):
    a = made(tmp_path, "VIRTUAL_imagenet256_labeled")
    b = made(tmp_path, "VQ-16-imagenet-size-256-size-256-codebook-size-16384-dim-8-seed-0")
    with pytest.raises(ValueError, match="val_imagenet.npz"):
        evaluate(options(net_file, a, b))


@pytest.mark.parametrize("name", ["stats", "val_stats"])
def test_statistics_of_any_name_are_no_originals(tmp_path, net_file, name):
    np.savez(tmp_path / f"{name}.npz", mu=np.zeros(8), sigma=np.eye(8))
    with pytest.raises(ValueError, match="reconstructions are scored against the pictures that were reconstructed"):
        evaluate(options(net_file, tmp_path / f"{name}.npz", made(tmp_path, "b", "reconstruction")))


def test_statistics_of_few_pictures_are_refused_too(tmp_path, net_file):
    with pytest.raises(ValueError, match="few.npz: 7 pictures; FID is unreliable under 8"):
        evaluate(options(net_file, statistics(tmp_path / "few.npz", pictures=7), made(tmp_path, "b", "generation")))


def test_fewer_originals_than_reconstructions_are_refused(tmp_path, net_file):
    a, b = made(tmp_path, "a", "originals", count=19), made(tmp_path, "b", "reconstruction")
    with pytest.raises(ValueError, match="b.npz: 20 pictures, .*a.npz holds 19; rFID is against the very pictures"):
        evaluate(options(net_file, a, b))


def test_reconstructions_of_other_pictures_are_refused(tmp_path, net_file):
    a = made(tmp_path, "a", "originals", dataset="imagenet", split="train", source="1")
    b = made(tmp_path, "b", "reconstruction", dataset="coco", split="train", source="2")
    with pytest.raises(ValueError, match=r"dataset imagenet.*reconstructs \(dataset coco\)(.|\n)*source 1"):
        evaluate(options(net_file, a, b))


def test_other_resolutions_and_too_few_pictures_are_refused(tmp_path, net_file):
    a, b = made(tmp_path, "a", side=16), made(tmp_path, "b")
    with pytest.raises(ValueError, match="b.npz: pictures of 8 x 8 px, .* 16 x 16; sample with --image-size-eval 16"):
        evaluate(options(net_file, a, b))
    few = made(tmp_path, "few", count=7)
    with pytest.raises(ValueError, match="few.npz: 7 pictures; FID is unreliable under 8"):
        evaluate(options(net_file, b, few))
    assert not evaluate(options(net_file, b, made(tmp_path, "enough", count=8))).notes
    one = made(tmp_path, "one", count=1)
    with pytest.raises(ValueError, match="one.npz: holds one picture"):
        evaluate(options(net_file, b, one, force=True))
    report = evaluate(options(net_file, b, made(tmp_path, "three", count=3), force=True))
    assert "precision" not in report.scores and any("need more than 3" in note for note in report.notes)


def statistics(path: Path, **meta) -> Path:
    papers = {"meta": np.array(json.dumps(meta))} if meta else {}
    np.savez(path, mu=np.zeros(8), sigma=np.eye(8), **papers)
    return path


@pytest.mark.parametrize("name, meta", [("VIRTUAL_imagenet512", {}), ("mine", {"image_size": 512})])
def test_statistics_alone_tell_their_resolution_by_name_or_papers(tmp_path, net_file, name, meta):
    with pytest.raises(ValueError, match="b.npz: pictures of 8 x 8 px, those of .* are 512 x 512"):
        evaluate(options(net_file, statistics(tmp_path / f"{name}.npz", **meta), made(tmp_path, "b", "generation")))


def test_statistics_of_an_unknown_resolution_are_scored_with_a_note(tmp_path, net_file, monkeypatch):
    net = options(net_file, "", "").features.feature_net
    from evaluations.feature_task import load_feature_net

    path = statistics(tmp_path / "stats.npz", network=load_feature_net(net, "cpu").checksum)
    report = evaluate(options(net_file, path, made(tmp_path, "b", "generation")))
    assert "stats.npz does not tell the size of its pictures: the scores count if that is 8 x 8 px" in report.notes[0]


def test_a_folder_may_be_named_as_where_one_stands(tmp_path, net_file, monkeypatch):
    for i, image in enumerate(pictures(20)):
        save_png(tmp_path / "here" / f"{i}.png", image)
    monkeypatch.chdir(tmp_path / "here")
    evaluate(options(net_file, made(tmp_path, "a", "reference"), "."))
    assert (tmp_path / "here.txt").is_file() and (tmp_path / "here.json").is_file()
