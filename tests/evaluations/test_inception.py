"""The network of FID: held against an independent implementation, and where its weights come from."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_files import classifier_file, inception_state
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from evaluations import feature_task
from evaluations.feature_task import load_feature_net
from evaluations.inception import resize


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_state(), path)
    return str(path)


@pytest.fixture(scope="module")
def net(weights):
    return load_feature_net(weights, "cpu")


@pytest.fixture(scope="module")
def other(weights):
    """torch-fidelity's implementation, with the same weights."""
    return FeatureExtractorInceptionV3("other", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)


@pytest.mark.parametrize("height, width", [(32, 32), (299, 299), (400, 320)])
def test_features_are_those_of_an_independent_implementation(net, other, height, width):
    images = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    maps = []
    hook = other.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: maps.append(out))
    with torch.inference_mode():
        pooled, logits = other(images.permute(0, 3, 1, 2))
    hook.remove()
    ours, spatial = net(images)
    assert ours.shape == (2, 2048) and spatial.shape == (2, 2023)
    assert 0.1 < pooled.std() < 10 and (ours[0] - ours[1]).abs().max() > 0.01, "the weights tell pictures apart"
    torch.testing.assert_close(ours, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.logits(ours), logits, rtol=1e-4, atol=1e-3)
    # In the order of the graph, channels last: published mu_s and sigma_s have it.
    expected = torch.stack([maps[0][:, c, y, x] for y in range(17) for x in range(17) for c in range(7)], 1)
    torch.testing.assert_close(spatial, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height, width, side", [(5, 8, 11), (9, 20, 6), (7, 7, 7)])
def test_resizing_is_tensorflow_1s(height, width, side):
    image = np.random.default_rng(0).random((height, width))
    expected = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side  # the corner of the grid stays where it is
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            expected[i, j] = upper + (lower - upper) * (y - top)
    found = resize(torch.from_numpy(image)[None, None], side)[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_only_the_published_weights_count_as_the_standard(weights, net, monkeypatch):
    assert not net.standard and net.name == "Inception of unknown weights"
    monkeypatch.setattr(feature_task, "INCEPTION_SHA256", hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:8])
    assert load_feature_net(weights, "cpu").standard


def test_weights_are_fetched_once_and_checked(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(feature_task, "INCEPTION_URL", f"file://{weights}")
    kept = tmp_path / "checkpoints" / feature_task.INCEPTION_FILES[0]
    with pytest.raises(ValueError, match=r"--feature-net: .*could not be fetched.*\n?.*Put pt_inception.* into"):
        load_feature_net(None, "cpu")  # another file than the published one
    assert not list(kept.parent.iterdir()), "nothing half-fetched is left"
    monkeypatch.setattr(feature_task, "INCEPTION_SHA256", hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:8])
    assert load_feature_net(None, "cpu").standard and kept.is_file()
    monkeypatch.setattr(feature_task, "INCEPTION_URL", "file:///nowhere")
    capsys.readouterr()
    assert load_feature_net(None, "cpu").standard and "fetching" not in capsys.readouterr().out
    kept.rename(kept.with_name(feature_task.INCEPTION_FILES[1]))  # as torch-fidelity keeps it
    assert load_feature_net(None, "cpu").standard
    kept.with_name(feature_task.INCEPTION_FILES[1]).unlink()
    with pytest.raises(ValueError, match="could not be fetched"):
        load_feature_net(None, "cpu")


def test_other_files_are_refused(tmp_path):
    state = inception_state()
    torch.save({**state, "extra.conv.weight": torch.zeros(1, 1, 1, 1)}, tmp_path / "no_norm.pth")
    with pytest.raises(ValueError, match=r"--feature-net .*no_norm.pth: holds neither .*extra.bn.weight"):
        load_feature_net(str(tmp_path / "no_norm.pth"), "cpu")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"--feature-net .*other.pth: not the weights of this model"):
        load_feature_net(str(tmp_path / "other.pth"), "cpu")
    torch.save({"model": {"weight": torch.zeros(3)}, "meta": {"kind": "gpt"}}, tmp_path / "gpt.pt")
    with pytest.raises(ValueError, match=r"--feature-net .*gpt.pt: .*Expected Inception's weights or a classifier"):
        load_feature_net(str(tmp_path / "gpt.pt"), "cpu")


def test_batch_norm_counters_and_auxiliary_heads_are_let_be(tmp_path, net):
    state = inception_state()
    state |= {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0), "AuxLogits.fc.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "with.pth")
    assert load_feature_net(str(tmp_path / "with.pth"), "cpu").checksum == net.checksum


def test_a_classifier_reads_its_own_size_alone(tmp_path):
    net = load_feature_net(classifier_file(tmp_path / "c.safetensors"), "cpu")
    assert not net.standard and net.width == 8
    pooled, spatial = net(torch.zeros(3, 8, 8, 3, dtype=torch.uint8))
    assert pooled.shape == (3, 8) and spatial.shape == (3, 2 * 2 * 7)
    with pytest.raises(ValueError, match="reads pictures of 8 x 8 px, these are 9 x 8"):
        net(torch.zeros(3, 8, 9, 3, dtype=torch.uint8))


def test_a_classifier_sees_pictures_as_in_its_training(tmp_path):
    net = load_feature_net(classifier_file(tmp_path / "c.safetensors"), "cpu")
    image = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    x = image.permute(0, 3, 1, 2).float() / 255 * 2 - 1
    torch.testing.assert_close(net(image)[0], net.module.net.pooled(x), rtol=1e-5, atol=1e-6)
