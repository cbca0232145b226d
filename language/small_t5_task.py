"""Lists of captions -> a small T5 of their own, as a folder that the samplers and the trainer take."""

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataset.captions import BadLine, caption_of, line_starts, lists_in, read_line
from dataset.codes import held_out_rows
from engine.folders import made_once
from engine.optim import schedule
from language.clean import clean_caption
from language.small_t5 import (
    Texts,
    filled_in,
    learn_pieces,
    optimizer_of,
    read,
    save,
    small_t5,
    tokenizer_of,
    words_of,
)
from language.small_t5_options import SmallT5

PLACES = ("data_path", "output")  # where things lie makes no other model


def train_small_t5(options: SmallT5) -> None:
    captions = read_captions(options.data_path, options.clean)
    settings = {name: value for name, value in asdict(options).items() if name not in PLACES}
    with made_once(options.output, {"captions": checksum(captions), **settings}, "--output") as folder:
        if folder:
            model, pieces, share = train(captions, options)
            save(folder, model, pieces)
            print(f"{share:.0%} of the masked words of held-out captions are filled in rightly")
    print(f"a T5 with features of width {options.width} {'->' if folder else 'is there already:'} {options.output}")


def train(captions: list[list[str]], options: SmallT5):
    """The trained model, in eval mode; its sentencepiece model; the share of held-out words that it fills in."""
    kept, held_out = held_out_rows(np.arange(len(captions)), options.val_fraction, options.seed)
    pieces = learn_pieces([captions[i] for i in kept], options.vocab_size)
    tokenizer = tokenizer_of(pieces)
    words = words_of(captions, tokenizer)
    texts, others = (Texts([words[i] for i in part], options.mask, len(tokenizer) - 1) for part in (kept, held_out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = small_t5(options.width, options.layers, options.heads, len(tokenizer)).train()
    optimizer = optimizer_of(model, options.lr)
    rise = max(1, options.steps // 20)
    factors = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule("cosine", step, options.steps, rise, 0.0)
    )
    random = np.random.default_rng([options.seed, 1])
    with tqdm(range(options.steps), "small T5", unit="step", disable=None) as steps:
        for step in steps:
            loss = read(model, texts.draw(options.batch_size, random)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            factors.step()
            if step % 50 == 0:
                steps.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    return model, pieces, filled_in(model, others)


def read_captions(path: str | Path, clean: bool = True) -> list[list[str]]:
    """Of each line of a list, or of a folder's lists in sorted order, all captions under "text"."""
    found = []
    cleaned = cache(clean_caption)  # generated captions repeat
    for file in lists_in(path):
        starts = line_starts(file)
        for number in range(len(starts) - 1):
            try:
                entry = read_line(file, starts, number)
                texts = entry["text"] if isinstance(entry, dict) and isinstance(entry.get("text"), list) else []
                line = [caption_of({"text": text}) for text in texts] or [caption_of(entry)]
            except BadLine as bad:
                raise ValueError(f"--data-path {file}, line {number}: {bad}") from bad
            found.append([cleaned(text) if clean else text for text in line])
            if not all(found[-1]):
                emptied = line[found[-1].index("")]
                raise ValueError(f"--data-path {file}, line {number}: cleaning leaves nothing of the caption "
                                 f"{emptied!r}; remove it, or give --no-clean")  # fmt: skip
    if len(found) < 2:
        raise ValueError(f"--data-path {path}: {len(found)} captions, too few to train on some and hold out others")
    return found


def checksum(captions: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(captions).encode()).hexdigest()[:16]
