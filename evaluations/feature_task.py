"""The network that pictures are compared by, from a file or fetched; features of pictures, kept beside their file."""

from pathlib import Path

import torch

from engine.checkpoint import checksum, load_strict, read_file, read_weights, save_safetensors
from engine.distributed import pick_device
from engine.modes import on_meta
from evaluations.archive import Pictures, sha256
from evaluations.features import Activations, FeatureNet, classifier_net, extract, inception_net
from evaluations.inception import Inception, folded
from evaluations.options import CachedNetOptions
from evaluations.score_task import load_classifier

# Both files hold the same weights, converted from TensorFlow's graph of 2015-12-05; they are named by their SHA-256.
INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILES[0]}"
INCEPTION_SHA256 = "6726825d"  # its first digits
FORMAT = 1  # of the stored features; a change of what they are makes it another


def load_feature_net(path: str | None, device: torch.device | str = "auto", flag: str = "--feature-net") -> FeatureNet:
    """Inception's weights or a classifier of ours; without a path Inception's, fetched where they are not there yet."""
    device = pick_device(device) if isinstance(device, str) else device
    file = path or fetch_inception(flag)
    data = read_file(file, flag)
    meta = data.get("meta")
    if isinstance(meta, dict) and meta.get("kind") == "classifier":
        net, _ = load_classifier(file, device, flag)
        name = f"{Path(file).name} (ConvNet-{net.config.width})"
        return classifier_net(net, checksum(net.state_dict()), name)
    weights = read_weights(file, flag=flag)
    with on_meta():
        module = Inception()
    try:
        weights.state = folded(weights.state)
    except KeyError as error:
        raise ValueError(f"{flag} {file}: holds neither Inception's weights nor a classifier of "
                         f"evaluations/classifier.py ({error} is missing)") from error  # fmt: skip
    load_strict(module, weights, flag, "Expected Inception's weights or a classifier of evaluations/classifier.py")
    module = module.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return inception_net(module, checksum(weights.state), sha256(file).startswith(INCEPTION_SHA256))


def fetch_inception(flag: str = "--feature-net") -> str:
    """Where Inception's weights lie on this machine; fetched if they do not yet."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in INCEPTION_FILES:
        if (folder / name).is_file():
            return str(folder / name)
    path = folder / INCEPTION_FILES[0]
    print(f"fetching Inception's weights (91 MB) into {path}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), INCEPTION_SHA256)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{flag}: Inception's weights are not there and could not be fetched ({error}). Put "
                         f"{path.name} ({INCEPTION_URL}) into {folder}, or name the file by {flag}; for small pictures "
                         "a classifier of evaluations/classifier.py serves too, whose scores compare with nothing "
                         "published") from error  # fmt: skip
    return str(path)


def activations_of(pictures: Pictures, identity: str, net: FeatureNet, options: CachedNetOptions,
                   what: str) -> Activations:  # fmt: skip
    """The features of a file's pictures: those kept beside it where they are of this very file (`identity`: its
    SHA-256) and network, else extracted and kept."""
    kept = pictures.beside(f".features-{net.checksum[:8]}.safetensors")
    papers = {"format": FORMAT, "kind": "features", "sha256": identity, "network": net.checksum}
    if options.cache and kept.is_file():
        try:
            weights = read_weights(kept)
            if weights.meta == papers:
                return Activations.from_state(weights.state)
        except (ValueError, KeyError) as error:
            print(f"{kept}: passed over ({error})")
    found = extract(net, pictures.batches(options.batch_size), len(pictures), what)
    if options.cache:
        try:
            save_safetensors(kept, found.state(), papers)
        except OSError as error:  # a folder that is not ours to write into
            print(f"the features are not kept: {error}")
    return found
