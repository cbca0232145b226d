"""A few pictures of chosen classes or prompts through vLLM: a grid, single files, and how long it took."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import torch
from tqdm import tqdm

from autoregressive.bundled import or_bundled
from autoregressive.models.generate import Sampling
from autoregressive.sample.grid import check_places, default_classes, prompts_of, repeated, save_sheet
from autoregressive.sample.pipeline import sampling_from
from autoregressive.serve.launch import lend
from autoregressive.serve.options import ServedC2I, ServedT2I
from autoregressive.serve.painter import Painter, Wish, painter, picture_seed


def sample_classes(options: ServedC2I) -> None:
    """Pictures of classes."""
    check_places(options.grid)

    def wanted(one: Painter) -> tuple[list[str], list[int]]:
        pipeline, grid = one.pipeline, options.grid
        labels = pipeline.labels(repeated(grid.labels or default_classes(pipeline), grid.num_images)).tolist()
        return [pipeline.class_names[label] for label in labels], labels

    pair = or_bundled(options.gpt, options.tokenizer)
    run(options, pair, "class", wanted)


def sample_texts(options: ServedT2I) -> None:
    """Pictures of prompts."""
    check_places(options.grid)
    texts = repeated(prompts_of(options.grid), options.grid.num_images)

    def wanted(one: Painter) -> tuple[list[str], list[torch.Tensor]]:
        return texts, one.rows(texts)

    run(options, (options.gpt, options.tokenizer), "prompt", wanted)


def run(options: ServedC2I | ServedT2I, pair: tuple, what: str,
        wanted: Callable[[Painter], tuple[list[str], list]]) -> None:  # fmt: skip
    """wanted(painter): names of `what` and conditions, one of each a picture."""
    sampling = replace(sampling_from(options.sampling), greedy=options.grid.greedy)
    if options.engine.node_rank:
        lend(*pair, options.engine, sampling.guided)
    else:
        asyncio.run(write_sheet(options, pair, sampling, what, wanted))


async def write_sheet(options, pair: tuple, sampling: Sampling, what: str, wanted: Callable) -> None:
    grid, chosen, began = options.grid, options.sampling, time.perf_counter()
    encoder = getattr(options, "encoder", None)
    async with painter(*pair, options.engine, encoder, sampling, guided=sampling.guided) as one:
        names, conditions = wanted(one)
        loaded = time.perf_counter()
        wishes = [Wish(condition, sampling, picture_seed(grid.seed, i)) for i, condition in enumerate(conditions)]
        codes, pictures = await draw(one, wishes)
        seconds = time.perf_counter() - loaded
        drawn = len(wishes) * one.packing.codes
        print(f"starting {loaded - began:.2f} s; {drawn} codes, decoded beside, in {seconds:.2f} s "
              f"({drawn / seconds:.0f} codes/s)")  # fmt: skip
        settings = {"served": "vllm", "greedy": grid.greedy, **asdict(chosen)}
        save_sheet(grid, one.pipeline, what, names, pictures, torch.tensor(codes), settings)


async def draw(one: Painter, wishes: list[Wish]) -> tuple[list[list[int]], np.ndarray]:
    """The codes of each, and pictures uint8 [B, S, S, 3]."""
    with tqdm(total=len(wishes), unit="picture", disable=None, leave=False) as bar:

        async def single(wish: Wish) -> tuple[list[int], np.ndarray]:
            codes = await one.all_codes(wish)
            picture = await one.developed(codes)
            bar.update()
            return codes, picture

        found = await asyncio.gather(*map(single, wishes))
    return [codes for codes, _ in found], np.stack([picture for _, picture in found])
