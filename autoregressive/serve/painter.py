"""Pictures from vLLM: wishes become its requests, and codes become pixels in batches beside its work.

    async with painter(gpt, tokenizer, engine) as painter:
        picture = await painter.picture(Wish(207, Sampling(cfg_scale=4.0), seed=1))  # uint8 [S, S, 3]

Axes: N codes of a picture, n rows of a caption, S side of a picture in pixels.
"""

import asyncio
import contextlib
import hashlib
import itertools
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoregressive.models.generate import Sampling
from autoregressive.options import EncoderOptions, GPTOptions
from autoregressive.sample.pipeline import Pipeline, add_encoder, check_pair
from autoregressive.serve.convert import UNGUIDED, config_of, convert
from autoregressive.serve.options import EngineOptions
from autoregressive.serve.packing import Packing
from engine.distributed import pick_device, pick_precision
from tokenizer.tokenizer_image.vq_load import load_tokenizer
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

PLUGIN = "autoregressive.serve.plugin:register"
BLOCK = 128  # positions that vLLM keeps together, on CPUs
MISSING = "serving needs vLLM, in an environment of its own: bash scripts/test_serve.sh makes one (.venv-serve)"
NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


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
    """Convert the weights if that is not done yet, load both models, and start vLLM. sampling: one that will be asked
    for, so that what cannot be served is said at once. guided: whether any picture will be; without, the second branch
    is not computed."""
    check_plugin()
    device = pick_device("auto")
    dtype = pick_precision(options.precision, device)
    vq = load_tokenizer(tokenizer, device, pick_precision(options.decode_precision, device, "--decode-precision"))
    converted = convert(gpt, vq.model.downsample, options.cache_dir)
    check_pair(converted.gpt, vq, gpt, tokenizer)
    args = converted.gpt.model.config
    guidance_of(sampling or Sampling(), Packing.of(args, args.model_type))
    check_shares(args, options.tensor_parallel_size)
    pipeline = Pipeline(converted.gpt, vq, runner=None)
    if encoder is not None:
        add_encoder(pipeline, gpt, encoder)
    llm = start(converted.folder, options, dtype, device, pipeline, guided)
    one = Painter(pipeline, llm, options, dtype)
    del llm
    try:
        yield one
    finally:
        one.close()


def guidance_of(sampling: Sampling, packing: Packing) -> int:
    """As requests carry it. ValueError for what they cannot."""
    if sampling.guided and sampling.cfg_schedule != "constant":
        raise ValueError(f"--cfg-schedule {sampling.cfg_schedule}: served models guide constantly")
    return packing.guidance(sampling.cfg_scale, sampling.cfg_interval)


def check_plugin() -> None:
    """ValueError where vLLM is missing, or would not find our model."""
    if find_spec("vllm") is None:
        raise ValueError(MISSING)
    if not any(entry.value == PLUGIN for entry in entry_points(group="vllm.general_plugins")):
        raise ValueError("vLLM's processes find our model by the installed package: pip install --no-deps -e .")


def cache_bytes(pipeline: Pipeline, options: EngineOptions, dtype: torch.dtype, guided: bool) -> int:
    """What the keys and values of max_num_seqs whole pictures take in each process, in vLLM's blocks."""
    config = config_of(pipeline.gpt, streams=2 if guided else 1)
    blocks = -(-config["max_position_embeddings"] // BLOCK) * options.max_num_seqs + 1
    heads = max(1, config["num_key_value_heads"] // options.tensor_parallel_size)
    return 2 * config["num_hidden_layers"] * heads * config["head_dim"] * dtype.itemsize * blocks * BLOCK


def start(folder: Path, options: EngineOptions, dtype: torch.dtype, device: torch.device, pipeline: Pipeline,
          guided: bool):  # fmt: skip
    """vLLM's engine, in processes of its own."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it has much to say of what does not concern these models
    from autoregressive.serve.vllm_names import AsyncEngineArgs, AsyncLLM

    args = pipeline.gpt.model.config
    memory = {"gpu_memory_utilization": options.gpu_memory_utilization}
    if device.type == "cpu":  # just what is asked for; vLLM would take most of the machine
        if options.tensor_parallel_size * options.data_parallel_size > 1:  # else it wants a NUMA node for each process
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        memory = {"kv_cache_memory_bytes": cache_bytes(pipeline, options, dtype, guided)}
    chosen = AsyncEngineArgs(
        model=str(folder), hf_config_path=None if guided else str(folder / UNGUIDED), dtype=NAMES[dtype],
        skip_tokenizer_init=True, enable_prompt_embeds=args.model_type == "t2i", enable_prefix_caching=False,
        max_model_len=args.cls_token_num + args.block_size, max_num_seqs=options.max_num_seqs,
        tensor_parallel_size=options.tensor_parallel_size, data_parallel_size=options.data_parallel_size,
        disable_log_stats=True, use_tqdm_on_load=False,
        enforce_eager=options.eager or (device.type == "cpu" and not options.compile), **memory,
    )  # fmt: skip
    try:
        return AsyncLLM.from_engine_args(chosen)
    except RuntimeError as error:
        raise ValueError(f"vLLM did not start: its own words stand above ({error}). Where memory is short: a smaller "
                         "--max-num-seqs, more --tensor-parallel-size, another --gpu-memory-utilization; where the "
                         f"converted weights may be damaged: remove {folder}") from error  # fmt: skip


def check_shares(args, ranks: int) -> None:
    """ValueError unless each of so many processes has whole heads."""
    if args.n_head % ranks or (args.n_kv_head % ranks and ranks % args.n_kv_head):
        raise ValueError(f"--tensor-parallel-size {ranks}: must divide the GPT's {args.n_head} heads, and divide or be "
                         f"a multiple of its {args.n_kv_head} key heads")  # fmt: skip
