"""A few pictures of chosen classes or prompts: a grid, single files, and how long it took without loading."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoregressive.bundled import or_bundled
from autoregressive.options import SamplingOptions
from autoregressive.sample.drawn import codes_of, save_drawn
from autoregressive.sample.options import PromptListOptions, SampleC2I, SampledSheetOptions, SampleT2I, SheetOptions
from autoregressive.sample.pipeline import Pipeline, load_pipeline, load_text_pipeline, sampling_from
from dataset.augmentation import check_aspect
from dataset.images import read_rgb
from dataset.text import read_prompts
from evaluations.images import make_folder, save_grid

DEMO_CLASSES = (207, 360, 387, 974, 88, 979, 417, 279)  # golden retriever, otter, ... of the published demo
SHIPPED_PROMPTS = Path(__file__).resolve().parents[2] / "evaluations/t2i/prompts.tsv"


def sample_grid(options: SampleC2I) -> None:
    """Pictures of classes."""
    grid = options.grid
    check_places(grid)
    prefix, began = read_prefix(grid), time.perf_counter()
    pipeline = load_pipeline(*or_bundled(options.gpt, options.tokenizer), options.machine)
    labels = pipeline.labels(repeated(grid.labels or default_classes(pipeline), grid.num_images))
    names = [pipeline.class_names[i] for i in labels.tolist()]

    def conditions(first: int, last: int) -> dict:
        return {"cond": labels[first:last]}

    write_grid(pipeline, conditions, "class", names, options.sampling, grid, prefix, began)


def sample_prompts(options: SampleT2I) -> None:
    """Pictures of prompts."""
    grid, prompt = options.grid, options.prompt
    check_places(grid)
    texts = repeated(prompts_of(grid), grid.num_images)
    prefix, began = read_prefix(grid), time.perf_counter()
    pipeline = load_text_pipeline(options.gpt, options.tokenizer, options.encoder, options.machine)

    def conditions(first: int, last: int) -> dict:
        return pipeline.captions(texts[first:last], prompt.negative_prompt, prompt.left_padding)

    write_grid(pipeline, conditions, "prompt", texts, options.sampling, grid, prefix, began)


def write_grid(
    pipeline: Pipeline,
    conditions: Callable[[int, int], dict],
    what: str,
    names: list[str],
    chosen: SamplingOptions,
    grid: SampledSheetOptions,
    prefix: Image.Image | None,
    began: float,
) -> None:
    """conditions(first, last): arguments of Pipeline.codes for these pictures; `names` of `what` go into the files.
    prefix: a picture that all complete."""
    count, loaded, codes = len(names), now(pipeline.device), []
    sampling = sampling_from(chosen)
    known, settings = None, asdict(chosen)
    if prefix is not None:
        known = pipeline.first_codes(codes_of(grid.prefix_image, prefix, pipeline), grid.keep_rows, grid.keep_columns)
        rows, columns = divmod(len(known), pipeline.grid)
        settings |= {"completed": Path(grid.prefix_image).name, "kept_codes": len(known), "keep_rows": rows,
                     "keep_columns": columns}  # fmt: skip
    for first in range(0, count, grid.batch_size):
        pictures = torch.arange(first, min(first + grid.batch_size, count))
        given = conditions(first, first + len(pictures))
        codes.append(pipeline.codes(sampling=sampling, seed=grid.seed, pictures=pictures, progress=True, known=known,
                                    **given))  # fmt: skip
    codes = torch.cat(codes)
    sampled = now(pipeline.device)
    images = pipeline.to_pictures(codes)
    decoded = now(pipeline.device)
    drawn = codes.numel() - (0 if known is None else count * len(known))
    print(f"loading {loaded - began:.2f} s; {drawn} codes in {sampled - loaded:.2f} s "
          f"({drawn / (sampled - loaded):.0f} codes/s); decoding {decoded - sampled:.2f} s")  # fmt: skip
    save_sheet(grid, pipeline, what, names, images, codes, settings)


def save_sheet(
    grid: SheetOptions,
    pipeline: Pipeline,
    what: str,
    names: list[str],
    images: np.ndarray,
    codes: Tensor,
    settings: dict,
) -> None:
    """The grid, and single files where they are asked for: pictures uint8 [B, H, W, 3] of codes [B, N], `names` of
    `what`."""
    settings = {"count": len(names), "seed": grid.seed, **settings}
    plural = {"class": "classes"}.get(what, f"{what}s")
    save_grid(grid.output, images, grid.per_row, {"settings": json.dumps({plural: names, **settings})})
    if grid.single_dir is not None:
        for i, (image, name) in enumerate(zip(images, names)):
            save_drawn(Path(grid.single_dir) / f"{i:06d}.png", image, {what: name, "picture": i, **settings}, codes[i],
                       pipeline)  # fmt: skip
    print(f"{len(names)} pictures ({', '.join(dict.fromkeys(names))}) -> {grid.output}")


def check_places(grid: SheetOptions) -> None:
    make_folder(Path(grid.output).parent, "--output")
    if grid.single_dir is not None:
        make_folder(grid.single_dir, "--single-dir")


def read_prefix(grid: SampledSheetOptions) -> Image.Image | None:
    if grid.prefix_image is None:
        return None
    try:
        picture = read_rgb(grid.prefix_image, upright=True)
        check_aspect(picture)
    except ValueError as error:
        raise ValueError(f"--prefix-image: {error}") from error
    return picture


def repeated(values: list, count: int | None) -> list:
    """In turn, `count` of them; once without it."""
    return [values[i % len(values)] for i in range(count or len(values))]


def prompts_of(grid: PromptListOptions) -> list[str]:
    if grid.prompts:
        return grid.prompts
    if grid.prompt_file == "-":
        lines = [line.strip() for line in sys.stdin if line.strip()]
        if not lines:
            raise ValueError("--prompt-file -: nothing came on standard input; give a prompt a line")
        return lines
    if grid.prompt_file:
        return read_prompts(grid.prompt_file, "--prompt-file")
    return read_prompts(SHIPPED_PROMPTS)[:4]


def now(device: torch.device) -> float:
    """The time in seconds when the device has done all that this thread told it to."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # alone: another thread may be capturing a graph
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def default_classes(pipeline: Pipeline) -> list[int]:
    classes = pipeline.gpt.model.config.num_classes
    return list(DEMO_CLASSES) if classes == 1000 else list(range(min(classes, 8)))
