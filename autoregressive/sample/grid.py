"""A few pictures of chosen classes: a grid, single files, and how long it took without loading."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from autoregressive.sample.options import SampleC2I
from autoregressive.sample.pipeline import Pipeline, load_pipeline, sampling_from
from evaluations.images import make_folder, save_grid, save_png

DEMO_CLASSES = (207, 360, 387, 974, 88, 979, 417, 279)  # golden retriever, otter, ... of the published demo


def sample_grid(options: SampleC2I) -> None:
    grid = options.grid
    make_folder(Path(grid.output).parent, "--output")
    if grid.single_dir is not None:
        make_folder(grid.single_dir, "--single-dir")
    began = time.perf_counter()
    pipeline = load_pipeline(options.gpt, options.tokenizer, options.machine)
    classes = grid.labels or default_classes(pipeline)
    count = grid.num_images or len(classes)
    labels = pipeline.labels([classes[i % len(classes)] for i in range(count)])
    loaded = now(pipeline.device)
    codes = []
    for first in range(0, count, grid.batch_size):
        part = labels[first : first + grid.batch_size]
        pictures = torch.arange(first, first + len(part))
        codes.append(pipeline.codes(part, sampling_from(options.sampling), grid.seed, pictures, progress=True))
    codes = torch.cat(codes)
    sampled = now(pipeline.device)
    images = pipeline.to_pictures(codes)
    decoded = now(pipeline.device)
    print(f"loading {loaded - began:.2f} s; {codes.numel()} codes in {sampled - loaded:.2f} s "
          f"({codes.numel() / (sampled - loaded):.0f} codes/s); decoding {decoded - sampled:.2f} s")  # fmt: skip
    names = [pipeline.class_names[i] for i in labels.tolist()]
    text = {"settings": json.dumps({"classes": names, "seed": grid.seed, **asdict(options.sampling)})}
    save_grid(grid.output, images, grid.per_row, text)
    if grid.single_dir is not None:
        save_singles(Path(grid.single_dir), images, names, grid.seed, options)
    print(f"{count} pictures ({', '.join(dict.fromkeys(names))}) -> {grid.output}")


def now(device: torch.device) -> float:
    """The time in seconds when the device has done all it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def save_singles(folder: Path, images: np.ndarray, names: list[str], seed: int, options: SampleC2I) -> None:
    for i, (image, name) in enumerate(zip(images, names)):
        settings = {"class": name, "seed": seed, "picture": i, **asdict(options.sampling)}
        save_png(folder / f"{i:06d}.png", image, {"settings": json.dumps(settings)})


def default_classes(pipeline: Pipeline) -> list[int]:
    classes = pipeline.gpt.model.config.num_classes
    return list(DEMO_CLASSES) if classes == 1000 else list(range(min(classes, 8)))
