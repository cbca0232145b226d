"""Training a classifier, and reading samples with it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.build import build_source
from dataset.options import DataOptions
from engine.checkpoint import read_weights
from engine.options import OptimOptions, RunOptions
from evaluations.classifier_task import build_classifier, held_out, train_classifier
from evaluations.convnet import ConvNetConfig
from evaluations.images import write_npz
from evaluations.options import ClassifierTraining, Score, Scoring, TrainClassifier
from evaluations.score_task import load_classifier, score
from tokenizer.tokenizer_image.perceptual import build_perceptual

CLASSES = ["blue", "green", "red"]


def picture(label: int, seed: int) -> np.ndarray:
    """A noisy square of one colour: three classes that any working classifier tells apart."""
    noise = np.random.default_rng([label, seed]).integers(0, 60, (8, 8, 3))
    noise[:, :, 2 - label] += 150
    return noise.astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 16), ("test", 5)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture(label, i + 100 * (part == "test"))).save(root / part / name / f"{i}.png")
    return root


def options(data: Path, out: Path, **optim) -> TrainClassifier:
    chosen = {"max_steps": 12, "global_batch_size": 12, "lr": 1e-2, "mixed_precision": "none", "device": "cpu", **optim}
    return TrainClassifier(
        ClassifierTraining(width=8, image_size=8),  # with 4, oneDNN's backward pass aborts on processors of AVX2
        DataOptions(str(data), "cifar10", num_workers=0),
        OptimOptions(**chosen),
        RunOptions(results_dir=str(out), run_name="c", resume=True, log_every=3, preview_every=0),
    )


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    train_classifier(options(data, out, ema=True, ema_decay=0.7))
    return out / "c"


def samples(path: Path, labels: list[int], shown: list[int]) -> str:
    """An npz whose pictures show `shown` where `labels` were asked for."""
    images = [picture(label, 1000 + i) for i, label in enumerate(shown)]
    write_npz(path, images, (len(images), 8, 8, 3), {}, labels=np.array(labels))
    return str(path)


def test_a_classifier_learns_and_the_file_says_how_well(trained):
    weights = read_weights(trained / "classifier.safetensors")
    assert weights.meta["kind"] == "classifier" and weights.meta["class_names"] == CLASSES
    assert weights.meta["config"] == {"width": 8, "num_classes": 3, "image_size": 8}
    assert weights.meta["accuracy"] > 0.9
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"step": 12, "val_accuracy": weights.meta["accuracy"]}


def test_the_file_holds_the_weights_that_were_scored(trained, data):
    held = read_weights(trained / "classifier.safetensors").state
    average = read_weights(trained / "checkpoints" / "0000012.pt", prefer=("ema",)).state
    raw = read_weights(trained / "checkpoints" / "0000012.pt").state
    assert all(torch.equal(held[name], average[name]) for name in average)
    assert any(not torch.equal(held[name], raw[name]) for name in raw)


def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path):
    train_classifier(options(data, tmp_path / "whole"))
    stopped = options(data, tmp_path / "cut")
    train_classifier(replace(stopped, run=replace(stopped.run, max_minutes=0.0)))
    assert not (tmp_path / "cut" / "c" / "classifier.safetensors").exists()  # it appears when the training is done
    train_classifier(stopped)
    whole, cut = (read_weights(tmp_path / name / "c" / "classifier.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole.state[name], cut.state[name]) for name in whole.state)
    assert whole.meta == cut.meta


def test_a_finished_run_only_says_its_accuracy_again(data, trained, capsys):
    (trained / "classifier.safetensors").unlink()
    train_classifier(options(data, trained.parent, ema=True, ema_decay=0.7))
    meta = read_weights(trained / "classifier.safetensors").meta
    assert f"accuracy {meta['accuracy']:.4f} on 15 held-out pictures" in capsys.readouterr().out
    assert meta["accuracy"] > 0.9


def test_every_trained_parameter_has_a_say_in_the_logits():
    model = build_classifier(ConvNetConfig(width=4, num_classes=3, image_size=8))
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()  # DDP waits for the gradients that never come
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}


def test_checkpoint_and_file_both_measure_distances(trained, data):
    x, y = torch.rand(2, 2, 3, 8, 8)
    of_file = build_perceptual(1.0, str(trained / "classifier.safetensors"))
    assert torch.equal(of_file(x, x), torch.zeros(2)) and (of_file(x, y) > 0).all()
    of_checkpoint = build_perceptual(1.0, str(trained / "checkpoints" / "0000012.pt"))
    assert (of_checkpoint(x, y) > 0).all()


def test_the_score_counts_what_is_read_as_asked(trained, data, tmp_path, capsys):
    asked, shown = [0, 0, 0, 0, 2, 2, 2, 2], [0, 0, 0, 1, 2, 2, 0, 1]
    npz = samples(tmp_path / "s.npz", asked, shown)
    real = DataOptions(str(data), "cifar10", "test", num_workers=0)
    out = tmp_path / "score.json"
    figures = score(Score(Scoring(str(trained / "classifier.safetensors"), npz, 3, str(out), "cpu"), real))
    assert figures["samples"] == {"pictures": 8, "share": 0.625, "by_class": {"blue": 0.75, "green": None, "red": 0.5}}
    accuracy = read_weights(trained / "classifier.safetensors").meta["accuracy"]
    assert figures["real"]["pictures"] == 15 and figures["real"]["share"] == pytest.approx(accuracy, abs=1e-4)
    assert json.loads(out.read_text()) == figures
    said = capsys.readouterr().out
    assert "0.6250 of 8 sampled pictures" in said and "of 15 held-out real pictures" in said
    assert said.splitlines()[2].split() == ["green", "-", "0", "1.000", "5"]


def test_without_real_pictures_the_file_speaks_for_itself(trained, tmp_path, capsys):
    score(Score(Scoring(str(trained / "classifier.safetensors"), samples(tmp_path / "s.npz", [1], [1]), device="cpu")))
    accuracy = read_weights(trained / "classifier.safetensors").meta["accuracy"]
    assert f"{accuracy:.4f} of the real pictures held out" in capsys.readouterr().out


def test_samples_that_do_not_fit_are_named(trained, data, tmp_path):
    def refused(npz: str, error: str, data: DataOptions | None = None):
        scoring = Scoring(str(trained / "classifier.safetensors"), npz, device="cpu")
        with pytest.raises(ValueError, match=error):
            score(Score(scoring, data or DataOptions()))

    refused(str(tmp_path / "none.npz"), "no such file")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 cut short")
    refused(str(tmp_path / "bad.npz"), "truncated or not an npz")
    np.savez(tmp_path / "published.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    refused(str(tmp_path / "published.npz"), "has no labels")
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((2, 16, 16, 3), np.uint8), labels=[0, 1])
    refused(str(tmp_path / "large.npz"), "--image-size-eval 8")
    np.savez(tmp_path / "many.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 3])
    refused(str(tmp_path / "many.npz"), "labels from 0 to 2")
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 8, 8, 3)), labels=[0, 1])
    refused(str(tmp_path / "float.npz"), "expected uint8")
    other = tmp_path / "other"
    shutil.copytree(data / "test", other)
    (other / "red").rename(other / "violet")
    renamed = DataOptions(str(other), "folder", num_workers=0)
    refused(samples(tmp_path / "s.npz", [1], [1]), "classes of --classifier", renamed)


def test_only_a_classifier_scores(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "meta": {"kind": "gpt"}}, tmp_path / "gpt.pt")
    with pytest.raises(ValueError, match="holds gpt, not a classifier"):
        load_classifier(str(tmp_path / "gpt.pt"))


def test_a_share_is_held_out_once_and_for_all(data):
    source = build_source("folder", str(data / "train"))
    choice = ClassifierTraining(val_fraction=0.25)
    kept, outside = held_out(choice, DataOptions(str(data / "train"), "folder"), source, seed=0)
    paths = [{part.path(row) for row in range(len(part))} for part in (kept, outside)]
    assert not paths[0] & paths[1] and paths[0] | paths[1] == set(source.paths)
    assert 4 <= len(outside) <= 20
    assert all(CLASSES[outside.label(row)] == Path(outside.path(row)).parent.name for row in range(len(outside)))
    again = held_out(choice, DataOptions(str(data / "train"), "folder"), source, seed=0)[1]
    assert again.rows.tolist() == outside.rows.tolist()


@pytest.mark.parametrize(
    ("training", "error"),
    [
        (ClassifierTraining(), "--val-data-path"),
        (ClassifierTraining(val_fraction=1.0), "--val-fraction 1.0"),
        (ClassifierTraining(val_fraction=0.1, val_data_path="x"), "give one of them"),
    ],
)
def test_held_out_pictures_must_come_from_somewhere(data, training, error):
    source = build_source("folder", str(data / "train"))
    with pytest.raises(ValueError, match=error):
        held_out(training, DataOptions(str(data / "train"), "folder"), source, seed=0)


def test_pictures_without_labels_and_tiny_ones_are_refused(data, tmp_path):
    flat = options(data, tmp_path)
    with pytest.raises(ValueError, match="without labels"):
        train_classifier(replace(flat, data=DataOptions(str(data / "train"), "flat")))
    with pytest.raises(ValueError, match="--image-size 4"):
        train_classifier(replace(flat, training=ClassifierTraining(image_size=4)))
