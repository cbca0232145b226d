"""Pictures from vLLM: wishes become its requests, and codes become pixels in batches beside its work.

    async with painter(gpt, tokenizer, engine) as painter:
        picture = await painter.picture(Wish(207, Sampling(cfg_scale=4.0), seed=1))  # uint8 [S, S, 3]

Axes: N codes of a picture, n rows of a caption, D width of the GPT, S side of a picture in pixels.
"""

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoregressive.models.generate import Sampling
from autoregressive.options import EncoderOptions, GPTOptions
from autoregressive.sample.pipeline import Pipeline, add_encoder
from autoregressive.serve.launch import prepare, start
from autoregressive.serve.options import EngineOptions
from autoregressive.serve.packing import Packing
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

TEXTS = 16  # that the encoder reads at once


class Unfinished(RuntimeError):
    """vLLM has ended a picture before it was whole, as it does with what is in flight when it is told to leave."""


@dataclass(frozen=True)
class Wish:
    """One picture."""

    condition: int | Tensor  # a label, or the rows of a caption [n, D]
    sampling: Sampling
    seed: int = 0


def picture_seed(seed: int, picture: int) -> int:
    """Of picture `picture` of a run: two of its pictures share no noise, nor do runs with neighbouring seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed} {picture}".encode()).digest()[:8], "big") >> 2


class Batches:
    """Jobs that are done up to `most` at a time, in the order of their coming, in a thread of their own."""

    def __init__(self, name: str, most: int, work: Callable[[list], list]):
        """work: the results of some jobs, in their order."""
        self.most, self.work = most, work
        self.waiting: asyncio.Queue[tuple[object, asyncio.Future]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1, name)
        self.working = asyncio.create_task(self._work())

    async def done(self, job):
        """The job's result, or what was raised over its batch."""
        result = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((job, result))
        return await result

    async def _work(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.most and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [(job, result) for job, result in batch if not result.done()]  # whoever has left waits no more
            if not batch:
                continue
            jobs = [job for job, _ in batch]
            try:
                found = await asyncio.get_running_loop().run_in_executor(self.thread, self.work, jobs)
            except Exception as error:  # goes on to those who wait
                found = [error] * len(batch)
            for (_, result), each in zip(batch, found):
                if not result.done():
                    result.set_exception(each) if isinstance(each, Exception) else result.set_result(each)

    def close(self) -> None:
        self.working.cancel()
        self.thread.shutdown(wait=False, cancel_futures=True)


class Painter:
    """A GPT in vLLM, and its tokenizer (and text encoder) beside it."""

    def __init__(self, pipeline: Pipeline, llm, options: EngineOptions, dtype: torch.dtype):
        self.pipeline, self.llm, self.dtype = pipeline, llm, dtype
        args = pipeline.gpt.model.config
        self.captions = args.model_type == "t2i"
        self.packing = Packing.of(args, args.model_type)
        self.darkroom = Batches("darkroom", options.decode_batch_size, self._developed)
        self.reader = Batches("reader", TEXTS, self.rows)
        self.numbers = itertools.count()

    @torch.inference_mode()
    def rows(self, texts: list[str]) -> list[Tensor]:
        """The conditions of prompts, [n, D] each."""
        return [self.pipeline.gpt.model.cls_embedding(features[None], drop=None)[0].to("cpu", self.dtype)
                for features in self.pipeline.caption_rows(texts)]  # fmt: skip

    def prompt(self, wish: Wish) -> dict:
        """What vLLM is asked with. ValueError for guidance that cannot be carried."""
        guidance = self.packing.carried(wish.sampling)
        if not self.captions:
            return {"prompt_token_ids": [self.packing.first_id(guidance, wish.condition)]}
        rows = wish.condition
        ids = [self.packing.first_id(guidance, len(rows))] + [0] * (len(rows) - 1)
        found = {"prompt_token_ids": ids, "prompt_embeds": rows}
        if not self.llm.vllm_config.use_v2_model_runner:  # the newer one takes all rows of a prompt with embeddings so
            found["prompt_is_token_ids"] = [False] * len(rows)
        return found

    async def codes(self, wish: Wish) -> AsyncIterator[list[int]]:
        """The codes that are there, a row of a picture more each time, at last all N of them. Leaving the loop ends the
        request. Unfinished where vLLM ends it."""
        from autoregressive.serve.vllm_names import RequestOutputKind, SamplingParams

        chosen, found = wish.sampling, []
        params = SamplingParams(
            temperature=0.0 if chosen.greedy else chosen.temperature, top_k=chosen.top_k, top_p=chosen.top_p,
            seed=wish.seed, max_tokens=self.packing.codes, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA, stream_interval=self.pipeline.grid,
        )  # fmt: skip
        stream = self.llm.generate(self.prompt(wish), params, f"picture-{next(self.numbers)}")
        async with contextlib.aclosing(stream):
            async for output in stream:
                found.extend(output.outputs[0].token_ids)
                yield found
        if len(found) != self.packing.codes:
            raise Unfinished(f"a picture was ended after {len(found)} of {self.packing.codes} codes")

    async def all_codes(self, wish: Wish) -> list[int]:
        """The N codes of a picture."""
        found: list[int] = []
        async with contextlib.aclosing(self.codes(wish)) as steps:
            async for codes in steps:
                found = codes
        return found

    async def picture(self, wish: Wish) -> np.ndarray:
        """uint8 [S, S, 3]."""
        return await self.developed(await self.all_codes(wish))

    async def developed(self, codes: list[int]) -> np.ndarray:
        """uint8 [S, S, 3] of a picture's codes; of its first ones, with code 0 for the rest."""
        return await self.darkroom.done(codes + [0] * (self.packing.codes - len(codes)))

    def _developed(self, batch: list[list[int]]) -> np.ndarray:
        return self.pipeline.to_pictures(torch.tensor(batch), batch=len(batch))

    async def alive(self) -> bool:
        """Whether all of it works."""
        from autoregressive.serve.vllm_names import EngineDeadError

        try:
            await self.llm.check_health()
        except EngineDeadError:
            return False
        return not (self.darkroom.working.done() or self.reader.working.done())

    def close(self) -> None:
        self.darkroom.close()
        self.reader.close()
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
