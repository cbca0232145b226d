"""Whether sampled pictures show what was asked for: as a classifier reads them, class by class.

Axes: N pictures.
"""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataset.build import build_source
from dataset.classes import class_names_for
from dataset.images import ArraySource, Images
from dataset.options import DataOptions
from engine.checkpoint import load_strict, read_weights, write_json
from engine.distributed import pick_device
from evaluations.classifier_task import number_of_classes, readings
from evaluations.convnet import ConvNet, ConvNetConfig
from evaluations.options import Score


def load_classifier(path: str, device: torch.device | str = "cpu", flag: str = "--classifier") -> tuple[ConvNet, dict]:
    """The network in eval mode on `device`, and its papers."""
    weights = read_weights(path, flag=flag)
    if weights.meta.get("kind") != "classifier":
        kind = weights.meta.get("kind", "something unknown")
        raise ValueError(f"{flag} {path}: holds {kind}, not a classifier; train one by evaluations/classifier.py")
    model = ConvNet(ConvNetConfig(**weights.meta["config"]))
    load_strict(model, weights, flag)
    return model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False), weights.meta


def read_samples(path: str, config: ConvNetConfig, class_names: list[str] | None) -> ArraySource:
    """arr_0 uint8 [N, H, W, 3] and labels int64 [N] of an npz, fit for a classifier of `config`."""
    try:
        with np.load(path) as arrays:
            missing = [name for name in ("arr_0", "labels") if name not in arrays]
            if missing:
                raise ValueError(f"--samples {path}: has no {' and no '.join(missing)}; sample_c2i_ddp.py writes both")
            pictures, labels = arrays["arr_0"], arrays["labels"]
    except FileNotFoundError:
        raise ValueError(f"--samples {path}: there is no such file") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"--samples {path}: truncated or not an npz ({error})") from error
    side = config.image_size
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or len(pictures) != len(labels):
        raise ValueError(f"--samples {path}: arr_0 is {pictures.dtype} {pictures.shape} with {len(labels)} labels, "
                         "expected uint8 (N, H, W, 3) with N labels")  # fmt: skip
    if pictures.shape[1:3] != (side, side):
        raise ValueError(f"--samples {path}: pictures of {pictures.shape[2]} x {pictures.shape[1]} px, the classifier "
                         f"reads {side} x {side}: sample with --image-size-eval {side}")  # fmt: skip
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= config.num_classes:
        raise ValueError(f"--samples {path}: needs labels from 0 to {config.num_classes - 1}, as --classifier has")
    return ArraySource(pictures, labels.astype(np.int64), class_names)


def count_right(model: ConvNet, images: Images, what: str, batch: int, workers: int) -> np.ndarray:
    """int64 [classes, 2]: of each class, pictures that are read as their label, and pictures."""
    counts = torch.zeros(model.config.num_classes, 2, dtype=torch.int64)
    with torch.inference_mode(), tqdm(total=len(images), desc=what, unit="picture", disable=None, leave=False) as bar:
        for right, labels in readings(model, images, range(len(images)), batch, workers):
            counts.index_add_(0, labels, torch.stack([right.long(), torch.ones_like(labels)], 1))
            bar.update(len(labels))
    return counts.numpy()


def real_pictures(data: DataOptions, config: ConvNetConfig, class_names: list[str] | None) -> Images:
    """The held-out pictures of --data-path; their classes must be the classifier's."""
    source = build_source(data.dataset, data.data_path, data.split)
    classes = number_of_classes(source, data.data_path)
    if classes > config.num_classes or source.class_names != class_names:
        raise ValueError(f"--data-path {data.data_path}: its {classes} classes are not the {config.num_classes} "
                         "classes of --classifier")  # fmt: skip
    return Images(source, config.image_size, "center")


def score(options: Score) -> dict:
    """Print a table of shares; the same as plain data."""
    scoring, data = options.scoring, options.data
    model, meta = load_classifier(scoring.classifier, pick_device(scoring.device))
    samples = read_samples(scoring.samples, model.config, meta["class_names"])
    real = None
    if data.data_path or data.dataset == "digits":
        real = real_pictures(data, model.config, meta["class_names"])
    sampled = Images(samples, model.config.image_size, "none")
    columns = {"samples": count_right(model, sampled, "samples", scoring.batch_size, 0)}
    if real is not None:
        columns["real"] = count_right(model, real, "real pictures", scoring.batch_size, data.num_workers)
    names = class_names_for(meta["class_names"], model.config.num_classes)
    print(table(columns, names))
    figures = {"classifier": Path(scoring.classifier).name, "samples_file": Path(scoring.samples).name}
    for name, counts in columns.items():
        figures[name] = {"pictures": int(counts[:, 1].sum()), "share": share(counts.sum(0)),
                         "by_class": {c: share(row) for c, row in zip(names, counts)}}  # fmt: skip
    print(f"{figures['samples']['share']:.4f} of {len(samples)} sampled pictures are read as the class asked for")
    if real is not None:
        print(f"{figures['real']['share']:.4f} of {len(real)} held-out real pictures are read right")
    elif "accuracy" in meta:
        print(f"{meta['accuracy']:.4f} of the real pictures held out from this classifier's training were read right")
    if scoring.output:
        write_json(scoring.output, figures)
    return figures


def share(row: np.ndarray) -> float | None:
    """Right over all; None where there is none of the class."""
    return round(float(row[0] / row[1]), 4) if row[1] else None


def table(columns: dict[str, np.ndarray], names: list[str]) -> str:
    """A line for each class, the share of each column beside its number of pictures."""
    wide = max(len(name) for name in [*names, "class"])
    lines = [f"{'class':{wide}}" + "".join(f"{name:>10}{'pictures':>10}" for name in columns)]
    for i, name in enumerate(names):
        cells = [(share(counts[i]), int(counts[i, 1])) for counts in columns.values()]
        shown = [f"{'-' if part is None else format(part, '.3f'):>10}{count:>10}" for part, count in cells]
        lines.append(f"{name:{wide}}" + "".join(shown))
    return "\n".join(lines)
