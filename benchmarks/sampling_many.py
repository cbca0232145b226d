"""The whole path, as scores need it: thousands of pictures, from their codes to their PNGs."""

import tempfile
from pathlib import Path

from benchmarks.options import SamplingBenchmark
from benchmarks.sampling_contenders import DOWNSAMPLE, gpt_and_runner, precision
from benchmarks.sampling_quality import pipeline_of, sampling_of

SHIPPED = "the pair that ships"
COLUMNS = ["Codes, pictures, PNGs", "pictures", "at once", "pictures/s", "hours for 50,000", "GPU busy"]


def pipeline_with(options: SamplingBenchmark, name: str):
    """A GPT of this size and VQ-16, their weights random."""
    import torch

    from autoregressive.load import GPT
    from autoregressive.options import MachineOptions
    from autoregressive.sample.pipeline import Pipeline, gpt_precision
    from tokenizer.tokenizer_image.vq_load import Tokenizer
    from tokenizer.tokenizer_image.vq_model import VQ_models

    dtype = gpt_precision(MachineOptions(options.precision), torch.device(options.device))
    model, runner = gpt_and_runner(options, name, dtype, "auto", compiles(options))
    vq = VQ_models["VQ-16"]().to(options.device, precision(options), memory_format=torch.channels_last)
    gpt = GPT(model, name, options.image_size, DOWNSAMPLE)
    return Pipeline(gpt, Tokenizer(vq.eval().requires_grad_(False), "VQ-16", ""), runner)


def whole_path(options: SamplingBenchmark, name: str) -> dict[str, float]:
    """Seconds a picture, how many are sampled at once, and the share of the time in which the GPU did nothing."""
    import torch

    from autoregressive.sample.many import sample_missing
    from autoregressive.sample.options import BatchOptions
    from engine.distributed import setup

    context = setup(options.device)
    pipeline = shipped(options) if name == SHIPPED else pipeline_with(options, name)
    sampling, classes, sizes = sampling_of(options), pipeline.gpt.model.config.num_classes, []

    def codes_of(part: list[int]) -> torch.Tensor:
        numbers = torch.tensor(part)
        codes = pipeline.codes(numbers.to(pipeline.device) % classes, sampling, pictures=numbers)
        sizes.append(len(part))  # did fit
        return codes

    todo, batches = list(range(count_of(options, name))), BatchOptions("auto")
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = sample_missing(pipeline, codes_of, batches, None, Path(folder), todo, context, sampling)
        except ValueError as error:  # not even one picture fits
            raise torch.OutOfMemoryError(str(error)) from error
    return {"seconds": 1 / figures.rate, "at once": max(sizes)} | (
        {} if figures.busy is None else {"idle": 1 - figures.busy})  # fmt: skip


def compiles(options: SamplingBenchmark) -> bool:
    """Where samplers by the thousand compile by default, and it changes anything."""
    return options.device == "cuda"


def shipped(options: SamplingBenchmark):
    return pipeline_of(options, options.precision, decode=options.precision, compiled=compiles(options))


def count_of(options: SamplingBenchmark, name: str) -> int:
    return 32 * options.many if name == SHIPPED else options.many


def many(options: SamplingBenchmark, figures: dict[str, dict[str, float]]) -> list[list[str]]:
    """The rows of the table."""
    rows = []
    for name in (*options.gpt_model, SHIPPED):
        figure = figures.get(f"by the thousand, {name}")
        if figure and figure["seconds"] == float("inf"):
            rows.append([name, f"{count_of(options, name):,}", "does not fit", "", "", ""])
        elif figure:
            each, busy = figure["seconds"], f"{100 * (1 - figure['idle']):.0f} %" if "idle" in figure else ""
            rows.append([name, f"{count_of(options, name):,}", f"{figure['at once']:.0f}", f"{1 / each:.2f}",
                         f"{50_000 * each / 3600:.1f}", busy])  # fmt: skip
    return rows
