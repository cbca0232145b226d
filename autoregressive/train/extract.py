"""Pictures -> codes: batches of crops through the tokenizer's encoder, into a code store, shard by shard.

Shards are dealt out to the ranks, so the store does not depend on how many there are.

Axes: B pictures, K crops of a picture, N codes of a crop.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from autoregressive.train.options import ExtractCodes, Extraction, ExtractTextCodes
from dataset.build import build_source
from dataset.caption_lists import CaptionLists, ListedPictures
from dataset.captions import list_source, lists_in, stem_of
from dataset.codes import CodeStoreWriter
from dataset.faults import Skipped, by_cause
from dataset.images import Crops, fingerprint, scale
from dataset.loading import batch_loader
from dataset.store import finish_stores
from engine.distributed import Context, leave, pick_precision, setup
from tokenizer.tokenizer_image.vq_load import Tokenizer, load_tokenizer

DEBUG_PICTURES = 64


def extract_codes(options: ExtractCodes) -> None:
    """Write the shards that are missing, then the store's meta.json; an error if too many pictures cannot be read."""
    extraction, data = options.extraction, options.data
    context = setup(extraction.device)
    tokenizer = load_for(options, context)
    source = build_source(data.dataset, data.data_path, data.split)
    count = min(len(source), DEBUG_PICTURES) if extraction.debug else len(source)
    skipped = Skipped(count, extraction.max_bad, "pictures")
    ranges = extraction.crop_range if extraction.ten_crop else ()
    crops = Crops(source, extraction.image_size, data.flips, ranges)
    told = {"pictures": fingerprint(source, data.data_path), "dataset": data.dataset, "split": data.split,
            "ten_crop_ranges": list(ranges)}  # fmt: skip
    folder, workers = Path(extraction.code_path), data.num_workers
    writer = fill_store(folder, crops, count, told, tokenizer, extraction, workers, context, skipped)
    context.on_main(lambda: finish([writer], extraction.max_bad))
    leave()


def extract_list_codes(options: ExtractTextCodes) -> None:
    """The same for the pictures of each list, centre-cropped; a store's rows are the list's lines."""
    extraction, lists = options.extraction, options.lists
    context = setup(extraction.device)
    tokenizer = load_for(options, context)
    files = lists_in(lists.data_path, lists.data_start, lists.data_end)
    sources = [ListedPictures(CaptionLists([file]), extraction.image_size) for file in files]
    counts = [min(len(source), DEBUG_PICTURES) if extraction.debug else len(source) for source in sources]
    skipped = Skipped(sum(counts), extraction.max_bad, "pictures")
    writers = []
    for file, source, count in zip(files, sources, counts):
        crops = Crops(source, extraction.image_size, flip=False)
        told = list_source(file, source.lists.starts[0])
        folder = Path(extraction.code_path) / stem_of(file)
        writers.append(
            fill_store(folder, crops, count, told, tokenizer, extraction, lists.num_workers, context, skipped)
        )
    context.on_main(lambda: finish(writers, extraction.max_bad))
    leave()


def load_for(options: ExtractCodes | ExtractTextCodes, context: Context) -> Tokenizer:
    """The tokenizer, which must fit the size of the pictures."""
    extraction = options.extraction
    tokenizer = load_tokenizer(options.tokenizer, context.device, pick_precision(extraction.precision, context.device))
    if extraction.image_size % tokenizer.model.downsample:
        raise ValueError(f"--image-size {extraction.image_size}: must be a multiple of the tokenizer's down-sampling, "
                         f"{tokenizer.model.downsample}")  # fmt: skip
    return tokenizer


def fill_store(folder: Path, crops: Crops, count: int, source: dict, tokenizer: Tokenizer, extraction: Extraction,
               workers: int, context: Context, skipped: Skipped) -> CodeStoreWriter:  # fmt: skip
    """The codes of the first `count` pictures, all but meta.json; `source`: what is told of them. What this rank cannot
    use is added to `skipped`."""
    model, size = tokenizer.model, extraction.image_size
    settings = {
        "grid": [size // model.downsample] * 2,
        "crops": crops.per_picture,
        "vocab_size": model.config.codebook_size,
        "tokenizer": {"name": tokenizer.name, "checksum": tokenizer.checksum},
        "image_size": size,
        "class_names": crops.source.class_names,
        "source": {**source, "precision": extraction.precision},
    }

    def open_writer() -> CodeStoreWriter:
        return CodeStoreWriter(folder, settings, count, extraction.shard_size)

    # Rank 0 makes the folder, then every rank opens what is there.
    missing = context.on_main(lambda: open_writer().missing_shards())
    writer = open_writer()
    mine = missing[context.rank :: context.world]
    pictures = sum(len(writer.shard_rows(shard)) for shard in mine)
    with tqdm(total=pictures, desc=folder.name, unit="picture", disable=None if context.is_main else True) as bar:
        for shard in mine:
            skipped.add(write_shard(writer, shard, crops, tokenizer, extraction.batch_size, workers, context, bar))
    context.barrier()
    return writer


def write_shard(writer: CodeStoreWriter, shard: int, crops: Crops, tokenizer: Tokenizer, batch_size: int, workers: int,
                context: Context, bar: tqdm) -> list[dict]:  # fmt: skip
    """Returns what is skipped of it."""
    rows = writer.shard_rows(shard)
    per_batch = max(1, batch_size // crops.per_picture)
    batches = [list(rows[i : i + per_batch]) for i in range(0, len(rows), per_batch)]
    codes, labels, indices, skipped = [], [], [], []
    for batch in batch_loader(crops, batches, workers):
        skipped += [vars(bad) for bad in batch["skipped"]]
        if batch["images"] is not None:
            images = batch["images"].to(context.device).flatten(0, 1)  # [B * K, 3, S, S]
            images = scale(images).to(memory_format=torch.channels_last)
            found = tokenizer.model.encode_codes(images).flatten(1)  # [B * K, N]
            codes.append(found.unflatten(0, (-1, crops.per_picture)).cpu().numpy())
            labels.append(batch["label"].numpy())
            indices.append(batch["index"].numpy())
        bar.update(len(batch["skipped"]) + (0 if batch["images"] is None else len(batch["images"])))
    shape = (0, *writer.shape)
    writer.write_shard(shard, np.concatenate([np.empty(shape, np.int64), *codes]), np.concatenate([[], *labels]),
                       np.concatenate([[], *indices]), skipped)  # fmt: skip
    return skipped


def finish(writers: list[CodeStoreWriter], max_bad: float) -> None:
    """Count the pictures that could not be used, then complete the stores."""
    for writer, (skipped, meta) in zip(writers, finish_stores(writers, max_bad, "pictures")):
        listing = writer.folder / "skipped.jsonl"
        note = f", {len(skipped)} skipped ({by_cause(skipped)}; {listing} names them)" if skipped else ""
        print(f"{meta['count']} pictures x {meta['crops']} crops of {meta['grid'][0]} x {meta['grid'][1]} codes -> "
              f"{writer.folder}{note}")  # fmt: skip
