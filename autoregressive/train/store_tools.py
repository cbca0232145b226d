"""Two things to do with extracted codes: convert the published layout, and draw pictures back."""

import numpy as np
import torch
from tqdm import tqdm

from autoregressive.train.options import ConvertCodes, DrawCodes
from dataset.classes import class_names_for
from dataset.codes import convert_published, open_codes
from engine.distributed import pick_device
from evaluations.images import save_grid, to_bytes
from tokenizer.tokenizer_image.vq_load import load_tokenizer, refuse_other_codes


def convert_codes(options: ConvertCodes) -> None:
    store = convert_published(options.published, options.image_size, options.code_path, options.vocab_size,
                              progress=lambda shards: tqdm(shards, unit="shard", disable=None))  # fmt: skip
    print(f"{store.count} pictures x {store.crops} crops -> {options.code_path}")


def draw_codes(options: DrawCodes) -> None:
    drawing = options.drawing
    store = open_codes(drawing.code_path)
    for picture in drawing.pictures:
        if not 0 <= picture < store.count:
            raise ValueError(f"--pictures {picture}: {drawing.code_path} has pictures 0 to {store.count - 1}")
    if not 0 <= drawing.crop < store.crops:
        raise ValueError(f"--crop {drawing.crop}: its pictures have crops 0 to {store.crops - 1}")
    tokenizer = load_tokenizer(options.tokenizer, pick_device(drawing.device))
    refuse_other_codes(tokenizer, store, drawing.code_path)
    pictures = np.array(drawing.pictures)
    codes = torch.from_numpy(store.codes(pictures, np.full(len(pictures), drawing.crop)).astype(np.int64))
    grid = codes.view(-1, *store.grid).to(pick_device(drawing.device))
    with torch.inference_mode():
        images = torch.cat([tokenizer.model.decode_code(part) for part in grid.split(8)])
    save_grid(drawing.output, to_bytes(images), per_row=4)
    names = class_names_for(store.class_names, store.num_classes or 1000)
    labels = ", ".join(names[label] if label >= 0 else "no label" for label in store.labels(pictures).tolist())
    print(f"{labels} -> {drawing.output}")
