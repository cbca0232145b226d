"""Pictures -> codes: batches of crops through the tokenizer's encoder, into a code store, shard by shard.

Shards are dealt out to the ranks, so the store does not depend on how many there are.

Axes: B pictures, K crops of a picture, N codes of a crop.
"""

import numpy as np
import torch
from tqdm import tqdm

from autoregressive.train.options import ExtractCodes
from dataset.build import batch_loader, build_source
from dataset.codes import CodeStoreWriter
from dataset.images import Crops, fingerprint, scale
from engine.distributed import Context, leave, pick_precision, setup
from tokenizer.tokenizer_image.vq_load import Tokenizer, load_tokenizer

DEBUG_PICTURES = 64


def extract_codes(options: ExtractCodes) -> None:
    """Write the shards that are missing, then the store's meta.json; an error if too many pictures cannot be read."""
    extraction, data = options.extraction, options.data
    context = setup(extraction.device)
    tokenizer = load_tokenizer(options.tokenizer, context.device, pick_precision(extraction.precision, context.device))
    model, size = tokenizer.model, extraction.image_size
    if size % model.downsample:
        raise ValueError(f"--image-size {size}: must be a multiple of the tokenizer's down-sampling, "
                         f"{model.downsample}")  # fmt: skip
    source = build_source(data.dataset, data.data_path, data.split)
    count = min(len(source), DEBUG_PICTURES) if extraction.debug else len(source)
    ranges = extraction.crop_range if extraction.ten_crop else ()
    crops = Crops(source, size, data.flips, ranges)
    settings = {
        "grid": [size // model.downsample] * 2,
        "crops": crops.per_picture,
        "vocab_size": model.config.codebook_size,
        "tokenizer": {"name": tokenizer.name, "checksum": tokenizer.checksum},
        "image_size": size,
        "class_names": source.class_names,
        "source": {"pictures": fingerprint(source, data.data_path), "dataset": data.dataset, "split": data.split,
                   "ten_crop_ranges": list(ranges), "precision": extraction.precision},
    }  # fmt: skip

    def open_writer() -> CodeStoreWriter:
        return CodeStoreWriter(extraction.code_path, settings, count, extraction.shard_size)

    # Rank 0 makes the folder, then every rank opens what is there.
    missing = context.on_main(lambda: open_writer().missing_shards())
    writer = open_writer()
    mine = missing[context.rank :: context.world]
    pictures = sum(len(writer.shard_rows(shard)) for shard in mine)
    with tqdm(total=pictures, unit="picture", disable=None if context.is_main else True) as bar:
        for shard in mine:
            write_shard(writer, shard, crops, tokenizer, options, context, bar)
    context.barrier()
    context.on_main(lambda: finish(writer, count, extraction.max_bad))
    leave()


def write_shard(writer: CodeStoreWriter, shard: int, crops: Crops, tokenizer: Tokenizer, options: ExtractCodes,
                context: Context, bar: tqdm) -> None:  # fmt: skip
    rows = writer.shard_rows(shard)
    per_batch = max(1, options.extraction.batch_size // crops.per_picture)
    batches = [list(rows[i : i + per_batch]) for i in range(0, len(rows), per_batch)]
    codes, labels, indices, skipped = [], [], [], []
    for batch in batch_loader(crops, batches, options.data.num_workers):
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


def finish(writer: CodeStoreWriter, count: int, max_bad: float) -> None:
    """Count the unreadable pictures, then complete the store."""
    skipped = writer.skipped()
    if len(skipped) > max_bad * count:
        listing = "\n".join(f"  {bad['path']}: {bad['reason']}" for bad in skipped[:10])
        raise ValueError(f"{len(skipped)} of {count} pictures cannot be read, more than --max-bad {max_bad} allows:\n"
                         f"{listing}\nmend them and extract into another folder, or run the same command with a "
                         "larger --max-bad, which goes on from what is there")  # fmt: skip
    meta = writer.finish()
    note = f", {len(skipped)} skipped (listed in {writer.folder / 'skipped.jsonl'})" if skipped else ""
    print(f"{meta['count']} pictures x {meta['crops']} crops of {meta['grid'][0]} x {meta['grid'][1]} codes -> "
          f"{writer.folder}{note}")  # fmt: skip
