"""Training samples of captioned pictures: a caption as features or tokens, a picture as pixels or codes.

The next row takes the place of one that cannot be used, so that batches keep their size and their weights; only where
many in a row are bad a sample counts nothing. All is counted by cause.

Axes: B samples, L rows of the longest caption in a batch, D width of a caption's features, N codes, S side in pixels.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset.augmentation import center_crop_arr
from dataset.caption_lists import CaptionLists, ListedPictures
from dataset.captions import caption_of, check_source, stem_of
from dataset.feature_store import AnyFeatures, FeatureStore, open_features
from dataset.images import TRIES, TooSmall
from dataset.list_codes import StoredListCodes, open_list_codes
from dataset.order import DROP_CONDITION, SHORT_CAPTION, draw

CAUSES = {
    "line": "bad lines",
    "picture": "unreadable pictures",
    "size": "pictures that are too small",
    "features": "captions without features",
    "codes": "pictures without codes",
}
Pad = Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]


class Unusable(ValueError):
    """A sample that cannot be used, by which of CAUSES."""

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


class Part(Protocol):
    """One side of a sample."""

    name: str  # of its entry in a batch
    packed: bool  # read from packed stores, at once

    def read(self, row: int, entry: dict, epoch: int) -> Tensor:
        """Unusable where that cannot be done."""

    def blank(self) -> Tensor:
        """What stands where nothing can be used."""


class StoredFeatures:
    """Caption features [n, D] from {folder}/{stem}; from `short` instead at every draw below `share`. Those of more
    than `most` tokens cannot be used."""

    name = "features"

    def __init__(self, lists: CaptionLists, folder: str, short: str | None, share: float, seed: int,
                 most: int):  # fmt: skip
        self.lists, self.share, self.seed, self.most = lists, share, seed, most
        self.stores = [open_features(folder, stem_of(file), "--t5-feat-path") for file in lists.files]
        self.short = None
        if short is not None:
            self.short = [open_features(short, stem_of(file), "--short-t5-feat-path") for file in lists.files]
        stores = [*self.stores, *(self.short or ())]
        for file, starts, store in zip(lists.files * 2, lists.starts * 2, stores):
            check_source(store.source, file, starts, store.flag, store.folder, "extract the features anew")
        papers = [encoder_of(store) for store in stores]
        self.packed = all(isinstance(store, FeatureStore) for store in stores)
        self.width = stores[0].width
        self.encoder = known_of(papers)
        for store, known in zip(stores, papers):
            if store.width != self.width or known_of([known, self.encoder]) != self.encoder:
                raise ValueError(f"{store.flag} {store.folder}: holds features of another encoder ({store.width} wide, "
                                 f"{known}) than {stores[0].folder} ({self.width} wide, {self.encoder}); extract them "
                                 "with one")  # fmt: skip

    def read(self, row: int, entry: dict, epoch: int) -> Tensor:
        file, number = self.lists.place(row)
        shorter = self.short is not None and draw(self.seed, epoch, row, SHORT_CAPTION) < self.share
        store = (self.short if shorter else self.stores)[file]
        if not store.has(number):
            raise Unusable("features", f"{self.lists.line(row)}: no features of its caption in {store.folder}")
        try:
            found = store.features(number)
        except (ValueError, OSError) as error:
            raise Unusable("features", str(error)) from error
        if len(found) > self.most:
            raise Unusable("features", f"{self.lists.line(row)}: its caption has {len(found)} tokens in {store.folder},"
                                       f" more than --cls-token-num {self.most}")  # fmt: skip
        return found

    def blank(self) -> Tensor:
        return torch.zeros(1, self.width)


def encoder_of(store: AnyFeatures) -> dict | None:
    """What a checkpoint says of the encoder that made a store's features, as TextEncoder.papers(); None: unknown."""
    if not store.encoder:
        return None
    return {**store.encoder, "width": store.width, "max_length": store.meta["max_length"],
            "cleaned": store.meta["cleaning"]}  # fmt: skip


def known_of(encoders: Iterable[dict | None]) -> dict | None:
    """What is known of an encoder by some accounts of it, the first that knows; None: published features alone, of
    whatever encoder. One in float16 has no checksum."""
    found: dict = {}
    for told in filter(None, encoders):
        found |= {key: value for key, value in told.items() if found.get(key) is None}
    return found or None


class Tokens:
    """A caption's tokens, int64 [n], to be encoded in training: for small sets."""

    name = "tokens"
    packed = False

    def __init__(self, lists: CaptionLists, tokenize: Callable[[str], list[int]], key: str, trunc: bool = False):
        self.lists, self.tokenize, self.key, self.trunc = lists, tokenize, key, trunc

    def read(self, row: int, entry: dict, epoch: int) -> Tensor:
        try:
            return torch.tensor(self.tokenize(caption_of(entry, self.key, self.trunc)))
        except ValueError as error:
            raise Unusable("line", f"{self.lists.line(row)}: {error}") from error

    def blank(self) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)


class Pixels:
    """The centre crop of a picture, uint8 [3, S, S], to be encoded in training."""

    name = "image"
    packed = False

    def __init__(self, lists: CaptionLists, size: int):
        self.pictures, self.size = ListedPictures(lists, size), size

    def read(self, row: int, entry: dict, epoch: int) -> Tensor:
        try:
            picture = self.pictures.opened(row, entry)
        except TooSmall as error:
            raise Unusable("size", str(error)) from error
        except ValueError as error:
            raise Unusable("picture", str(error)) from error
        return torch.from_numpy(np.array(center_crop_arr(picture, self.size))).permute(2, 0, 1)

    def blank(self) -> Tensor:
        return torch.zeros(3, self.size, self.size, dtype=torch.uint8)


class StoredCodes:
    """A picture's codes, int64 [N], from {folder}/{stem}: a code store, or published files of one picture each."""

    name = "codes"

    def __init__(self, lists: CaptionLists, folder: str):
        self.lists = lists
        self.folders = [Path(folder) / stem_of(file) for file in lists.files]
        self.stores = [open_list_codes(each) for each in self.folders]
        self.packed = all(isinstance(store, StoredListCodes) for store in self.stores)
        for file, starts, store, place in zip(lists.files, lists.starts, self.stores, self.folders):
            check_source(store.source, file, starts, "--code-path", place, "extract the codes anew")
        for name in ("grid", "image_size", "vocab_size", "tokenizer"):
            first, *others = (getattr(store, name) for store in self.stores)
            if differ := [folder for folder, other in zip(self.folders[1:], others) if other != first]:
                raise ValueError(f"--code-path {folder}: {differ[0]} holds codes of another {name} than "
                                 f"{self.folders[0]}; extract them alike")  # fmt: skip
            setattr(self, name, first)

    def read(self, row: int, entry: dict, epoch: int) -> Tensor:
        file, number = self.lists.place(row)
        try:
            found = self.stores[file].codes_of(number)
        except ValueError as error:
            raise Unusable("codes", str(error)) from error
        if found is None or len(found) != self.grid[0] * self.grid[1]:
            raise Unusable("codes", f"{self.lists.line(row)}: no codes of its picture in {self.folders[file]}")
        return torch.from_numpy(found.astype(np.int64))

    def blank(self) -> Tensor:
        return torch.zeros(self.grid[0] * self.grid[1], dtype=torch.int64)


class Captioned(Dataset):
    """Whole batches by (epoch, number in `rows`): "features" [B, L, D] or "tokens" int64 [B, L], left-padded, and
    "held" bool [B, L]; "image" uint8 [B, 3, S, S] or "codes" int64 [B, N]; "drop" float32 [B], uniform in [0, 1), for
    dropping captions; "counts" float32 [B], 0 where nothing could be found to stand there; "index" int64 [B], the row
    that is served; "faults" int64 [B, causes], of the row that was asked for.

    `pad`: how sequences are padded (language/padding.py).
    """

    def __init__(self, lists: CaptionLists, caption: Part, picture: Part, pad: Pad, seed: int,
                 rows: np.ndarray | None = None):  # fmt: skip
        self.lists, self.caption, self.picture, self.pad, self.seed = lists, caption, picture, pad, seed
        self.rows = np.arange(len(lists)) if rows is None else rows
        self.mapped = caption.packed and picture.packed  # nothing that needs a process of its own

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, epoch: int, place: int) -> tuple[int, Tensor, Tensor, float, Tensor]:
        """Row, caption, picture, whether it counts, and the fault of the row that was asked for."""
        faults = torch.zeros(len(CAUSES), dtype=torch.int64)
        for tried in range(min(TRIES, len(self))):
            row = int(self.rows[(place + tried) % len(self)])
            try:
                entry = self.entry(row)
                return row, self.caption.read(row, entry, epoch), self.picture.read(row, entry, epoch), 1.0, faults
            except Unusable as error:
                # That of the row which was asked for: each bad row of a block counts once, not in all before it, too.
                faults[list(CAUSES).index(error.cause)] += tried == 0
                warnings.warn(f"{error}; the next sample takes its place", stacklevel=2)
        return int(self.rows[place]), self.caption.blank(), self.picture.blank(), 0.0, faults

    def mean_length(self, count: int) -> float:
        """Rows of a caption, in the mean over the first so many that can be used; 1 where none can."""
        lengths = []
        for row in self.rows[:count].tolist():
            try:
                lengths.append(len(self.caption.read(row, self.entry(row), 0)))
            except Unusable:
                continue
        return sum(lengths) / len(lengths) if lengths else 1.0

    def entry(self, row: int) -> dict:
        try:
            return self.lists.entry(row)
        except ValueError as error:
            raise Unusable("line", str(error)) from error

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Tensor]:
        rows, captions, pictures, counts, faults = zip(*(self.sample(epoch, place) for epoch, place in keys))
        padded, held = self.pad(captions)
        epochs = np.array([epoch for epoch, _ in keys])
        return {
            self.caption.name: padded,
            "held": held,
            self.picture.name: torch.stack(pictures),
            "drop": torch.from_numpy(draw(self.seed, epochs, np.array(rows), DROP_CONDITION).astype(np.float32)),
            "counts": torch.tensor(counts),
            "index": torch.tensor(rows),
            "faults": torch.stack(faults),
        }

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch  # __getitems__ made it whole
