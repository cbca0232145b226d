"""Who trains in the benchmark, and the table of all.

A step is the whole of it: forward and backward pass, clipping, AdamW, and no gradient left. Ours is the trainer's own.
Codes and weights are random: time does not depend on them. Each contender runs in a process of its own.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import inf
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from autoregressive.models.gpt import GPT_CONFIGS, Transformer, build_gpt
from autoregressive.train.options import GPTTraining
from autoregressive.train.task import ClassTask, build_model, optimizer_for, training_flops
from benchmarks.measure import fitted, publish, rounds, shortest
from benchmarks.options import TrainingBenchmark
from benchmarks.sampling_contenders import llama
from engine.distributed import Context, peak_flops, pick_precision, setup
from engine.options import OptimOptions, ParallelOptions, RunOptions
from engine.parallel import Parallel, wrap
from engine.run import Run
from engine.trainer import Trainer

OPTIM = OptimOptions()  # the published recipe
STARVED = {"seconds": inf, "memory": inf}


class EitherHead(ClassTask):
    """The task, or the same loss from the logits of the whole batch."""

    whole_logits = False

    def conditional_loss(self, module: nn.Module, batch: dict, drop: Tensor | None) -> Tensor:
        if not self.whole_logits:
            return super().conditional_loss(module, batch, drop)
        codes = batch["codes"]
        return module(idx=codes[:, :-1], cond_idx=batch["label"], targets=codes, drop=drop)[1]


def random_batch(model: Transformer, pictures: int) -> dict[str, Tensor]:
    """What the trainer is given: codes [B, N], labels [B], and the draws for dropping them [B]."""
    args = model.config
    return {"codes": torch.randint(args.vocab_size, (pictures, args.block_size)),
            "label": torch.randint(args.num_classes, (pictures,)), "drop": torch.rand(pictures)}  # fmt: skip


def our_trainer(options: GPTTraining, optim: OptimOptions, parallel: Parallel, codes: int, folder: str) -> Trainer:
    """The trainer as a command makes it, ready for train_step; its run lies in `folder`."""
    model = build_model(options, {"block_size": codes}, optim.global_seed, parallel, finetune=False)
    task = EitherHead(model, options.gpt_model, {}, optimizer_for(model, optim), parallel.context)
    run = Run(RunOptions(results_dir=folder, run_name="run"), options.gpt_model, parallel.context)
    batches_by_hand = SimpleNamespace(steps_per_epoch=1, order={})
    trainer = Trainer(task, optim, run, parallel.context, batches_by_hand, parallel)
    for phase in task.phases:
        phase.wrapped = wrap(phase.module, parallel.context).train()
    return trainer


def ours(options: TrainingBenchmark, name: str, compiled: bool, dropout: float = 0.0, whole_logits: bool = False
         ) -> dict[str, float]:  # fmt: skip
    context = setup(options.device)
    optim = replace(OPTIM, global_batch_size=options.batch_size, mixed_precision=options.precision)
    model = GPTTraining(name, dropout_p=dropout, token_dropout_p=dropout)
    with tempfile.TemporaryDirectory() as folder:
        trainer = our_trainer(model, optim, Parallel(ParallelOptions(), context, optim), options.codes, folder)
        trainer.task.whole_logits = whole_logits
        (phase,) = trainer.task.phases
        if compiled:  # as the trainer does
            phase.module.compile()
        batch = random_batch(phase.module, options.batch_size)
        figures = timed(lambda: trainer.train_step(batch), options, context)
        trainer.logger.close()
    return figures


def transformers_llama(options: TrainingBenchmark, name: str, compiled: bool) -> dict[str, float]:
    """The plain step: the logits of the whole batch, and every weight decays."""
    context = setup(options.device)
    dtype = pick_precision(options.precision, context.device)
    with torch.device(context.device):
        model = llama(shape_of(name, options.codes).config, "sdpa").train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), OPTIM.lr, (OPTIM.beta1, OPTIM.beta2),
                                  weight_decay=OPTIM.weight_decay, fused=context.device.type != "mps")  # fmt: skip
    if compiled:
        model.compile()
    given = torch.randint(model.config.vocab_size, (options.batch_size, options.codes))

    def step() -> None:
        codes = given.to(context.device)
        with torch.autocast(context.device.type, dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=codes, labels=codes).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, options, context)


def timed(step: Callable[[], object], options: TrainingBenchmark, context: Context) -> dict[str, float]:
    """Seconds a step, and on a GPU the most MiB of its memory that tensors took."""
    on_gpu = context.device.type == "cuda"
    finish = torch.cuda.synchronize if on_gpu else lambda: None
    for _ in range(options.warmup):
        step()
    finish()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    finish()
    seconds = (time.perf_counter() - start) / options.steps
    return {"seconds": seconds, "memory": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0}


def machine(options: TrainingBenchmark) -> dict[str, float]:
    """Seconds an operation of a product of matrices takes, in the precision of the step."""
    device = setup(options.device).device
    side = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(pick_precision(options.precision, device)) for _ in range(2))

    def work() -> float:
        return (a @ b)[0, 0].item()  # waits for the device

    return {"operation": shortest(work, 20) / (2 * side**3)}


CONTENDERS = {
    "ours": (ours, False),
    "ours-compiled": (ours, True),
    "ours-dropout-compiled": (ours, True, 0.1),
    "ours-whole-logits": (ours, False, 0.0, True),
    "transformers": (transformers_llama, False),
    "transformers-compiled": (transformers_llama, True),
}


@cache
def shape_of(name: str, codes: int) -> Transformer:
    """The GPT without memory."""
    with torch.device("meta"):
        return build_gpt(name, block_size=codes)


def settled(options: TrainingBenchmark) -> TrainingBenchmark:
    """The options with the machine's values in the place of 'auto'; ValueError for what cannot be."""
    device = setup(options.device).device.type
    auto = {"output": f"benchmarks/results/training_{device}.md", "codes": 64, "batch_size": 32,
            "gpt_model": ("GPT-25M",)}  # fmt: skip
    if device == "cuda":
        auto |= {"codes": 576, "batch_size": 16, "gpt_model": ("GPT-B", "GPT-L", "GPT-XL", "GPT-XXL")}
    options = replace(options, **{name: value for name, value in auto.items() if getattr(options, name) == "auto"})
    for flag, given, known in (("gpt-model", options.gpt_model, GPT_CONFIGS), ("only", options.only, CONTENDERS)):
        if wrong := [name for name in given if name not in known]:
            raise ValueError(f"--{flag} {wrong[0]}: choose from {', '.join(known)}")
    return replace(options, device=device)


def table(options: TrainingBenchmark, figures: dict[str, dict[str, float]], rate: float) -> list[list[str]]:
    """rate: FLOP/s of the device."""
    rows = []
    for model in options.gpt_model:
        mine = {name: figures[f"{model}, {name}"] for name in CONTENDERS if f"{model}, {name}" in figures}
        others = min((each["seconds"] for name, each in mine.items() if name.startswith("transformers")), default=inf)
        flops = training_flops(shape_of(model, options.codes)) * options.batch_size
        for name, each in mine.items():
            seconds, row = each["seconds"], [f"{model}, {name}"]
            if seconds == inf:
                rows.append([*row, "does not fit", "", "", "", ""])
                continue
            row.append(f"{options.batch_size * options.codes / seconds:,.0f}")
            row.append(f"{others / seconds:.2f}" if others < inf else "")
            row += [f"{1000 * seconds:.1f}", f"{each['memory'] or each['peak']:.0f}"]
            rows.append([*row, f"{100 * flops / seconds / rate:.1f}"])
    return rows


def compare(options: TrainingBenchmark) -> None:
    """Measure everything and publish the table."""
    options = settled(options)
    chosen = {name: CONTENDERS[name] for name in options.only or CONTENDERS}
    contenders = {f"{model}, {name}": (fitted, STARVED, function, options, model, *setting)
                  for model in options.gpt_model for name, (function, *setting) in chosen.items()}  # fmt: skip
    figures = rounds(contenders, options.repeats, killed=STARVED)
    device = torch.device(options.device)
    nominal, measured = peak_flops(device), 1 / rounds({"machine": (machine, options)}, 1)["machine"]["operation"]
    dtype = str(pick_precision(options.precision, device)).removeprefix("torch.")
    card = torch.cuda.get_device_name() if device.type == "cuda" else None
    notes = [
        f"{options.batch_size} random pictures of {options.codes} codes a step, {dtype} by autocast over float32 "
        f"weights; {options.steps} steps after {options.warmup}, best of {options.repeats} rounds. Peak memory is that "
        f"of {'tensors on the GPU' if card else 'the process, with its compiler where it compiles'}. ours: the "
        "trainer's step without dropout, the loss head in parts; dropout: the published 0.1 in three places; "
        "whole-logits: from the logits of the whole batch. transformers: LlamaForCausalLM with sdpa, which has no "
        "dropout there. FLOPs are those of matrix products and of causal attention.",
        "",
        f"100 % of the device's rate are {(nominal or measured) / 1e12:.3g} TFLOP/s "
        f"({'its data sheet; ' if nominal else ''}products of large matrices measured here: {measured / 1e12:.3g}).",
    ]
    columns = ["", "codes/s", "times the faster transformers", "ms a step", "peak MiB", "% of the device's rate"]
    publish(options.output, "Training", columns, table(options, figures, nominal or measured), notes, card)
