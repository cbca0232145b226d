"""Training a GPT: batch of codes -> loss, the held-out loss, previews; and the class-conditional one.

Axes: B pictures, N codes of a picture, C vocabulary.
"""

from functools import partial
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoregressive.load import GPT
from autoregressive.models.generate import Sampling
from autoregressive.models.gpt import Transformer, build_gpt, gpt_config
from autoregressive.models.runners import EagerRunner
from autoregressive.sample.pipeline import Pipeline
from autoregressive.train.options import CodeTraining, GPTTraining, HoldOut, TrainC2I, TrainT2I
from dataset.classes import class_names_for, find_label
from dataset.codes import Codes, check, open_codes, split
from dataset.loading import Feed
from engine.checkpoint import load_strict, read_weights
from engine.distributed import Context, leave
from engine.optim import adamw
from engine.options import OptimOptions
from engine.parallel import Parallel
from engine.run import Run
from engine.startup import fingerprint, join
from engine.trainer import Phase, Trainer
from evaluations.images import save_grid
from tokenizer.tokenizer_image.vq_load import load_tokenizer, refuse_other_codes


class GPTTask:
    """Next-code prediction given a condition (section 2.2). A step counts codes."""

    unit = "codes"

    def __init__(self, model: Transformer, name: str, papers: dict, optimizer: torch.optim.Optimizer, context: Context,
                 held_out: Dataset | None = None, batch: int = 64, pipeline: Pipeline | None = None,
                 preview: HoldOut | None = None, seed: int = 0):  # fmt: skip
        self.model, self.name, self.papers, self.context = model, name, papers, context
        self.held_out, self.batch, self.seed = held_out, batch, seed
        self.pipeline, self.preview_options = pipeline, preview
        self.phases = [Phase("model", model, optimizer, self.loss)]
        self.units = model.config.block_size
        self.flops = training_flops(model)

    def meta(self) -> dict:
        return {"format": 1, "kind": "gpt", "model": self.name, "config": gpt_config(self.model), **self.papers}

    def loss(self, module: nn.Module, batch: dict, step: int) -> tuple[Tensor, dict]:
        """batch: a condition, codes int64 [B, N], drop float32 [B] (uniform draws for dropping the condition)."""
        drop = batch["drop"] < self.model.config.class_dropout_prob
        return self.conditional_loss(module, batch, drop), {}

    def conditional_loss(self, module: nn.Module, batch: dict, drop: Tensor | None) -> Tensor:
        """Mean over the batch's codes, the conditions of `drop` bool [B] replaced by 'none'."""
        raise NotImplementedError

    def preview_pictures(self, sampling: Sampling) -> np.ndarray:
        """uint8 [B, H, W, 3]."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Loss of the held-out pictures of all ranks in nats a code; every picture that counts weighs alike. Nothing
        where none does."""
        if self.held_out is None:
            return {}
        rank, world = self.context.rank, self.context.world
        losses, count = 0.0, 0.0
        # All ranks compute as many batches, as sharded weights want it; one that has no more pictures counts nothing.
        for first in range(0, -(-len(self.held_out) // world), self.batch):
            keys = [(0, i) for i in range(rank + world * first, len(self.held_out), world)[: self.batch]]
            batch = self.held_out.__getitems__(keys or [(0, 0)])
            batch = {k: v.to(self.context.device) for k, v in batch.items()}
            counted = float(batch["counts"].sum()) if "counts" in batch and keys else len(keys)
            losses += float(self.conditional_loss(self.model, batch, drop=None)) * counted
            count += counted
        sums = self.context.mean({"losses": losses, "count": count})
        return {"val_loss": sums["losses"] / sums["count"]} if sums["count"] else {}

    def preview(self, path: Path) -> None:
        if self.pipeline is None:
            return
        pictures = self.preview_pictures(Sampling(self.preview_options.preview_cfg_scale))
        if self.context.is_main:
            save_grid(path, pictures, per_row=4)

    def after_step(self, step: int) -> str | None:
        return None

    def at_end(self) -> str | None:
        return None


class ClassTask(GPTTask):
    """Given a class: a batch's "label" int64 [B]."""

    def conditional_loss(self, module: nn.Module, batch: dict, drop: Tensor | None) -> Tensor:
        codes = batch["codes"]
        _, loss = module(idx=codes[:, :-1], cond_idx=batch["label"], targets=codes, drop=drop,
                         with_logits=False)  # fmt: skip
        return loss

    def preview_pictures(self, sampling: Sampling) -> np.ndarray:
        classes = self.preview_options.preview_labels or range(min(8, self.model.config.num_classes))
        return self.pipeline.sample(list(classes), sampling, self.seed)


def training_flops(model: Transformer, prefix: float | None = None) -> float:
    """FLOPs of a picture, forward and backward: 6 a weight and position, and causal attention (Kaplan et al. 2020).

    prefix: condition rows of a picture, in the mean; default: all that there may be.
    """
    args = model.config
    positions = (args.cls_token_num if prefix is None else prefix) + args.block_size - 1
    weights = sum(p.numel() for p in model.layers.parameters()) + model.output.weight.numel()
    return 6 * weights * positions + 6 * args.n_layer * args.dim * positions**2


def shape_for(options: CodeTraining, store) -> tuple[dict, int, int]:
    """ModelArgs that follow from the store and the flags, the picture size, and the pixels per code."""
    size = options.image_size if options.image_size != "auto" else store.image_size or 256
    if store.image_size not in (None, size):
        raise ValueError(f"--image-size {size}: {options.code_path} holds codes of {store.image_size}-px pictures")
    side = store.grid[0]
    if store.grid[0] != store.grid[1]:
        raise ValueError(f"--code-path {options.code_path}: its grid is {store.grid[0]} x {store.grid[1]}, "
                         "this GPT needs a square one")  # fmt: skip
    if size % side:
        raise ValueError(f"--image-size {size}: {options.code_path} holds {side} x {side} codes a picture, "
                         "which does not divide it")  # fmt: skip
    if options.downsample_size not in ("auto", size // side):
        raise ValueError(f"--downsample-size {options.downsample_size}: {options.code_path} holds {side} x {side} "
                         f"codes a picture of {size} px, which is {size // side} pixels per code")  # fmt: skip
    shape = {
        "model_type": options.gpt_type,
        "cls_token_num": options.cls_token_num,
        "vocab_size": options.vocab_size if options.vocab_size != "auto" else store.vocab_size or 16384,
        "num_classes": options.num_classes if options.num_classes != "auto" else store.num_classes or 1000,
        "block_size": side * side,
    }
    return shape, size, size // side


def train_c2i(options: TrainC2I) -> None:
    """Check the codes, build the model, train it."""
    model_options, optim, checks = options.model, options.optim, options.validation
    context = join(options)
    check_options(model_options, "c2i")
    size = None if model_options.image_size == "auto" else model_options.image_size
    if model_options.dataset != "imagenet_code":
        raise ValueError(f"--dataset {model_options.dataset}: this command trains on extracted codes, imagenet_code")
    store = open_codes(model_options.code_path, size)
    shape, size, downsample = shape_for(model_options, store)
    grid = isqrt(shape["block_size"])
    check(store, shape["vocab_size"], (grid, grid), shape["num_classes"])
    names = class_names_for(store.class_names, shape["num_classes"])
    for label in checks.preview_labels or ():  # said now, not at the first preview
        try:
            find_label(label, names)
        except ValueError as error:
            raise ValueError(f"--preview-labels: {error}") from error
    val_store, train_rows, val_rows = store, None, None
    if checks.val_code_path:
        val_store = open_codes(checks.val_code_path, size)
        check(val_store, shape["vocab_size"], (grid, grid), shape["num_classes"])
    elif checks.val_fraction:
        train_rows, val_rows = split(store, checks.val_fraction, optim.global_seed)
    data = Codes(store, optim.global_seed, train_rows)
    held_out = Codes(val_store, optim.global_seed, val_rows) if checks.val_code_path or checks.val_fraction else None
    check_held_out(held_out, "--val-code-path" if checks.val_code_path else "--val-fraction", context)
    run = Run(options.run, model_options.gpt_model, context)
    parallel = Parallel(options.parallel, context, optim)
    model = build_model(model_options, shape, optim.global_seed, parallel, model_options.finetune and not run.begun)
    papers = {"image_size": size, "downsample_size": downsample, "class_names": store.class_names,
              "tokenizer": store.tokenizer}  # fmt: skip
    tokenizer = None
    if options.tokenizer.vq_ckpt and options.run.preview_every and (context.is_main or parallel.sharded):
        tokenizer = load_tokenizer(options.tokenizer, context.device)
        refuse_other_codes(tokenizer, store, model_options.code_path)
    gpt = GPT(model, model_options.gpt_model, size, downsample, store.class_names, store.tokenizer)
    pipeline = tokenizer and Pipeline(gpt, tokenizer, EagerRunner(model))
    task = ClassTask(model, model_options.gpt_model, papers, optimizer_for(model, optim), context, held_out,
                     max(1, optim.global_batch_size // context.world), pipeline, checks, optim.global_seed)  # fmt: skip
    train(task, data, options, run, parallel, None if model_options.finetune else model_options.gpt_ckpt)


def check_options(options: GPTTraining, kind: str) -> None:
    if options.gpt_type != kind:
        raise ValueError(f"--gpt-type {options.gpt_type}: this command trains {kind}; train_{options.gpt_type}.py "
                         f"trains {options.gpt_type}")  # fmt: skip
    if options.finetune and not options.gpt_ckpt:
        raise ValueError("--finetune: give the weights to start from by --gpt-ckpt")


def check_held_out(held_out: Dataset | None, flag: str, context: Context) -> None:
    if held_out is not None and len(held_out) < context.world:
        raise ValueError(f"{flag}: holds out {len(held_out)} pictures, fewer than the {context.world} processes; "
                         "hold out more")  # fmt: skip


def build_model(options: GPTTraining, shape: dict, seed: int, parallel: Parallel, finetune: bool) -> Transformer:
    """The GPT on the device, its weights a function of the seed; with `finetune` those of --gpt-ckpt."""
    torch.manual_seed(seed)
    residual = 0.0 if options.drop_path_rate > 0 else options.dropout_p
    build = partial(
        build_gpt, options.gpt_model, **shape, n_kv_head=options.n_kv_head, resid_dropout_p=residual,
        ffn_dropout_p=residual, token_dropout_p=options.token_dropout_p, drop_path_rate=options.drop_path_rate,
        class_dropout_prob=options.class_dropout_prob,
    )  # fmt: skip
    model = parallel.place(build, "layers", "initial", ("prefill", "decode", "cached"))
    if finetune:
        weights = read_weights(options.gpt_ckpt, flag="--gpt-ckpt")
        load_strict(model, weights, "--gpt-ckpt", f"--gpt-model is {options.gpt_model}")
        parallel.origin = fingerprint(weights.state.items())
    return model


def optimizer_for(model: Transformer, optim: OptimOptions) -> torch.optim.Optimizer:
    decay = 0.05 if optim.weight_decay == "auto" else optim.weight_decay
    return adamw(model, optim.lr, (optim.beta1, optim.beta2), decay)


def train(task: GPTTask, data: Dataset, options: TrainC2I | TrainT2I, run: Run, parallel: Parallel,
          checkpoint: str | None) -> None:  # fmt: skip
    """Train on `data` as the options say; `checkpoint`: a run to go on from, where this one has not begun."""
    optim, context = options.optim, task.context
    feed = Feed(data, optim.global_batch_size, optim.global_seed, context.rank, context.world,
                options.model.num_workers)  # fmt: skip
    trainer = Trainer(task, optim, run, context, feed, parallel)
    trainer.resume(checkpoint, "--gpt-ckpt")
    trainer.fit()
    leave()

