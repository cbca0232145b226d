"""Who samples codes in the benchmark, and what the machine allows at best.

Weights are random: time does not depend on them. Each contender runs in a process of its own, so that its peak memory
is its own, and draws the same number of guided, top-k filtered codes.
"""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import ROOT, shortest
from benchmarks.options import SamplingBenchmark

DOWNSAMPLE = 16  # of VQ-16
HALF = "fp16 matrices"
WAYS = {  # of ours: a runner, whether it compiles, whether its matrices have eight bits
    "cpu": {"eager": ("eager", False, False), "packed": ("packed", False, False),
            "packed, compiled": ("compiled", False, False), HALF: ("packed", False, False),
            f"{HALF}, compiled": ("compiled", False, False), "int8": ("packed", False, True),
            "int8, compiled": ("compiled", False, True)},
    "cuda": {"eager": ("eager", False, False), "captured": ("captured", False, False),
             "captured, compiled": ("captured", True, False)},
}  # fmt: skip
CACHES = {  # settings of transformers, the best of which counts
    "DynamicCache, sdpa": (None, "sdpa"),
    "DynamicCache, eager attention": (None, "eager"),
    "StaticCache, sdpa": ("static", "sdpa"),
}


def precision(options: SamplingBenchmark):
    import torch

    from engine.distributed import pick_precision

    return pick_precision(options.precision, torch.device(options.device))


def dtypes(options: SamplingBenchmark) -> list[str]:
    """What the device multiplies itself: played bf16 took some 200 times as long as float32 on AVX2."""
    import torch

    return ["float32"] + ["bfloat16"] * (precision(replace(options, precision="auto")) == torch.bfloat16)


def configuration(options: SamplingBenchmark, name: str):
    """The GPT's ModelArgs."""
    from autoregressive.models.gpt import GPT_CONFIGS, ModelArgs

    if name not in GPT_CONFIGS:
        raise ValueError(f"--gpt-model {name}: choose one of {', '.join(GPT_CONFIGS)}")
    return ModelArgs(**{**GPT_CONFIGS[name], "block_size": (options.image_size // DOWNSAMPLE) ** 2})


def timed(options: SamplingBenchmark, draw) -> float:
    """Seconds of a call, until the device has done it."""
    import torch

    from autoregressive.sample.grid import now

    device = torch.device(options.device)
    start = now(device)
    draw()
    return now(device) - start


def with_memory(options: SamplingBenchmark, seconds: float) -> dict[str, float]:
    """The figures of a contender; of a GPU's memory, too."""
    import torch

    if options.device != "cuda":
        return {"seconds": seconds}
    return {"seconds": seconds, "device peak": torch.cuda.max_memory_allocated() / 2**20}


def with_kernels(options: SamplingBenchmark, named: dict[str, tuple]) -> dict[str, tuple]:
    """Those that the device has kernels for."""
    import torch

    from autoregressive.models.packed import can_pack

    half = can_pack(torch.device(options.device), torch.float16)
    return {name: given for name, given in named.items() if half or HALF not in name}


def ways_of(options: SamplingBenchmark) -> dict[str, tuple]:
    """WAYS of the device."""
    return with_kernels(options, WAYS[options.device])


def gpt_and_runner(options: SamplingBenchmark, name: str, dtype, way: str, *more: bool):
    """A GPT with random weights in `dtype`, and make_runner's for it."""
    import torch

    from autoregressive.models.gpt import Transformer
    from autoregressive.models.ways import make_runner

    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)  # so that the weights never stand there in float32
        model = Transformer(configuration(options, name)).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)
    torch.nn.init.normal_(model.output.weight, std=0.02)
    return model, make_runner(way, model.to(options.device), *more)


def ours(options: SamplingBenchmark, name: str, pictures: int, way: str) -> dict[str, float]:
    import torch

    from autoregressive.models.draw import Sampling
    from autoregressive.models.generate import decode_codes

    dtype = torch.float16 if HALF in way else precision(options)
    model, runner = gpt_and_runner(options, name, dtype, *ways_of(options)[way])
    sampling = Sampling(cfg_scale=options.cfg_scale, top_k=options.top_k)
    labels = torch.arange(pictures, device=options.device) % model.config.num_classes

    def draw(codes: int) -> None:
        decode_codes(runner, labels, codes, sampling, 0, torch.arange(pictures))

    # A graph is captured for each part of the cache that is filled; elsewhere a few steps are enough to warm up.
    draw(model.config.block_size if options.device == "cuda" else min(16, model.config.block_size))
    return with_memory(options, timed(options, lambda: draw(model.config.block_size)))


def llama(args, attention: str):
    """transformers' model of the shape of our ModelArgs, its weights random."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ValueError("the benchmark compares with transformers: pip install 'llamagen[dev]'") from error
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.dim,
        intermediate_size=args.ffn_width,
        num_hidden_layers=args.n_layer,
        num_attention_heads=args.n_head,
        num_key_value_heads=args.n_kv_head,
        rms_norm_eps=args.norm_eps,
        max_position_embeddings=1 + args.block_size,
        tie_word_embeddings=False,
        attn_implementation=attention,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def transformers_llama(options: SamplingBenchmark, name: str, pictures: int, cache: str | None,
                       attention: str) -> dict[str, float]:  # fmt: skip
    import torch

    args, rows = configuration(options, name), 2 * pictures
    torch.set_default_dtype(precision(options))
    model = llama(args, attention).eval().requires_grad_(False).to(options.device)

    def draw(_, logits: torch.Tensor) -> torch.Tensor:
        """Guidance, top-k and the draw, once for both branches; greedy search then takes the code that was drawn."""
        cond, none = logits.float().chunk(2)
        guided = none + options.cfg_scale * (cond - none)
        if 0 < options.top_k < args.vocab_size:
            guided = guided.masked_fill(guided < guided.topk(options.top_k).values[:, -1:], float("-inf"))
        code = guided.softmax(-1).multinomial(1).repeat(2, 1)
        return torch.zeros_like(logits).scatter_(1, code, 1.0)

    first = torch.zeros(rows, 1, dtype=torch.int64, device=options.device)  # stands for the class token

    def sample(codes: int) -> None:
        out = model.generate(first, attention_mask=torch.ones_like(first), max_new_tokens=codes, do_sample=False,
                             logits_processor=[draw], cache_implementation=cache)  # fmt: skip
        assert out.shape == (rows, 1 + codes) and (out[:pictures, 1:] == out[pictures:, 1:]).all()

    with torch.inference_mode():
        sample(args.block_size if options.device == "cuda" else min(16, args.block_size))
        return with_memory(options, timed(options, lambda: sample(args.block_size)))


def tokenizer(options: SamplingBenchmark, dtype: str) -> dict[str, float]:
    """Seconds to decode and to encode one picture, and how many operations that takes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tokenizer.tokenizer_image.vq_model import VQ_models

    model = VQ_models["VQ-16"]().to(options.device, getattr(torch, dtype), memory_format=torch.channels_last)
    model = model.eval().requires_grad_(False)
    side = options.image_size // DOWNSAMPLE
    codes = torch.randint(model.config.codebook_size, (1, side, side), device=options.device)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as decoding:
            picture = model.decode_code(codes)
        with FlopCounterMode(display=False) as encoding:
            model.encode_codes(picture)
        return {
            "decode": min(timed(options, lambda: model.decode_code(codes)) for _ in range(4)),
            "encode": min(timed(options, lambda: model.encode_codes(picture)) for _ in range(4)),
            "decode operations": decoding.get_total_flops(),
            "encode operations": encoding.get_total_flops(),
        }


def commands(options: SamplingBenchmark) -> dict[str, float]:
    """Seconds of whole commands, start of Python included, with the pair that ships."""
    script = str(ROOT / "autoregressive/sample/sample_c2i.py")

    def run(*flags: str) -> None:
        subprocess.run([sys.executable, script, *flags], check=True, capture_output=True)

    with tempfile.TemporaryDirectory() as folder:
        grid = ["--device", options.device, "--output", str(Path(folder) / "grid.png")]
        return {"help": shortest(lambda: run("--help"), 3), "grid": shortest(lambda: run(*grid), 3)}


def machine(options: SamplingBenchmark) -> dict[str, float]:
    """Seconds a byte of reading memory, and seconds an operation in the GPT's precision and in `dtypes`."""
    import torch

    memory = torch.ones(2**28, device=options.device)  # 1 GiB, many times the cache

    def least(work) -> float:
        work()
        return min(timed(options, work) for _ in range(20))

    def operation(dtype: torch.dtype) -> float:
        """By a product of matrices or by a 3x3 convolution, whichever goes faster."""
        size = 8192 if options.device == "cuda" else 2048
        a, b = (torch.randn(size, size, device=options.device).to(dtype) for _ in range(2))
        picture, kernel = torch.randn(1, 512, 64, 64), torch.randn(512, 512, 3, 3)
        picture, kernel = (x.to(options.device, dtype, memory_format=torch.channels_last) for x in (picture, kernel))
        return min(
            least(lambda: a @ b) / (2 * size**3),
            least(lambda: torch.conv2d(picture, kernel, padding=1)) / (2 * 512**2 * 9 * 64**2),
        )

    return {
        "byte": min(least(memory.sum), least(memory.max)) / (4 * memory.numel()),
        "operation": operation(precision(options)),
        "width": precision(options).itemsize,
        **{f"{dtype} operation": operation(getattr(torch, dtype)) for dtype in dtypes(options)},
    }


