"""Memory of a training step's first rank: what is worked out, beside what a real step of the real model takes.

That step runs in one process that believes to be one of many: its collectives do nothing, and its tensors have sizes
alone (torch's fake process group and fake tensors, which are torch's own tools and may change).
"""

import os
import tempfile
from unittest import mock

import torch
import torch.distributed as dist

from autoregressive.models.gpt import GPT_CONFIGS
from autoregressive.train.options import GPTTraining
from benchmarks.live_memory import live_memory
from benchmarks.measure import publish
from benchmarks.memory_per_rank import NODE, Setting, peak
from benchmarks.options import TrainingMemory
from benchmarks.training_contenders import our_trainer, random_batch
from engine.distributed import Context
from engine.options import OptimOptions, ParallelOptions
from engine.parallel import Parallel

GB = 1e9
COLUMNS = ["", "pictures", "weights", "moments", "gradients", "gathered", "activations", "peak", "traced",
           "whole logits", "traced"]  # fmt: skip


def traced(setting: Setting) -> tuple[int, int]:
    """Peak bytes of a step, by the loss head in parts and by whole logits."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    context = Context(0, setting.gpus, torch.device("cpu"))
    pictures = setting.pictures * setting.parts
    optim = OptimOptions(global_batch_size=setting.gpus * pictures, mixed_precision="bf16", ema=setting.ema,
                         gradient_accumulation_steps=setting.parts)  # fmt: skip
    ways = ParallelOptions(setting.data_parallel, activation_checkpointing=setting.activation_checkpointing,
                           reduce_every_part=setting.reduce_every_part)  # fmt: skip
    dist.init_process_group("fake", rank=0, world_size=setting.gpus, store=FakeStore())
    try:
        with mock.patch.dict(os.environ, LOCAL_WORLD_SIZE=str(NODE)):
            parallel = Parallel(ways, context, optim)
        # The start-up check would hash the initial values, of which there are none.
        unhashed = mock.patch("engine.sharding.fingerprint", lambda tensors: f"{sum(1 for _ in tensors)} tensors")
        fused = mock.patch("autoregressive.models.attend.SHORT", 0)  # attention as on a GPU
        with tempfile.TemporaryDirectory() as folder, unhashed, fused, live_memory() as live:
            trainer = our_trainer(GPTTraining(setting.gpt_model), optim, parallel, setting.codes, folder)
            batch, peaks = random_batch(trainer.task.model, pictures), []
            trainer.train_step(batch)  # makes the moments; and DTensor looks at whole weights, once
            for whole in (False, True):
                trainer.task.whole_logits, live.peak = whole, live.now
                trainer.train_step(batch)
                peaks.append(live.peak)
            trainer.logger.close()
    finally:
        dist.destroy_process_group()
    return tuple(peaks)


def settings(options: TrainingMemory) -> dict[str, Setting]:
    """By the name of the row."""
    found = {}
    for model in options.gpt_model:
        for gpus in options.gpus:
            for way in ("fsdp", "hsdp")[: 2 if gpus > NODE else 1]:  # on one node they are the same
                for again in (False, True):
                    name = f"{model}, {gpus} GPUs, {way}{', checkpointing' if again else ''}"
                    found[name] = Setting(model, gpus, way, options.global_batch_size // gpus, options.codes, again,
                                          options.ema)  # fmt: skip
    return found


def worked_out(name: str, setting: Setting) -> list[str]:
    """A row without what is traced."""
    parts, whole = peak(setting), peak(setting, whole_logits=True)
    figures = [parts["weights"] + parts["ema"], parts["moments"], parts.get("gradients", 0), parts["gathered"],
               parts["activations"], sum(parts.values()), sum(whole.values())]  # fmt: skip
    return [name, str(setting.pictures), *(f"{each / GB:.1f}" for each in figures)]


def row(name: str, setting: Setting) -> list[str]:
    *cells, whole = worked_out(name, setting)
    seen = [f"{each / GB:.1f}" for each in traced(setting)]
    return [*cells, seen[0], whole, seen[1]]


def write(options: TrainingMemory) -> None:
    """Work everything out, trace it, and publish the table."""
    if wrong := [name for name in options.gpt_model if name not in GPT_CONFIGS]:
        raise ValueError(f"--gpt-model {wrong[0]}: choose from {', '.join(GPT_CONFIGS)}")
    rows = [row(name, setting) for name, setting in settings(options).items()]
    notes = [
        f"GB (10^9 bytes) on the first GPU, at a step's moment of the most memory; {options.global_batch_size} "
        f"pictures of {options.codes} codes a step over all GPUs, in the second column those of one. bf16 over float32 "
        f"{'weights and their moving average' if options.ema else 'weights'}, dropout 0.1, not compiled. gathered: "
        "weights in bf16 of what is being computed, and gradients on their way to be summed. traced: the peak of a "
        "real step of the trainer on tensors without memory; what operations take within themselves does not count, "
        "nor what the allocator, the communication library and the driver keep. whole logits: the loss from the "
        "logits of all pictures, not in parts.",
    ]
    publish(options.output, "Memory of a GPU in sharded training", COLUMNS, rows, notes)
