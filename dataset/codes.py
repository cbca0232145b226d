"""Codes for training a GPT: open any store, check that it fits the model, hold a part out, serve whole batches.

A legend: B pictures of a batch, K crops of a picture, N codes of a crop.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset.code_store import CodeStore, CodeStoreWriter, code_dtype
from dataset.order import DROP_CONDITION, HELD_OUT, WHICH_CROP, draw
from dataset.published_codes import PublishedCodes, convert_published, is_published

__all__ = [
    "AnyCodes", "CodeStore", "CodeStoreWriter", "Codes", "PublishedCodes",
    "check", "code_dtype", "convert_published", "open_codes", "split",
]  # fmt: skip

AnyCodes = CodeStore | PublishedCodes


def open_codes(path: str | Path, image_size: int | None = None) -> AnyCodes:
    """The code store in that folder, or the published layout; `image_size` must be the codes' where it is given."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"--code-path {path}: there is no such folder")
    if not (path / "meta.json").exists() and is_published(path):
        return PublishedCodes(path, image_size)
    store = CodeStore(path)
    if image_size is not None and store.image_size != image_size:
        raise ValueError(f"--image-size {image_size}: the codes in {path} are of pictures of {store.image_size} px")
    return store


def check(
    store: AnyCodes,
    vocab_size: int,
    grid: tuple[int, int],
    num_classes: int,
    tokenizer: dict[str, str] | None = None,
) -> None:
    """ValueError where the codes do not fit the model, or are of another tokenizer than the one given (for previews).

    Reads all codes of a store once; of the published layout, codes and labels of 2,000 pictures.
    """
    if store.grid != tuple(grid):
        raise ValueError(f"--code-path {store.folder}: its codes are a grid of {store.grid[0]}x{store.grid[1]}, "
                         f"the model's is {grid[0]}x{grid[1]}; "
                         "give the extraction's --image-size and --downsample-size")  # fmt: skip
    if tokenizer and store.tokenizer and tokenizer["checksum"] != store.tokenizer["checksum"]:
        mine, theirs = (f"{each['name']} (checksum {each['checksum']})" for each in (tokenizer, store.tokenizer))
        raise ValueError(f"--vq-ckpt: {mine} did not make the codes in {store.folder}, {theirs} did; "
                         "give its file, or extract the codes again")  # fmt: skip
    if (store.vocab_size or 0) > vocab_size:
        raise ValueError(f"--vocab-size {vocab_size}: {store.folder} has codes of a vocabulary of {store.vocab_size}; "
                         f"give --vocab-size {store.vocab_size}")  # fmt: skip
    if (outside := store.first_outside(vocab_size)) is not None:
        raise ValueError(f"--vocab-size {vocab_size}: {outside[0]} holds the code {outside[1]}, "
                         f"allowed are 0 to {vocab_size - 1}; "
                         "give the vocabulary size of the codes' tokenizer, or extract them again")  # fmt: skip
    if isinstance(store, CodeStore):
        pictures = np.arange(store.count)
    else:
        pictures = np.unique(np.linspace(0, store.count - 1, 2000).astype(int))
    labels = store.labels(pictures)
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(f"--code-path {store.folder}: has pictures without a label (label {low}); "
                         "extract codes of labelled pictures, such as --dataset folder")  # fmt: skip
    if high >= num_classes:
        raise ValueError(f"--num-classes {num_classes}: the codes in {store.folder} have the label {high}, "
                         f"allowed are 0 to {num_classes - 1}; give --num-classes {high + 1} or more")  # fmt: skip


def split(store: AnyCodes, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures to train on and pictures held out, int64, rising: chosen by a hash of (seed, source row).

    0 < fraction < 1 leaves neither part empty where there are two pictures.
    """
    return held_out_rows(store.source_rows, fraction, seed)


def held_out_rows(rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in `rows` to train on and places held out, as split() chooses them."""
    if not 0 <= fraction < 1:
        raise ValueError(f"--val-fraction {fraction}: must be at least 0 and below 1")
    draws = draw(seed, 0, rows, HELD_OUT)
    held_out = draws < fraction
    if fraction > 0 and len(rows) >= 2:
        held_out[draws.argmin()], held_out[draws.argmax()] = True, False
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


class Codes(Dataset):
    """Training samples in whole batches: "codes" int64 [B, N]; "label", "index" int64 [B]; "drop" float32 [B].

    `pictures`: those of the store that are served (split); all by default. Which crop is taken, and "drop", uniform in
    [0, 1) for condition dropping, are functions of (seed, epoch, picture). "index": the picture's number in the store.
    """

    def __init__(self, store: AnyCodes, seed: int, pictures: np.ndarray | None = None):
        self.store, self.seed = store, seed
        self.mapped = isinstance(store, CodeStore)  # read by page, not by opening a file for each picture
        self.pictures = np.arange(store.count) if pictures is None else pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Tensor]:
        """keys: (epoch, number in `pictures`)."""
        epoch, place = np.array(keys, np.int64).reshape(-1, 2).T
        pictures = self.pictures[place]
        crop = (draw(self.seed, epoch, pictures, WHICH_CROP) * self.store.crops).astype(np.int64)
        return {
            "codes": torch.from_numpy(self.store.codes(pictures, crop).astype(np.int64)),
            "label": torch.from_numpy(self.store.labels(pictures)),
            "drop": torch.from_numpy(draw(self.seed, epoch, pictures, DROP_CONDITION).astype(np.float32)),
            "index": torch.from_numpy(pictures),
        }

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch  # __getitems__ made it whole
