"""What looking ahead saves and what fewer bits cost, with weights that were trained: the pair that ships.

Axes: B pictures, N codes of a picture, C codes in the vocabulary.
"""

import math
import tempfile
from pathlib import Path

from benchmarks.options import SamplingBenchmark
from benchmarks.sampling_contenders import HALF, dtypes, timed, with_kernels

WINDOWS = (1, 4, 8, 16)
AT_ONCE = (1, 8)
DRAWS = 8  # batches, of which the mean counts
EXACT = "float32, eager"
FILLED = f"{HALF} of float32"  # of the pair as if it were not kept in 16 bits, of which float16 loses nothing
BITS = {  # --precision, --runner, --int8
    "cpu": {EXACT: ("none", "eager", False), "bf16, eager": ("bf16", "eager", False),
            "bf16, packed": ("bf16", "packed", False), "bf16, packed, compiled": ("bf16", "compiled", False),
            FILLED: ("fp16", "packed", False), "int8 of bf16": ("bf16", "packed", True)},
    "cpu without bf16": {EXACT: ("none", "eager", False), "float32, packed, compiled": ("none", "compiled", False),
                         FILLED: ("fp16", "packed", False), "int8 of float32": ("none", "packed", True)},
    "cuda": {EXACT: ("none", "eager", False), "bf16, eager": ("bf16", "eager", False),
             "bf16, captured": ("bf16", "captured", False)},
}  # fmt: skip
SAMPLES = 1000  # pictures whose codes are compared, and that the classifier reads
HELD_OUT = 2000  # held-out pictures, about
BATCH = 250


def bits_of(options: SamplingBenchmark) -> dict[str, tuple]:
    """BITS of the device."""
    kind = options.device if options.device != "cpu" or "bfloat16" in dtypes(options) else "cpu without bf16"
    return with_kernels(options, BITS[kind])


def pipeline_of(options: SamplingBenchmark, precision: str, runner: str = "auto", int8: bool = False, ahead: int = 1,
                decode: str = "none", compiled: bool = False, gpt: str | None = None):  # fmt: skip
    """The pair that ships; gpt: the file of another GPT in its stead."""
    from dataclasses import replace

    from autoregressive.options import MachineOptions
    from autoregressive.sample.pipeline import load_pipeline

    given, tokenizer = shipped_pair()
    machine = MachineOptions(precision, decode, options.device, runner, compile=compiled, int8=int8,
                             look_ahead=ahead)  # fmt: skip
    return load_pipeline(replace(given, gpt_ckpt=gpt or given.gpt_ckpt), tokenizer, machine)


def shipped_pair() -> tuple:
    """Its GPTOptions and TokenizerOptions."""
    from autoregressive.bundled import or_bundled
    from autoregressive.options import GPTOptions
    from tokenizer.tokenizer_image.vq_options import TokenizerOptions

    return or_bundled(GPTOptions(), TokenizerOptions())


def write_filled(path: str) -> str:
    """The GPT that ships with random bits in each weight behind those that float16 keeps."""
    import torch

    from engine.checkpoint import read_weights, save_safetensors

    weights, chance = read_weights(shipped_pair()[0].gpt_ckpt), torch.Generator().manual_seed(0)
    state = {name: value.float() * (1 + 2**-10 * (torch.rand(value.shape, generator=chance) - 0.5))
             for name, value in weights.state.items()}  # fmt: skip
    save_safetensors(path, state, weights.meta)
    return path


def sampling_of(options: SamplingBenchmark):
    from autoregressive.models.draw import Sampling

    return Sampling(cfg_scale=options.cfg_scale, top_k=options.top_k)


def looking_ahead(options: SamplingBenchmark, pictures: int, window: int) -> dict[str, float]:
    """Seconds and steps of a batch of the pair that ships."""
    import torch

    pipeline, looks = pipeline_of(options, options.precision, ahead=window), []
    look = pipeline.runner.look
    pipeline.runner.look = lambda codes: looks.append(codes.shape[1]) or look(codes)

    def draw(batch: int) -> None:
        numbers = torch.arange(batch * pictures, (batch + 1) * pictures)
        pipeline.codes(numbers.to(pipeline.device) % 10, sampling_of(options), pictures=numbers)

    for batch in range(DRAWS):  # each window's graph is captured before it counts
        draw(batch)
    looks.clear()
    seconds = sum(timed(options, lambda batch=batch: draw(batch)) for batch in range(DRAWS)) / DRAWS
    return {"seconds": seconds, "steps": 1 + len(looks) / DRAWS, "codes": pipeline.grid**2}


def fewer_bits(options: SamplingBenchmark, name: str) -> dict[str, float]:
    """How far logits are from float32's (over the size of those), which share of codes is the same after the same codes
    and with the same noise, the loss on held-out pictures, and the share of samples that are read as their class."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        gpt = write_filled(f"{folder}/gpt.safetensors") if name == FILLED else None
        pipeline, exact = (pipeline_of(options, *bits_of(options)[each], gpt=gpt) for each in (name, EXACT))
    sampling, labels = sampling_of(options), torch.arange(SAMPLES, device=pipeline.device) % 10
    batches = list(zip(labels.split(BATCH), torch.arange(SAMPLES).split(BATCH)))
    own, wanted = (torch.cat([each.codes(part, sampling, pictures=numbers) for part, numbers in batches])
                   for each in (pipeline, exact))  # fmt: skip
    ours, theirs = (after_each(each, labels[:BATCH], wanted[:BATCH]) for each in (pipeline, exact))
    figures = {
        "distance": ((ours - theirs).norm() / theirs.norm()).item(),
        "different": 1 - same_codes(pipeline, exact, labels[:BATCH], wanted[:BATCH], sampling),
        "whole different": 1 - (own == wanted).all(1).float().mean().item(),
    }
    if options.held_out:
        figures["loss"] = held_out_loss(options, pipeline)
    if options.classifier:
        figures["misread"] = 1 - read_right(options, pipeline, own, labels)
    return figures


def after_each(pipeline, cond, codes, draw=None):
    """What is drawn before codes [B, N] and after each but the last, step by step: int64 [B, N]; without a draw logits,
    float32 [B, N, C]."""
    import torch

    runner, count = pipeline.runner, codes.shape[1]
    with torch.inference_mode():
        try:
            steps = [runner.start(cond, count, draw=draw)]
            for i in range(count - 1):
                steps.append(runner.step(codes[:, i]).clone())  # a captured step writes to where the last one did
        finally:
            runner.finish()
    return torch.stack(steps, 1)


def same_codes(pipeline, exact, labels, codes, sampling) -> float:
    """The share of codes [B, N] that both choose alike after the same codes and with the same noise, guided."""
    import torch

    from autoregressive.models.draw import Draw

    model, pictures = exact.gpt.model, torch.arange(len(labels), device=labels.device)
    both = torch.cat([labels, model.null_condition(labels)])
    draw = Draw(sampling, codes.shape[1], 0, pictures, model.config.vocab_size)
    ours, theirs = (after_each(each, both, codes, draw) for each in (pipeline, exact))
    return (ours == theirs).float().mean().item()


def held_out_loss(options: SamplingBenchmark, pipeline) -> float:
    """Mean cross-entropy of the codes of held-out pictures, in nats."""
    import torch

    from dataset.build import class_folders
    from dataset.images import Images

    source = class_folders(Path(options.held_out))
    if source.class_names != pipeline.class_names:
        raise ValueError(f"--held-out {options.held_out}: its classes are not {', '.join(pipeline.class_names)}")
    images, total, count = Images(source, pipeline.gpt.image_size, "center"), 0.0, 0
    rows = range(0, len(images), max(1, len(images) // HELD_OUT))
    for first in range(0, len(rows), BATCH):
        batch = Images.collate([images[i] for i in rows[first : first + BATCH]])
        with torch.inference_mode():
            codes = pipeline.tokenizer.model.encode_codes(batch["image"].to(pipeline.device)).flatten(1)
        logits = after_each(pipeline, batch["label"].to(pipeline.device), codes)
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum").item()
        count += codes.numel()
    return total / count


def read_right(options: SamplingBenchmark, pipeline, codes, labels) -> float:
    """The share of pictures that the classifier reads as their class."""
    from dataset.images import ArraySource, Images
    from evaluations.score_task import count_right, load_classifier

    model, meta = load_classifier(options.classifier, pipeline.device)
    pictures = pipeline.to_pictures(codes, size=model.config.image_size, batch=BATCH)
    source = ArraySource(pictures, labels.cpu().numpy(), meta["class_names"])
    right, all_of_them = count_right(model, Images(source, model.config.image_size, "none"), "samples", BATCH, 0).sum(0)
    return right / all_of_them


def decoded_in_bf16(options: SamplingBenchmark) -> dict[str, float]:
    """PSNR in dB of the tokenizer that ships, its pictures decoded in bf16 against those in float32, before either is
    rounded to bytes, in which many are the same."""
    import torch

    pipeline = pipeline_of(options, "none")
    numbers = torch.arange(BATCH)
    codes = pipeline.codes(numbers.to(pipeline.device) % 10, sampling_of(options), pictures=numbers)
    exact = pipeline.decode(codes).clamp(-1, 1)
    pipeline.tokenizer.model.to(torch.bfloat16)
    error = (pipeline.decode(codes).clamp(-1, 1) - exact).square().mean().item()
    return {"psnr": -10 * math.log10(error / 4)}
