"""Pictures by the thousand, over any number of processes: PNG files, then one npz made from them.

Picture i has a label and a noise that depend on (seed, i) alone, so neither the number of processes nor the batch
changes it, and what is already on disk need not be sampled again.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from autoregressive.bundled import or_bundled
from autoregressive.models.generate import Sampling
from autoregressive.models.ways import precision_of
from autoregressive.options import GPTOptions
from autoregressive.sample.batches import batch_size, let_go, smaller
from autoregressive.sample.options import BatchOptions, SampleC2IMany, SampleT2IMany
from autoregressive.sample.overlap import drawn, second_stream
from autoregressive.sample.pace import Figures, Pace
from autoregressive.sample.pipeline import Pipeline, load_pipeline, sampling_from
from dataset.order import LABEL, draw
from engine.distributed import Context, leave, setup
from evaluations.images import PngWriter, claim, picture_path, pngs_to_npz

NOTES = ("steps", "epochs")  # settings that decide nothing: the weights are known by their checksum


def run_name(options: SampleC2IMany, pipeline: Pipeline) -> str:
    """The published name of the folder and of the npz."""
    many, sampling = options.many, options.sampling
    return (f"{pipeline.gpt.name}-{checkpoint_stem(options.gpt)}-size-{pipeline.gpt.image_size}-"
            f"size-{many.image_size_eval}-{pipeline.tokenizer.name}-topk-{sampling.top_k}-topp-{sampling.top_p}-"
            f"temperature-{sampling.temperature}-cfg-{sampling.cfg_scale}-seed-{many.global_seed}")  # fmt: skip


def checkpoint_stem(gpt: GPTOptions) -> str:
    """The file's stem; with --from-fsdp the folder that it is in."""
    path = Path(gpt.gpt_ckpt)
    if not gpt.from_fsdp:
        return path.stem
    return path.name if path.is_dir() else path.parent.name


def labels_for(count: int, classes: int, seed: int, balance: bool) -> np.ndarray:
    """int64 [count], functions of (seed, picture): independent and uniform, or in shuffled blocks of all classes."""
    if balance:
        blocks = np.arange(-(-count // classes))[:, None]
        keys = draw(seed, blocks, np.arange(classes), LABEL)  # [blocks, classes]
        return np.argsort(keys, axis=1, kind="stable").reshape(-1)[:count]
    return (draw(seed, 0, np.arange(count), LABEL) * classes).astype(np.int64)


def sample_many(options: SampleC2IMany) -> Path:
    """What the sampler does; the npz."""
    context = setup(options.machine.device)
    gpt, tokenizer = or_bundled(options.gpt, options.tokenizer)
    options = replace(options, gpt=gpt, tokenizer=tokenizer)  # they name the folder
    npz = sample_into(load_pipeline(options.gpt, options.tokenizer, options.machine, context.device), options, context)
    leave()
    return npz


def sample_into(pipeline: Pipeline, options: SampleC2IMany, context: Context) -> Path:
    """Write the PNGs that are missing, then the npz; its path. All processes call it, rank 0 writes the npz."""
    many = options.many
    folder = Path(many.sample_dir) / run_name(options, pipeline)
    labels = labels_for(many.num_fid_samples, pipeline.gpt.model.config.num_classes, many.global_seed, many.balance)

    def missing() -> tuple[list[int], dict]:
        meta = settings_of(options, pipeline)
        claim(folder, meta, NOTES)
        todo = [i for i in range(many.num_fid_samples) if not picture_path(folder, i).exists()]
        if len(todo) < many.num_fid_samples:
            print(f"{folder}: {many.num_fid_samples - len(todo)} pictures are there, {len(todo)} to go")
        return todo, meta

    todo, meta = context.on_main(missing)  # one rank looks: on a network folder several might not see the same
    sampling = sampling_from(options.sampling)

    def codes_of(part: list[int]) -> Tensor:
        cond = torch.from_numpy(labels[part]).to(pipeline.device)
        return pipeline.codes(cond, sampling, many.global_seed, torch.tensor(part))

    sample_missing(pipeline, codes_of, many, many.image_size_eval, folder, todo, context, sampling)
    context.barrier()
    npz = folder.with_suffix(folder.suffix + ".npz")

    def write() -> None:
        pngs_to_npz(npz, folder, range(many.num_fid_samples), many.image_size_eval, meta, labels=labels)
        print(f"{many.num_fid_samples} pictures -> {npz}")

    context.on_main(write)
    return npz


def settings_of(options: SampleC2IMany, pipeline: Pipeline) -> dict:
    """All that decides the pictures beside what the folder's name says, and how long the GPT was trained."""
    found = models_of(options, pipeline)
    return {**found, "balance": options.many.balance, **pipeline.gpt.trained}


def models_of(options: SampleC2IMany | SampleT2IMany, pipeline: Pipeline) -> dict:
    """The models, their precisions, the seed and the sampling."""
    gpt, tokenizer = pipeline.gpt, pipeline.tokenizer
    decoding = str(tokenizer.model.post_quant_conv.weight.dtype).removeprefix("torch.")
    return {"kind": "generation", "gpt": gpt.name, "gpt_ckpt": Path(options.gpt.gpt_ckpt).name,
            "gpt_checksum": gpt.checksum(), "use_ema": options.gpt.use_ema,
            "tokenizer": tokenizer.name, "tokenizer_checksum": tokenizer.checksum,
            "image_size": gpt.image_size, "seed": options.many.global_seed,
            "precision": precision_of(gpt.model), "decode_precision": decoding,
            "sampling": asdict(options.sampling)}  # fmt: skip


def sample_missing(pipeline: Pipeline, codes_of: Callable[[list[int]], Tensor], options: BatchOptions, size: int | None,
                   folder: Path, todo: list[int], context: Context, sampling: Sampling) -> Figures | None:  # fmt: skip
    """This rank's part of the pictures `todo`: their codes [B, N] by codes_of(numbers), resized to `size`, as PNGs; how
    fast they were made. Decoding (on a GPU) and writing them go on beside the sampling of the next batch."""
    todo, quiet = todo[context.rank :: context.world], None if context.is_main else True
    batch = batch_size(pipeline, options, sampling, len(todo), context)

    def pictures_of(codes: Tensor) -> np.ndarray:
        return pipeline.to_pictures(codes, size, options.decode_batch_size)

    with (PngWriter(folder) as writer, second_stream(pipeline.device) as beside, Pace(pipeline.device) as pace,
          tqdm(total=len(todo), unit="picture", disable=quiet) as bar):  # fmt: skip
        while todo:
            parts = [todo[first : first + batch] for first in range(0, len(todo), batch)]
            try:
                for part, pictures in drawn(parts, codes_of, pictures_of, beside):
                    writer.write(part, pictures)
                    todo = todo[len(part) :]
                    pace.add(len(part))
                    bar.update(len(part))
            except torch.OutOfMemoryError:
                batch = smaller(options.per_proc_batch_size, batch)
                tqdm.write(f"process {context.rank}: out of memory; goes on with {batch} pictures at once")
            if todo:  # the error is gone, and with it what it held
                let_go(pipeline)
    return pace.report(context)
