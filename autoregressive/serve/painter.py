"""Pictures from vLLM: wishes become its requests, and codes become pixels in batches beside its work.

    async with painter(gpt, tokenizer, engine) as painter:
        picture = await painter.picture(Wish(207, Sampling(cfg_scale=4.0), seed=1))  # uint8 [S, S, 3]

Axes: N codes of a picture, n rows of a caption, S side of a picture in pixels.
"""

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoregressive.models.generate import Sampling
from autoregressive.options import EncoderOptions, GPTOptions
from autoregressive.sample.pipeline import Pipeline, add_encoder
from autoregressive.serve.launch import guidance_of, prepare, start
from autoregressive.serve.options import EngineOptions
from autoregressive.serve.packing import Packing
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


@dataclass(frozen=True)
class Wish:
    """One picture."""

    condition: int | Tensor  # a label, or the features of a caption [n, caption_dim]
    sampling: Sampling
    seed: int = 0


def picture_seed(seed: int, picture: int) -> int:
    """Of picture `picture` of a run: two of its pictures share no noise, nor do runs with neighbouring seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed} {picture}".encode()).digest()[:8], "big") >> 2


class Darkroom:
    """Codes -> pictures, up to `batch` at a time, in a thread of its own."""

    def __init__(self, pipeline: Pipeline, batch: int):
        self.pipeline, self.batch = pipeline, batch
        self.waiting: asyncio.Queue[tuple[list[int], asyncio.Future]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1, "darkroom")
        self.work = asyncio.create_task(self._work())

    async def picture(self, codes: list[int]) -> np.ndarray:
        """uint8 [S, S, 3] of codes [N]; fewer are filled up with code 0."""
        done = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((codes + [0] * (self.pipeline.grid**2 - len(codes)), done))
        return await done

    async def _work(self) -> None:
        while True:
            jobs = [await self.waiting.get()]
            while len(jobs) < self.batch and not self.waiting.empty():
                jobs.append(self.waiting.get_nowait())
            jobs = [job for job in jobs if not job[1].done()]  # whoever has left waits no more
            if not jobs:
                continue
            codes = torch.tensor([codes for codes, _ in jobs])
            try:
                pictures = await asyncio.get_running_loop().run_in_executor(
                    self.thread, self.pipeline.to_pictures, codes, None, self.batch
                )
            except Exception as error:  # goes on to those who wait
                pictures = [error] * len(jobs)
            for (_, done), picture in zip(jobs, pictures):
                if not done.done():
                    done.set_exception(picture) if isinstance(picture, Exception) else done.set_result(picture)

    def close(self) -> None:
        self.work.cancel()
        self.thread.shutdown(wait=False, cancel_futures=True)


class Painter:
    """A GPT in vLLM, and its tokenizer beside it."""

    def __init__(self, pipeline: Pipeline, llm, options: EngineOptions, dtype: torch.dtype):
        self.pipeline, self.llm, self.dtype = pipeline, llm, dtype
        args = pipeline.gpt.model.config
        self.captions = args.model_type == "t2i"
        self.packing = Packing.of(args, args.model_type)
        self.darkroom = Darkroom(pipeline, options.decode_batch_size)
        self.numbers = itertools.count()

    def prompt(self, wish: Wish) -> dict:
        """What vLLM is asked with. ValueError for guidance that cannot be carried."""
        guidance = guidance_of(wish.sampling, self.packing)
        if not self.captions:
            return {"prompt_token_ids": [self.packing.first_id(guidance, wish.condition)]}
        with torch.inference_mode():
            rows = self.pipeline.gpt.model.cls_embedding(wish.condition[None], drop=None)[0]  # [n, D]
        ids = [self.packing.first_id(guidance, len(rows))] + [0] * (len(rows) - 1)
        found = {"prompt_token_ids": ids, "prompt_embeds": rows.to("cpu", self.dtype)}
        if not self.llm.vllm_config.use_v2_model_runner:  # the newer one takes all rows of a prompt with embeddings so
            found["prompt_is_token_ids"] = [False] * len(rows)
        return found

    async def codes(self, wish: Wish) -> AsyncIterator[list[int]]:
        """The codes that are there, time and again, the last time all of them. Leaving the loop ends the request."""
        from autoregressive.serve.vllm_names import RequestOutputKind, SamplingParams

        chosen, found = wish.sampling, []
        params = SamplingParams(
            temperature=0.0 if chosen.greedy else chosen.temperature, top_k=chosen.top_k, top_p=chosen.top_p,
            seed=wish.seed, max_tokens=self.packing.codes, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        stream = self.llm.generate(self.prompt(wish), params, f"picture-{next(self.numbers)}")
        async with contextlib.aclosing(stream):
            async for output in stream:
                found.extend(output.outputs[0].token_ids)
                yield found

    async def all_codes(self, wish: Wish) -> list[int]:
        """The N codes of a picture."""
        found: list[int] = []
        async with contextlib.aclosing(self.codes(wish)) as steps:
            async for codes in steps:
                found = codes
        return found

    async def picture(self, wish: Wish) -> np.ndarray:
        """uint8 [S, S, 3]."""
        return await self.darkroom.picture(await self.all_codes(wish))

    async def alive(self) -> bool:
        """Whether the engine works."""
        from autoregressive.serve.vllm_names import EngineDeadError

        try:
            await self.llm.check_health()
        except EngineDeadError:
            return False
        return True

    def close(self) -> None:
        self.darkroom.close()
        self.llm.shutdown()
        self.llm = None  # its own ending, at the interpreter's end, would stumble


@contextlib.asynccontextmanager
async def painter(
    gpt: GPTOptions,
    tokenizer: TokenizerOptions,
    options: EngineOptions,
    encoder: EncoderOptions | None = None,
    sampling: Sampling | None = None,
    guided: bool = True,
) -> AsyncIterator[Painter]:
    """Convert the weights if that is not done yet, load both models, and start vLLM; prepare() says what the arguments
    are."""
    pipeline, dtype, arguments = prepare(gpt, tokenizer, options, sampling, guided)
    if encoder is not None:
        add_encoder(pipeline, gpt, encoder)
    one = Painter(pipeline, start(arguments), options, dtype)
    try:
        yield one
    finally:
        one.close()
