"""Captions -> features: lists of captions through the text encoder, into a feature store for each list.

The shards of all lists are dealt out to the ranks, so the stores do not depend on how many there are.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from dataset.captions import BadLine, caption_of, line_starts, list_source, lists_in, read_line, stem_of
from dataset.faults import Skipped, by_cause
from dataset.feature_store import FeatureStoreWriter, convert_features, is_store
from dataset.loading import batch_loader
from dataset.store import finish_stores
from engine.distributed import leave, pick_precision, setup
from language.clean import clean_caption
from language.options import ConvertFeatures, ExtractFeatures
from language.t5 import TextEncoder

SAMPLE = 1000  # captions that the disk's need is worked out from
SORTED_BATCHES = 16  # so many batches are sorted by length together


class Lines(Dataset):
    """The captions of some lists by (list, line): the caption or the BadLine, cleaned where `clean` says how."""

    def __init__(self, files: list[Path], key: str, trunc: bool, clean: Callable[[str], str] | None):
        self.files, self.key, self.trunc, self.clean = files, key, trunc, clean
        self.starts = [line_starts(file) for file in files]
        for file, starts in zip(files, self.starts):
            if len(starts) == 1:
                raise ValueError(f"--data-path: {file} has no lines; remove it")

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def counts(self) -> list[int]:
        """Lines of each list."""
        return [len(starts) - 1 for starts in self.starts]

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, str | dict]:
        """The line, and its caption or what is to be reported of it."""
        place, row = key
        file = self.files[place]
        try:
            caption = caption_of(read_line(file, self.starts[place], row), self.key, self.trunc)
        except BadLine as bad:
            return row, {"row": row, "path": file.name, "cause": bad.cause, "reason": str(bad)}
        return row, caption if self.clean is None else self.clean(caption)

    @staticmethod
    def collate(samples: list) -> list:
        return samples

    def spread(self, count: int) -> Iterator[tuple[int, int]]:
        """Keys of `count` lines, or all, evenly over all lists."""
        ends = np.cumsum(self.counts)
        for number in np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)).tolist():
            place = int(np.searchsorted(ends, number, side="right"))
            yield place, number - int(ends[place]) + self.counts[place]


def extract_features(options: ExtractFeatures) -> None:
    """Write the shards that are missing, then each store's meta.json; an error if too many lines have no caption."""
    captions, encoding, output = options.captions, options.encoding, options.output
    context = setup(encoding.device)
    files = lists_in(captions.data_path, captions.data_start, captions.data_end)
    lines = Lines(files, captions.caption_key, captions.trunc_caption, clean_caption if captions.clean else None)
    dtype = pick_precision(encoding.precision, context.device)
    encoder = TextEncoder.load(encoding.t5_model_type, encoding.t5_model_path, context.device, dtype, clean=False)

    def writers() -> list[FeatureStoreWriter]:
        return [FeatureStoreWriter(Path(output.t5_path) / stem_of(file), {
            "width": encoder.width, "dtype": output.dtype_of_store, "cleaning": captions.clean,
            "encoder": {"name": encoder.name, "checksum": encoder.checksum},
            "max_length": encoder.tokenize.max_length, "precision": str(dtype).removeprefix("torch."),
            "caption_key": captions.caption_key, "trunc_caption": captions.trunc_caption,
            "source": list_source(file, starts),
        }, len(starts) - 1, output.shard_size) for file, starts in zip(files, lines.starts)]  # fmt: skip

    def start() -> list[tuple[int, int]]:
        announce(lines, encoder, output.t5_path)
        return [(place, shard) for place, writer in enumerate(writers()) for shard in writer.missing_shards()]

    # Rank 0 makes the folders, then every rank opens what is there.
    mine = context.on_main(start)[context.rank :: context.world]
    stores = writers()
    chunk = encoding.batch_size * SORTED_BATCHES

    def chunks(place: int, shard: int) -> list[range]:
        rows = stores[place].shard_rows(shard)
        return [rows[i : i + chunk] for i in range(0, len(rows), chunk)]

    # One by one: the keys of many millions of captions would take gigabytes.
    keys = ([(place, row) for row in rows] for place, shard in mine for rows in chunks(place, shard))
    loaded = iter(batch_loader(lines, keys, captions.num_workers))
    total = sum(len(stores[place].shard_rows(shard)) for place, shard in mine)
    with tqdm(total=total, unit="caption", disable=None if context.is_main else True) as bar:
        skipped = Skipped(len(lines), encoding.max_bad, "lines")
        for place, shard in mine:
            found = [next(loaded) for _ in chunks(place, shard)]
            skipped.add(write_shard(stores[place], shard, found, encoder, encoding.batch_size, bar))
    context.barrier()
    cut = sum(context.gather(encoder.tokenize.cut))
    context.on_main(lambda: finish(stores, encoding.max_bad, cut, encoder.tokenize.max_length))
    leave()


def announce(lines: Lines, encoder: TextEncoder, out: str) -> None:
    """Say how many captions there are and what room their features take, from a sample of them."""
    found = [lines[key][1] for key in lines.spread(SAMPLE)]
    texts = [caption for caption in found if isinstance(caption, str)]
    if not texts:
        raise ValueError(f"--data-path: none of {len(found)} lines looked at has a caption; the first, of "
                         f"{found[0]['path']}: {found[0]['reason']}")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is cut is counted when it is encoded
        tokens = sum(len(row) for row in encoder.tokenize.all(texts)) / len(texts)
    encoder.tokenize.cut = 0
    each = tokens * encoder.width * 2 + 16  # with offset and row
    there = Path(out).absolute()
    free = shutil.disk_usage(next(folder for folder in (there, *there.parents) if folder.exists())).free
    print(f"{len(lines):,} captions in {len(lines.files)} lists, {tokens:.1f} tokens each by a sample of "
          f"{len(texts):,}; features of {encoder.width} x 2 bytes a token: {_room(each * 1e6)} per million captions, "
          f"{_room(each * len(lines))} in all; free there: {_room(free)}", flush=True)  # fmt: skip


def write_shard(writer: FeatureStoreWriter, shard: int, chunks: list[list[tuple[int, str | dict]]],
                encoder: TextEncoder, batch_size: int, bar: tqdm) -> list[dict]:  # fmt: skip
    """Returns what is skipped of it."""
    features, rows, skipped = [torch.empty(0, writer.width, dtype=encoder.model.dtype)], [], []
    lengths: list[int] = []
    for chunk in chunks:
        good = [(row, caption) for row, caption in chunk if isinstance(caption, str)]
        skipped += [bad for _, bad in chunk if isinstance(bad, dict)]
        found = encoder.encode([caption for _, caption in good], batch_size, "cpu")
        rows += [row for row, _ in good]
        lengths += map(len, found)
        features += found
        bar.update(len(chunk))
    writer.write_shard(shard, torch.cat(features), np.array(lengths, np.int64), np.array(rows, np.int64), skipped)
    return skipped


def finish(stores: list[FeatureStoreWriter], max_bad: float, cut: int, max_length: int) -> None:
    """Count the lines without a caption, then complete the stores."""
    found = finish_stores(stores, max_bad, "lines")
    skipped, done = [bad for each, _ in found for bad in each], [meta for _, meta in found]
    if cut:
        print(f"{cut} captions had more than {max_length} tokens and were cut")
    if skipped:
        print(f"{len(skipped)} lines were skipped ({by_cause(skipped)}): skipped.jsonl of each folder")
    print(f"{sum(meta['count'] for meta in done)} captions, {sum(meta['tokens'] for meta in done)} tokens, "
          f"{_room(sum(meta['bytes'] for meta in done))} -> {stores[0].folder.parent}")  # fmt: skip


def convert(options: ConvertFeatures) -> None:
    """Each folder of the published layout into a feature store."""
    source, output = options.source, options.output
    if not Path(source.published).is_dir():
        raise ValueError(f"--published {source.published}: there is no such folder")
    folders = sorted(path for path in Path(source.published).iterdir() if path.is_dir() and not is_store(path))
    if not folders:
        raise ValueError(f"--published {source.published}: no folders LIST of LINE.npy in it; give the folder above "
                         "the lists'")  # fmt: skip
    lists = {stem_of(file): file for file in lists_in(source.data_path)} if source.data_path else {}
    for folder in folders:
        file = lists.get(folder.name)
        if lists and file is None:
            raise ValueError(f"--data-path {source.data_path}: holds no list {folder.name}.jsonl, but there are "
                             f"features of it in {source.published}")  # fmt: skip
        settings, count = {"dtype": output.dtype_of_store}, None
        if file is not None:
            settings["source"] = list_source(file, line_starts(file))
            count = settings["source"]["lines"]
        meta = convert_features(folder, Path(output.t5_path) / folder.name, settings, count, output.shard_size,
                                max_bad=source.max_bad,
                                progress=lambda shards: tqdm(shards, unit="shard", disable=None))  # fmt: skip
        print(f"{folder}: {meta['count']} captions, {_room(meta['bytes'])}; {meta['skipped']} lines skipped "
              "(skipped.jsonl says why)")  # fmt: skip


def _room(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"
