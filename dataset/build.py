"""From a name and a path to pictures."""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from dataset.classes import imagenet_classes
from dataset.digits import digits
from dataset.images import ArraySource, Crops, FileSource, ImageSource
from dataset.loading import batch_loader

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {"train", "val", "valid", "validation", "test"}
NAMES = ("imagenet", "folder", "flat", "coco", "t2i_image", "jsonl", "cifar10", "digits")


def build_source(name: str, path: str | None = None, split: str = "train", face_path: str | None = None) -> ImageSource:
    """The pictures of `--dataset name --data-path path`; DataOptions tells the names.

    `face_path`: a second folder of lists or pictures, added to the first (published --data-face-path, of t2i_image).
    """
    if name not in NAMES:
        raise ValueError(f"--dataset {name}: choose one of {', '.join(NAMES)}")
    if face_path and name not in ("t2i_image", "jsonl", "flat", "coco"):
        raise ValueError(f"--data-face-path goes with --dataset t2i_image, jsonl, flat or coco, not with {name}")
    if name == "digits":
        return digits(split)
    if not path:
        raise ValueError(f"--data-path is missing: --dataset {name} needs the path of its pictures")
    if name == "cifar10":
        return cifar10(Path(path), split)
    paths = [Path(p) for p in (path, face_path) if p]
    for each in paths:
        if not each.exists():
            raise ValueError(f"--data-path {each}: there is no such file or folder")
    if name == "jsonl" or (name == "t2i_image" and all(_lists(each) for each in paths)):
        return jsonl(*paths)
    for each in paths:
        if not each.is_dir():
            raise ValueError(f"--data-path {each}: --dataset {name} needs a folder")
    return class_folders(paths[0]) if name in ("imagenet", "folder") else flat(*paths)


def class_folders(root: Path) -> FileSource:
    """A sub-folder for each class, of any depth; labels, and rows, in sorted order (torchvision's ImageFolder).

    The 1,000 folders of ImageNet (n01440764, ...) get ImageNet's class names; other classes are named as their folders.
    """
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        hint = "; it holds pictures but no class folders: try --dataset flat" if _pictures(root) else ""
        raise ValueError(f"--data-path {root}: no class folders in it (expected {root}/CLASS/PICTURE.jpg){hint}")
    if SPLIT_FOLDERS.issuperset(names):
        raise ValueError(f"--data-path {root}: holds {' and '.join(names)}, which are no classes: "
                         f"give one of them, such as {root / names[0]}")  # fmt: skip
    of_class = [_pictures(root / name) for name in names]
    empty = [name for name, paths in zip(names, of_class) if not paths]
    if empty:
        raise ValueError(f"--data-path {root}: no pictures in {', '.join(empty[:5])}{' ...' if empty[5:] else ''}; "
                         f"add some ({', '.join(EXTENSIONS)}) or remove the folder")  # fmt: skip
    labels = np.repeat(np.arange(len(names)), [len(paths) for paths in of_class])
    if len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names):
        names = imagenet_classes()
    return FileSource([path for paths in of_class for path in paths], labels, names)


def flat(*roots: Path) -> FileSource:
    """All pictures below the folders, in sorted order, without labels."""
    paths = [path for root in roots for path in _pictures(root)]
    if not paths:
        raise ValueError(f"--data-path {roots[0]}: no pictures in it ({', '.join(EXTENSIONS)})")
    return FileSource(paths, np.full(len(paths), -1))


def jsonl(*lists: Path) -> FileSource:
    """Lists of {"image_path": ..., "label": ...}; a path is relative to its list's folder. Further keys are let alone.

    Labels: none at all, or on every line a number (from 0), or on every line a name; names are numbered as sorted.
    """
    paths, labels, kinds = [], [], {}
    files = [file for each in lists for file in _lists(each)]
    if not files:
        raise ValueError(f"--data-path {lists[0]}: neither a .jsonl list nor a folder of them")
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                path, label = _entry(line, where := f"{file}, line {number}")
                paths.append(str(file.parent / path))
                labels.append(label)
                kinds.setdefault(type(label), where)
    if not paths:
        raise ValueError(f"--data-path {lists[0]}: the list is empty")
    if len(kinds) > 1:
        names = {int: "a number", str: "a name", type(None): "missing"}
        raise ValueError("labels must be all numbers, all names or all missing: " + "; ".join(
            f"'label' is {names[kind]} in {where}" for kind, where in kinds.items()))  # fmt: skip
    class_names = sorted(set(labels)) if str in kinds else None
    if class_names is not None:
        number_of = {name: number for number, name in enumerate(class_names)}
        labels = [number_of[name] for name in labels]
    elif type(None) in kinds:
        labels = [-1] * len(paths)
    return FileSource(paths, np.array(labels, np.int64), class_names)


def _entry(line: str, where: str) -> tuple[str, int | str | None]:
    """image_path and label of a list's line."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("image_path"), str):
        raise ValueError(f'{where}: expected an object such as {{"image_path": "a.jpg", "label": 3}}')
    label = entry.get("label")
    if type(label) not in (int, str, type(None)) or (isinstance(label, int) and label < 0):
        raise ValueError(f"{where}: label {json.dumps(label)} is neither a number from 0 nor a name")
    return entry["image_path"], label


def cifar10(root: Path, split: str) -> ImageSource:
    """{root}/train and {root}/test with class folders where they are; else torchvision's copy, fetched into root."""
    parts = {"train": ["train"], "test": ["test"], "all": ["train", "test"]}.get(split)
    if parts is None:
        raise ValueError(f"--split {split}: choose train, test or all")
    if all((root / part).is_dir() for part in parts):
        folders = [class_folders(root / part) for part in parts]
        if any(folder.class_names != folders[0].class_names for folder in folders):
            raise ValueError(f"--data-path {root}: train and test have different classes")
        paths = [path for folder in folders for path in folder.paths]
        return FileSource(paths, np.concatenate([folder.labels for folder in folders]), folders[0].class_names)
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise ValueError(f"--data-path {root}: no train/ and test/ folders there; "
                         "fetching CIFAR-10 needs torchvision: pip install 'llamagen[train]'") from error  # fmt: skip
    try:
        fetched = [CIFAR10(str(root), train=part == "train", download=True) for part in parts]
    except (OSError, RuntimeError) as error:
        raise ValueError(f"--data-path {root}: CIFAR-10 is not there and could not be fetched ({error})") from error
    labels = np.concatenate([np.array(part.targets, np.int64) for part in fetched])
    return ArraySource(np.concatenate([part.data for part in fetched]), labels, list(fetched[0].classes))


def center_crops(
    source: ImageSource,
    size: int,
    rows: Sequence[int],
    batch: int,
    workers: int,
    max_bad: float,
    total: int | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches {"images": uint8 [B, size, size, 3], "label", "index": int64 [B]} of centre crops, as `rows` has them.

    Pictures that cannot be read are named and left out; more than a share of max_bad ends it with a ValueError. It is a
    share of `total` where `rows` are one process's part of so many.
    """
    bad, total = 0, len(rows) if total is None else total
    batches = [list(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    for part in batch_loader(Crops(source, size, flip=False), batches, workers):
        for skipped in part["skipped"]:
            print(f"left out: {skipped.reason}", file=sys.stderr)
        bad += len(part["skipped"])
        if bad > max_bad * total:
            raise ValueError(f"{bad} of {total} pictures cannot be read, more than --max-bad {max_bad} allows; the "
                             f"last: {part['skipped'][-1].reason}")  # fmt: skip
        if part["images"] is not None:
            images = part["images"][:, 0].permute(0, 2, 3, 1)
            yield {"images": images, "label": part["label"], "index": part["index"]}


def _pictures(root: Path) -> list[str]:
    return [
        os.path.join(folder, name)
        for folder, _, names in sorted(os.walk(root, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    ]


def _lists(path: Path) -> list[Path]:
    """The .jsonl file itself, or those directly in the folder."""
    if path.is_dir():
        return sorted(path.glob("*.jsonl"))
    return [path] if path.suffix == ".jsonl" else []
