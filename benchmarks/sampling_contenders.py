"""Who samples codes in the benchmark, what the machine allows at best, and the table of both.

Weights are random: time does not depend on them. Each contender runs in a process of its own, so that its peak memory
is its own, and draws the same number of guided, top-k filtered codes.
"""

import time

from benchmarks.measure import publish, rounds, shortest
from benchmarks.options import SamplingBenchmark

DOWNSAMPLE = 16  # of VQ-16
CACHES = {  # settings of transformers, the best of which counts
    "DynamicCache, sdpa": (None, "sdpa"),
    "DynamicCache, eager attention": (None, "eager"),
    "StaticCache, sdpa": ("static", "sdpa"),
}


def precision(options: SamplingBenchmark):
    import torch

    from engine.distributed import pick_precision

    return pick_precision(options.precision, torch.device("cpu"))


def configuration(options: SamplingBenchmark):
    """The GPT's ModelArgs."""
    from autoregressive.models.gpt import GPT_CONFIGS, ModelArgs

    if options.gpt_model not in GPT_CONFIGS:
        raise ValueError(f"--gpt-model {options.gpt_model}: choose one of {', '.join(GPT_CONFIGS)}")
    return ModelArgs(**{**GPT_CONFIGS[options.gpt_model], "block_size": (options.image_size // DOWNSAMPLE) ** 2})


def ours(options: SamplingBenchmark) -> dict[str, float]:
    import torch

    from autoregressive.models.generate import Sampling, decode_codes
    from autoregressive.models.gpt import Transformer
    from autoregressive.models.runners import make_runner

    torch.set_default_dtype(precision(options))  # so that the weights never stand there in float32
    model = Transformer(configuration(options)).eval().requires_grad_(False)
    torch.nn.init.normal_(model.output.weight, std=0.02)
    runner = make_runner("eager", model)
    sampling = Sampling(cfg_scale=options.cfg_scale, top_k=options.top_k)
    labels = pictures = torch.arange(options.pictures)

    def sample(codes: int) -> float:
        start = time.perf_counter()
        decode_codes(runner, labels, codes, sampling, 0, pictures)
        return time.perf_counter() - start

    sample(min(16, model.config.block_size))
    return {"seconds": sample(model.config.block_size)}


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


def transformers_llama(options: SamplingBenchmark, cache: str | None, attention: str) -> dict[str, float]:
    import torch

    args, rows = configuration(options), 2 * options.pictures
    torch.set_default_dtype(precision(options))
    model = llama(args, attention).eval().requires_grad_(False)

    def draw(_, logits: torch.Tensor) -> torch.Tensor:
        """Guidance, top-k and the draw, once for both branches; greedy search then takes the code that was drawn."""
        cond, none = logits.float().chunk(2)
        guided = none + options.cfg_scale * (cond - none)
        if options.top_k:
            guided = guided.masked_fill(guided < guided.topk(options.top_k).values[:, -1:], float("-inf"))
        code = guided.softmax(-1).multinomial(1).repeat(2, 1)
        return torch.zeros_like(logits).scatter_(1, code, 1.0)

    first = torch.zeros(rows, 1, dtype=torch.int64)  # stands for the class token

    def sample(codes: int) -> float:
        start = time.perf_counter()
        out = model.generate(first, attention_mask=torch.ones_like(first), max_new_tokens=codes, do_sample=False,
                             logits_processor=[draw], cache_implementation=cache)  # fmt: skip
        assert out.shape == (rows, 1 + codes) and (out[: options.pictures, 1:] == out[options.pictures :, 1:]).all()
        return time.perf_counter() - start

    with torch.inference_mode():
        sample(min(16, args.block_size))
        return {"seconds": sample(args.block_size)}


def tokenizer(options: SamplingBenchmark, dtype: str) -> dict[str, float]:
    """Seconds to decode and to encode one picture, and how many operations that takes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tokenizer.tokenizer_image.vq_model import VQ_models

    model = VQ_models["VQ-16"]().to(getattr(torch, dtype), memory_format=torch.channels_last)
    model = model.eval().requires_grad_(False)
    side = options.image_size // DOWNSAMPLE
    codes = torch.randint(model.config.codebook_size, (1, side, side))
    with torch.inference_mode():
        with FlopCounterMode(display=False) as decoding:
            picture = model.decode_code(codes)
        with FlopCounterMode(display=False) as encoding:
            model.encode_codes(picture)
        return {
            "decode": shortest(lambda: model.decode_code(codes), 3),
            "encode": shortest(lambda: model.encode_codes(picture), 3),
            "decode operations": decoding.get_total_flops(),
            "encode operations": encoding.get_total_flops(),
        }


def machine(options: SamplingBenchmark) -> dict[str, float]:
    """Seconds a byte of reading memory, and seconds an operation in both precisions."""
    import torch

    memory = torch.ones(2**28)  # 1 GiB, many times the cache

    def operation(dtype: torch.dtype) -> float:
        """By a product of matrices or by a 3x3 convolution, whichever goes faster."""
        a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        picture, kernel = torch.randn(1, 512, 64, 64), torch.randn(512, 512, 3, 3)
        picture, kernel = (x.to(dtype, memory_format=torch.channels_last) for x in (picture, kernel))
        return min(
            shortest(lambda: a @ b, 20) / (2 * 2048**3),
            shortest(lambda: torch.conv2d(picture, kernel, padding=1), 20) / (2 * 512**2 * 9 * 64**2),
        )

    return {
        "byte": min(shortest(memory.sum, 20), shortest(memory.max, 20)) / (4 * memory.numel()),
        "operation": operation(precision(options)),
        "float32 operation": operation(torch.float32),
        "bfloat16 operation": operation(torch.bfloat16),
        "width": precision(options).itemsize,
    }


def work_of_a_step(options: SamplingBenchmark) -> tuple[float, float]:
    """Numbers read (weights, and the cache filled half way), and operations, of a mean step.

    The embeddings do not count: a step reads a row of them for each picture.
    """
    args, rows = configuration(options), 2 * options.pictures
    key_width = args.n_kv_head * args.head_width
    block = args.dim * (2 * args.dim + 2 * key_width) + 3 * args.dim * args.ffn_width
    weights = args.n_layer * block + args.dim * args.vocab_size
    filled = (1 + args.block_size) / 2
    return (
        weights + 2 * rows * args.n_layer * filled * key_width,
        2 * rows * weights + 4 * rows * args.n_layer * filled * args.dim,
    )


def table(options: SamplingBenchmark, figures: dict[str, dict[str, float]]) -> list[list[str]]:
    steps, limits = configuration(options).block_size, figures["machine"]
    numbers, operations = work_of_a_step(options)
    seconds = {name: figure["seconds"] for name, figure in figures.items() if "seconds" in figure}
    seconds["floor: reading weights and cache once a step"] = steps * numbers * limits["width"] * limits["byte"]
    seconds["floor: matrix products"] = steps * operations * limits["operation"]
    rows = []
    for name, total in seconds.items():
        rows.append([name, f"{options.pictures * steps / total:.0f}", f"{total:.2f}", f"{1000 * total / steps:.1f}"])
        rows[-1].append(f"{figures[name]['peak']:.0f}" if name in figures else "")
    for dtype in ("float32", "bfloat16"):
        vq = figures[f"VQ-16, {dtype}"]
        for way in ("decode", "encode"):
            floor = vq[f"{way} operations"] * limits[f"{dtype} operation"]
            rows.append([f"VQ-16, {dtype}: {way} a picture", "", f"{vq[way]:.2f}", "", f"{vq['peak']:.0f}"])
            rows.append([f"floor: its {vq[f'{way} operations'] / 1e9:.0f} GFLOP", "", f"{floor:.2f}", "", ""])
    return rows


def compare(options: SamplingBenchmark) -> None:
    """Measure everything and publish the table."""
    if options.image_size < DOWNSAMPLE or options.image_size % DOWNSAMPLE:
        raise ValueError(f"--image-size {options.image_size}: must be a multiple of {DOWNSAMPLE}, for VQ-16")
    if options.pictures < 1 or options.repeats < 1:
        raise ValueError("--pictures and --repeats must be at least 1")
    if options.cfg_scale <= 1:
        raise ValueError(f"--cfg-scale {options.cfg_scale}: the benchmark is of guided sampling; give more than 1")
    contenders = {f"ours, eager, {options.gpt_model}": (ours, options)}
    contenders |= {f"transformers, {name}": (transformers_llama, options, *setting) for name, setting in CACHES.items()}
    contenders |= {f"VQ-16, {dtype}": (tokenizer, options, dtype) for dtype in ("float32", "bfloat16")}
    figures = rounds({**contenders, "machine": (machine, options)}, options.repeats)
    limits, steps = figures["machine"], configuration(options).block_size
    notes = [
        f"{options.pictures} pictures of {options.image_size} px ({steps} codes each), guidance {options.cfg_scale}, "
        f"top-k {options.top_k}: {2 * options.pictures} rows a step, numbers of {limits['width']} bytes, random "
        f"weights. Best of {options.repeats} rounds. The tokenizer takes one picture at a time. transformers' generate "
        "guides, filters and draws in a LogitsProcessor, once for both branches.",
        "",
        f"Measured in the same run: {1e-9 / limits['byte']:.1f} GB/s read; operations at "
        f"{1e-9 / limits['bfloat16 operation']:.0f} GFLOP/s in bf16 and "
        f"{1e-9 / limits['float32 operation']:.0f} in float32.",
    ]
    columns = ["", "codes/s", "seconds", "ms a step", "peak MiB"]
    publish(options.output, "Sampling", columns, table(options, figures), notes)
