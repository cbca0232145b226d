"""How many pictures are sampled at once: what `--per-proc-batch-size auto` makes of the free memory.

The estimate need not be exact: where a batch is too large after all, the sampler halves it (many.py). No picture
depends on it.

Axes: D width, C codes in the vocabulary. A guided picture is two rows.
"""

import gc
import os
import socket

import torch

from autoregressive.models.attend import width_in_memory
from autoregressive.models.generate import Sampling
from autoregressive.sample.options import BatchOptions
from autoregressive.sample.pipeline import Pipeline
from engine.distributed import Context

FLAG = "--per-proc-batch-size"
SPARE = 0.1  # of the free memory: for the allocator's gaps, the libraries' workspaces and a text encoder's activations
# What is held at once: by count, and half as much or more again for what operations take within themselves.
CHOICE = 24  # vectors of C float32, by the choice of a code: the noise's hashes, or a sort
LAYER = (8, 4)  # times D, and times the feed-forward's width, by the prefill for each position of the condition
MAPS = 8  # of the tokenizer's largest feature maps, by decoding
# Rows beyond which a step takes longer by as much as it has more of them: a weight is read once a step and used once a
# row, so the matrix units are busy from as many rows on as they have operations for each number that arrives (an H100:
# 989e12 / 3.3e12 = 300; CPUs: some 50). Three to five times as many leave little of the reading; the cache is read once
# a row anyway.
MOST_ROWS = {"cuda": 1024, "mps": 256, "cpu": 256}


def batch_size(pipeline: Pipeline, options: BatchOptions, sampling: Sampling, count: int, context: Context) -> int:
    """Pictures that this process samples at once, of the `count` that it has to do. All processes call it."""
    if options.per_proc_batch_size != "auto":
        return evenly(count, options.per_proc_batch_size)
    let_go(pipeline)
    here = place_of(pipeline.device)
    places = context.share(context.gather(here))  # from here on, the models of all processes are loaded
    free = free_memory(pipeline.device) / places.count(here)
    context.barrier()  # nobody takes memory before all have looked
    each = bytes_a_picture(pipeline, sampling)
    room = (1 - SPARE) * free - bytes_to_decode(pipeline, min(options.decode_batch_size, count))
    most = MOST_ROWS[pipeline.device.type] // rows_of(sampling)
    batch = evenly(count, max(1, min(most, int(room / each))))
    if context.is_main and count:
        print(f"{FLAG} auto: {batch} pictures at once; one takes {in_units(each)} of {in_units(free)} that are free")
    return batch


def evenly(count: int, most: int) -> int:
    """The size of batches of `most` at most that are as few as can be, and alike."""
    return -(-count // -(-count // most)) if count else most


def smaller(asked: int | str, batch: int) -> int:
    """The batch to go on with where `batch` pictures did not fit; ValueError where there is none."""
    if asked != "auto":
        raise ValueError(f"{FLAG} {asked}: does not fit into this GPU's memory; give a smaller number or auto (and "
                         "perhaps a smaller --decode-batch-size)")  # fmt: skip
    if batch == 1:
        raise ValueError(f"{FLAG} auto: not even one picture fits into this GPU's memory; end what else uses it, or "
                         "sample in --precision bf16 or from a smaller GPT")  # fmt: skip
    return batch // 2


def let_go(pipeline: Pipeline) -> None:
    """Of all that is kept for batches of other sizes: the runner's caches and graphs, and memory that torch holds."""
    pipeline.runner = pipeline.runner.another()
    gc.collect()
    if pipeline.device.type == "cuda":
        torch.cuda.empty_cache()


def rows_of(sampling: Sampling) -> int:
    return 2 if sampling.guided else 1


def bytes_a_picture(pipeline: Pipeline, sampling: Sampling) -> int:
    """What sampling takes for each picture of a batch: keys and values of all positions, its condition's prefill, and
    the choice of a code."""
    args, width = pipeline.gpt.model.config, pipeline.gpt.model.norm.weight.element_size()
    positions = pipeline.runner.rounded(args.cls_token_num + args.block_size - 1)  # the last code is not kept
    cache = 2 * args.n_layer * args.n_kv_head * width_in_memory(args.head_width, pipeline.device) * positions * width
    prefill = args.cls_token_num * (LAYER[0] * args.dim + LAYER[1] * args.ffn_width) * width
    captions = args.cls_token_num * args.caption_dim * 4 if args.model_type == "t2i" else 0
    return rows_of(sampling) * (cache + prefill + captions) + pipeline.window * CHOICE * args.vocab_size * 4


def bytes_to_decode(pipeline: Pipeline, pictures: int) -> int:
    """What decoding so many pictures at once takes, and a text encoder that comes back to the device."""
    vq = pipeline.tokenizer.model
    side, width = pipeline.grid * vq.downsample, vq.post_quant_conv.weight.element_size()
    # A level's last map has the next finer one's size already: it is scaled up before its channels become fewer.
    largest = max(times / 4 ** max(level - 1, 0) for level, times in enumerate(vq.config.channel_multipliers))
    decoding = pictures * MAPS * int(largest * vq.config.channels * side**2) * width
    away = pipeline.encoder.model.parameters() if pipeline.offload else ()
    return decoding + sum(weight.numel() * weight.element_size() for weight in away)


def place_of(device: torch.device) -> str:
    """Whose memory it is: a GPU's, by its number in the world, or the machine's."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else socket.gethostname()


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on the device, with what torch holds of a GPU without using it."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return free_pages() * os.sysconf("SC_PAGE_SIZE")


def free_pages() -> int:
    """Of the main memory where no /proc tells; half of all pages where the system does not know the free ones."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        raise ValueError(f"{FLAG} auto: this system does not say how much memory is free; give a number")
    return os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in names else os.sysconf("SC_PHYS_PAGES") // 2


def in_units(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
