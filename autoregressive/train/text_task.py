"""Training a text-conditional GPT on captioned pictures.

Axes: B pictures, N codes of a picture, L rows of the longest caption, D width of a caption's features.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autoregressive.encoder import check_width, load_encoder
from autoregressive.load import GPT
from autoregressive.models.generate import Sampling
from autoregressive.models.mask import sequence_mask, trimmed
from autoregressive.models.runners import EagerRunner
from autoregressive.sample.pipeline import Pipeline
from autoregressive.train.options import TextTraining, TrainT2I
from autoregressive.train.task import (
    GPTTask,
    build_model,
    check_held_out,
    check_options,
    optimizer_for,
    train,
    training_flops,
)
from dataset.caption_lists import CaptionLists
from dataset.captioned import CAUSES, Captioned, Part, Pixels, StoredCodes, StoredFeatures, Tokens
from dataset.captions import lists_in
from dataset.codes import held_out_rows
from dataset.faults import Faults
from dataset.images import scale
from engine.checkpoint import differing
from engine.parallel import Parallel
from engine.run import Run
from engine.startup import join
from engine.state import read_state
from language.padding import pad_left
from language.t5 import TextEncoder
from tokenizer.tokenizer_image.vq_load import Tokenizer, load_tokenizer, refuse_other_codes

PUBLISHED_SIZE = 384  # pixels
SHOWN = 8  # captions of a preview
SAMPLED = 64  # captions whose length counts for FLOPs: padding is not computed


class CaptionTask(GPTTask):
    """Given a caption: a batch's "features" [B, L, D] or "tokens" int64 [B, L], and "held" bool [B, L]; with its
    picture as "codes" int64 [B, N] or as "image" uint8 [B, 3, S, S]."""

    def __init__(self, *given, encoder: TextEncoder | None, tokenizer: Tokenizer | None, faults: Faults,
                 shown: Captioned, **more):  # fmt: skip
        super().__init__(*given, **more)
        self.encoder, self.tokenizer, self.faults, self.shown = encoder, tokenizer, faults, shown
        self.flops = training_flops(self.model, shown.mean_length(SAMPLED))

    def loss(self, module: nn.Module, batch: dict, step: int) -> tuple[Tensor, dict]:
        self.faults.add(len(batch["index"]), batch["faults"].sum(0), batch["counts"].eq(0).sum())
        loss, figures = super().loss(module, batch, step)
        return loss, {**figures, "replaced": batch["faults"].sum(1).gt(0).float().mean()}

    def conditional_loss(self, module: nn.Module, batch: dict, drop: Tensor | None) -> Tensor:
        captions, held = trimmed(*self.captions(batch))
        codes = batch["codes"] if "codes" in batch else self.encoded(batch["image"])
        mask = None if held is None else sequence_mask(held, captions.shape[1] + codes.shape[1] - 1)
        _, loss = module(idx=codes[:, :-1], cond_idx=captions, targets=codes, mask=mask, valid=batch["counts"],
                         drop=drop, with_logits=False)  # fmt: skip
        return loss

    def captions(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Features [B, L, D] and held."""
        if "features" in batch:
            return batch["features"], batch["held"]
        return self.encoder.features(batch["tokens"], batch["held"]), batch["held"]

    @torch.no_grad()
    def encoded(self, images: Tensor) -> Tensor:
        """Codes [B, N]; in the tokenizer's own precision, as extracted ones are."""
        with torch.autocast(images.device.type, enabled=False):
            return self.tokenizer.model.encode_codes(scale(images)).flatten(1)

    def preview_pictures(self, sampling: Sampling) -> np.ndarray:
        batch = self.shown.__getitems__([(0, place) for place in range(min(SHOWN, len(self.shown)))])
        captions, held = self.captions({name: value.to(self.context.device) for name, value in batch.items()})
        return self.pipeline.to_pictures(self.pipeline.codes(captions, sampling, self.seed, valid=held))

    def after_step(self, step: int) -> str | None:
        return self.faults.check(step)

    def at_end(self) -> str | None:
        return self.faults.conclude(self.context.gather)


def train_t2i(options: TrainT2I) -> None:
    """Check the data, build the model, train it."""
    chosen, optim, checks = options.model, options.optim, options.validation
    context = join(options)
    check_options(chosen, "t2i")
    if chosen.dataset != "t2i":
        raise ValueError(f"--dataset {chosen.dataset}: this command trains on lists of captioned pictures, t2i")
    lists = CaptionLists(lists_in(chosen.data_path, chosen.data_start, chosen.data_end))
    tokenizer = encoder = None
    if chosen.code_path is None or (options.tokenizer.vq_ckpt and options.run.preview_every):
        tokenizer = load_tokenizer(options.tokenizer, context.device)
    if chosen.t5_feat_path is None:
        if options.encoder.t5_offload:
            raise ValueError("--t5-offload: training encodes captions at every step; extract their features beforehand "
                             "(language/extract_t5_feature.py) and give --t5-feat-path")  # fmt: skip
        encoder = load_encoder(options.encoder, context.device, chosen.cls_token_num)
    size, picture = picture_part(chosen, lists, tokenizer)
    caption, width = caption_part(options, lists, encoder)
    shape, papers = shape_for(chosen, size, picture, tokenizer)
    shape |= {"caption_dim": width, "cls_token_num": chosen.cls_token_num}
    papers |= {"encoder": encoder.papers() if encoder else caption.encoder}
    train_rows, val_rows = held_out_rows(np.arange(len(lists)), checks.val_fraction, optim.global_seed)
    data = Captioned(lists, caption, picture, pad_left, optim.global_seed, train_rows)
    held_out = Captioned(lists, caption, picture, pad_left, optim.global_seed, val_rows) if len(val_rows) else None
    check_held_out(held_out, "--val-fraction", context)

    run = Run(options.run, chosen.gpt_model, context)
    finetune = not run.begun and (
        chosen.finetune or (chosen.gpt_ckpt is not None and begins_a_stage(chosen.gpt_ckpt, shape, papers))
    )
    parallel = Parallel(options.parallel, context, optim)
    model = build_model(chosen, shape, optim.global_seed, parallel, finetune)
    pipeline = None
    if tokenizer is not None and options.run.preview_every and (context.is_main or parallel.sharded):
        gpt = GPT(model, chosen.gpt_model, size, papers["downsample_size"], None, papers["tokenizer"])
        pipeline = Pipeline(gpt, tokenizer, EagerRunner(model))
    task = CaptionTask(
        model, chosen.gpt_model, papers, optimizer_for(model, optim), context, held_out,
        max(1, optim.global_batch_size // context.world), pipeline, checks, optim.global_seed,
        encoder=encoder, tokenizer=tokenizer, faults=Faults(list(CAUSES.values()), chosen.max_bad),
        shown=held_out or data,
    )  # fmt: skip
    train(task, data, options, run, parallel, None if finetune else chosen.gpt_ckpt)


def picture_part(options: TextTraining, lists: CaptionLists, tokenizer: Tokenizer | None) -> tuple[int, Part]:
    """The side of the pictures, and where they come from."""
    if options.code_path is None:
        size = PUBLISHED_SIZE if options.image_size == "auto" else options.image_size
        return size, Pixels(lists, size)
    codes = StoredCodes(lists, options.code_path)
    if tokenizer is not None:
        refuse_other_codes(tokenizer, codes, options.code_path)
    if options.image_size != "auto" and codes.image_size not in (None, options.image_size):
        raise ValueError(f"--image-size {options.image_size}: {options.code_path} holds codes of {codes.image_size}-px "
                         "pictures")  # fmt: skip
    size = codes.image_size or (PUBLISHED_SIZE if options.image_size == "auto" else options.image_size)
    return size, codes


def caption_part(options: TrainT2I, lists: CaptionLists, encoder: TextEncoder | None) -> tuple[Part, int]:
    """Where captions come from, and the width of their features."""
    chosen = options.model
    if encoder is not None:
        if chosen.short_t5_feat_path is not None:
            raise ValueError("--short-t5-feat-path goes with --t5-feat-path; give both")
        return Tokens(lists, encoder.tokenize, chosen.caption_key, chosen.trunc_caption), encoder.width
    stored = StoredFeatures(lists, chosen.t5_feat_path, chosen.short_t5_feat_path, chosen.short_share,
                            options.optim.global_seed, chosen.cls_token_num)  # fmt: skip
    check_width(options.encoder, stored.width)
    return stored, stored.width


def shape_for(options: TextTraining, size: int, picture: Part, tokenizer: Tokenizer | None) -> tuple[dict, dict]:
    """ModelArgs that follow from pictures and flags, and the checkpoint's papers."""
    if isinstance(picture, StoredCodes):
        side, vocabulary, made_by = picture.grid[0], picture.vocab_size, picture.tokenizer
    else:
        downsample = tokenizer.model.downsample
        if size % downsample:
            raise ValueError(f"--image-size {size}: must be a multiple of the tokenizer's down-sampling, {downsample}")
        side, vocabulary = size // downsample, tokenizer.model.config.codebook_size
        made_by = {"name": tokenizer.name, "checksum": tokenizer.checksum}
    if size % side or options.downsample_size not in ("auto", size // side):
        raise ValueError(f"--downsample-size {options.downsample_size}: a picture of {size} px has {side} x {side} "
                         f"codes here, which is {size / side:g} pixels per code")  # fmt: skip
    if options.vocab_size != "auto":
        if vocabulary not in (None, options.vocab_size):
            raise ValueError(f"--vocab-size {options.vocab_size}: the codes are of a vocabulary of {vocabulary}; leave "
                             "the flag out")  # fmt: skip
        vocabulary = options.vocab_size
    shape = {"model_type": "t2i", "vocab_size": vocabulary or 16384, "block_size": side * side}
    return shape, {"image_size": size, "downsample_size": size // side, "class_names": None, "tokenizer": made_by}


def begins_a_stage(checkpoint: str, shape: dict, papers: dict) -> bool:
    """Whether only the weights of a checkpoint go on: it has no optimizer, or is of pictures of another size (stage 2:
    positions follow from the size, no weight does). ValueError where they were trained on another encoder's features,
    or on another tokenizer's codes."""
    data = read_state(Path(checkpoint), "--gpt-ckpt")
    meta = data["meta"] if isinstance(data.get("meta"), dict) else {}
    if different := differing(meta, {**papers, "image_size": None}):
        raise ValueError(f"--gpt-ckpt {checkpoint}: was trained on other data, since {'; '.join(different)}. Prepare "
                         "them alike, or give --finetune to go over to these")  # fmt: skip
    config = meta.get("config", {})
    anew = "optimizer" not in data or config.get("block_size") != shape["block_size"]
    if anew:
        print(f"--gpt-ckpt {Path(checkpoint).name}: its weights go on, from step 0")
    return anew
