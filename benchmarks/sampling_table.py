"""The tables of the benchmark of sampling: speed beside the floors, looking ahead, fewer bits."""

from benchmarks.measure import fitted, markdown, publish, rounds
from benchmarks.options import SamplingBenchmark
from benchmarks.sampling_contenders import (
    CACHES,
    DOWNSAMPLE,
    WAYS,
    commands,
    configuration,
    dtypes,
    machine,
    ours,
    tokenizer,
    transformers_llama,
    ways_of,
)
from benchmarks.sampling_many import COLUMNS as MANY
from benchmarks.sampling_many import SHIPPED, many, whole_path
from benchmarks.sampling_quality import AT_ONCE, DRAWS, WINDOWS, bits_of, decoded_in_bf16, fewer_bits, looking_ahead

STARVED = {"seconds": float("inf")}
COLUMNS = ["", "codes/s", "seconds", "ms a step", "of the floor", "peak MiB"]
AHEAD = ["The pair that ships", "steps", "ms a batch", "codes/s"]
FEWER = ["The pair that ships", "logits' distance", "same codes", "same pictures", "held-out loss", "read right"]
GIVEN = {  # sizes, pixels, pictures at once, pictures of the whole path
    "cpu": (("GPT-B",), 256, (1, 8, 64), 32),
    "cuda": (("GPT-B", "GPT-L", "GPT-XL", "GPT-XXL", "GPT-3B"), 384, (1, 8, 256), 2048),
}  # fmt: skip


def work_of_a_step(options: SamplingBenchmark, name: str, pictures: int) -> tuple[float, float]:
    """Numbers read (weights, and the cache filled half way), and operations, of a mean step.

    The embeddings do not count: a step reads a row of them for each picture. Guidance leaves the head a row each.
    """
    args, rows = configuration(options, name), 2 * pictures
    key_width = args.n_kv_head * args.head_width
    block = args.dim * (2 * args.dim + 2 * key_width) + 3 * args.dim * args.ffn_width
    blocks, head = args.n_layer * block, args.dim * args.vocab_size
    filled = (1 + args.block_size) / 2
    return (
        blocks + head + 2 * rows * args.n_layer * filled * key_width,
        2 * rows * blocks + 2 * pictures * head + 4 * rows * args.n_layer * filled * args.dim,
    )


def contenders_of(options: SamplingBenchmark) -> dict[str, tuple]:
    """By their names in the table, but for the machine's."""
    found = {}
    for name in options.gpt_model:
        for pictures in options.pictures:
            what = f"{name}, {named(pictures)}"
            found |= {f"{what}: ours, {way}": (fitted, STARVED, ours, options, name, pictures, way)
                      for way in ways_of(options)}  # fmt: skip
            given = (fitted, STARVED, transformers_llama, options, name, pictures)
            found |= {f"{what}: transformers, {kind}": (*given, *setting) for kind, setting in CACHES.items()}
    found |= {f"VQ-16, {dtype}": (tokenizer, options, dtype) for dtype in dtypes(options)}
    found["commands"] = (commands, options)
    found |= {f"by the thousand, {name}": (fitted, STARVED, whole_path, options, name)
              for name in (*options.gpt_model, SHIPPED)}  # fmt: skip
    found |= {f"looking at {window} codes, {named(pictures)}": (looking_ahead, options, pictures, window)
              for pictures in AT_ONCE for window in WINDOWS}  # fmt: skip
    found |= {f"in {bits}": (fewer_bits, options, bits) for bits in bits_of(options)}
    found |= {"decoded in bf16": (decoded_in_bf16, options)} if "bfloat16" in dtypes(options) else {}
    return {name: work for name, work in found.items() if not options.only or name in options.only}


def named(pictures: int) -> str:
    return f"{pictures} picture{'s' * (pictures > 1)}"


def speed(options: SamplingBenchmark, figures: dict[str, dict[str, float]]) -> list[list[str]]:
    """The rows of the main table: contenders and, after each group, what the machine allows."""
    limits, rows = figures["machine"], []
    for name in options.gpt_model:
        steps = configuration(options, name).block_size
        for pictures in options.pictures:
            what = f"{name}, {named(pictures)}: "
            numbers, operations = work_of_a_step(options, name, pictures)
            floors = {"reading weights and cache once a step": numbers * limits["width"] * limits["byte"],
                      "matrix products": operations * limits["operation"]}  # fmt: skip
            group = {key: figure for key, figure in figures.items() if key.startswith(what)}
            for key, figure in group.items():
                total, peak = figure["seconds"], figure.get("device peak", figure["peak"])
                if total == float("inf"):
                    rows.append([key, "does not fit", "", "", "", ""])
                    continue
                rows.append([key, f"{pictures * steps / total:.0f}", f"{total:.2f}", f"{1000 * total / steps:.1f}",
                             f"{100 * steps * max(floors.values()) / total:.0f} %", f"{peak:.0f}"])  # fmt: skip
            for floor, each in floors.items() if group else ():
                rows.append([f"{what}floor, {floor}", f"{pictures / each:.0f}", f"{steps * each:.2f}",
                             f"{1000 * each:.1f}", "", ""])  # fmt: skip
    for dtype in dtypes(options):
        vq = figures.get(f"VQ-16, {dtype}")
        for way in ("decode", "encode") if vq else ():
            floor = vq[f"{way} operations"] * limits[f"{dtype} operation"]
            rows.append([f"VQ-16, {dtype}: {way} a picture ({vq[f'{way} operations'] / 1e9:.0f} GFLOP)", "",
                         f"{vq[way]:.2f}", "", f"{100 * floor / vq[way]:.0f} %", f"{vq['peak']:.0f}"])  # fmt: skip
    if "commands" in figures:
        for flags, which in (("--help", "help"), ("with the pair that ships, 8 pictures", "grid")):
            rows.append([f"sample_c2i.py {flags}", "", f"{figures['commands'][which]:.2f}", "", "", ""])
    return rows


def ahead(figures: dict[str, dict[str, float]]) -> list[list[str]]:
    rows = []
    for pictures in AT_ONCE:
        for window in WINDOWS:
            figure = figures.get(f"looking at {window} codes, {named(pictures)}")
            if figure:
                rows.append([f"{named(pictures)}, {window} at a look", f"{figure['steps']:.1f}",
                             f"{1000 * figure['seconds']:.0f}",
                             f"{pictures * figure['codes'] / figure['seconds']:.0f}"])  # fmt: skip
    return rows


def bits(options: SamplingBenchmark, figures: dict[str, dict[str, float]]) -> list[list[str]]:
    rows = []
    for name in bits_of(options):
        figure = figures.get(f"in {name}")
        if figure:
            rows.append([name, f"{100 * figure['distance']:.2f} %", f"{100 * (1 - figure['different']):.2f} %",
                         f"{100 * (1 - figure['whole different']):.1f} %",
                         f"{figure['loss']:.4f}" if "loss" in figure else "",
                         f"{1 - figure['misread']:.3f}" if "misread" in figure else ""])  # fmt: skip
    return rows


def completed(options: SamplingBenchmark) -> SamplingBenchmark:
    """Without auto."""
    from dataclasses import replace

    from engine.distributed import pick_device

    device = pick_device(options.device).type
    if device not in WAYS:
        raise ValueError(f"--device {device}: the benchmark is for cpu and cuda")
    models, size, pictures = (given if own == "auto" else own for own, given in zip(
        (options.gpt_model, options.image_size, options.pictures), GIVEN[device][:3]))  # fmt: skip
    if size < DOWNSAMPLE or size % DOWNSAMPLE:
        raise ValueError(f"--image-size {size}: must be a multiple of {DOWNSAMPLE}, for VQ-16")
    count = GIVEN[device][3] if options.many == "auto" else options.many
    output = f"benchmarks/results/sampling_{device}.md" if options.output == "auto" else options.output
    return replace(options, device=device, gpt_model=models, image_size=size, pictures=pictures, many=count,
                   output=output)  # fmt: skip


def compare(options: SamplingBenchmark) -> None:
    """Measure everything and publish the tables."""
    options = completed(options)
    for name in options.gpt_model:
        configuration(options, name)  # refuses unknown ones before anything is measured
    contenders = contenders_of(options)
    if not contenders:
        raise ValueError(f"--only {' '.join(options.only)}: there are no such contenders")
    if options.device == "cpu" and any("compiled" in name for name in contenders):
        from autoregressive.models.ways import find_compiler

        find_compiler()  # before anything is measured
    figures = rounds({**contenders, "machine": (machine, options)}, options.repeats)
    limits, steps = figures["machine"], (options.image_size // DOWNSAMPLE) ** 2
    notes = [
        f"Pictures of {options.image_size} px ({steps} codes each), guidance {options.cfg_scale}, top-k "
        f"{options.top_k}: twice as many rows a step, numbers of {limits['width']} bytes, random weights. Best of "
        f"{options.repeats} rounds. The floor is the higher one of two: reading, and products; it is not lowered for "
        "matrices in fewer bits. The tokenizer takes one picture at a time. transformers' generate guides, filters and "
        "draws in a LogitsProcessor, once for both branches. Commands are timed with the start of Python.",
        "",
        f"Measured in the same run: {1e-9 / limits['byte']:.1f} GB/s read; operations at "
        + " and ".join(f"{1e-9 / limits[f'{dtype} operation']:.0f} GFLOP/s in {dtype}" for dtype in dtypes(options))
        + ".",
    ]
    for columns, rows, note in (
        (MANY, many(options, figures), "As sample_c2i_ddp.py makes them with --per-proc-batch-size auto and "
         "--decode-precision like --precision, matrices of CPUs without bf16 in float16, not resized; after the first "
         "batch where there are more. Busy is the driver's own figure."),
        (AHEAD, ahead(figures), f"Means of {DRAWS} batches; the pictures are the same but for rounding."),
        (FEWER, bits(options, figures), "Logits and codes are compared with float32's, after the same codes and with "
         "the same noise; pictures as they are sampled. What ships is kept in 16 bits; fp16 matrices have bits to "
         "lose, filled at random, and are compared with their own float32."),
    ):  # fmt: skip
        notes += ["", *markdown(columns, rows), "", note] if rows else []
    if "decoded in bf16" in figures:
        psnr = figures["decoded in bf16"]["psnr"]
        notes += ["", f"Its pictures decoded in bf16 have a PSNR of {psnr:.1f} dB against those in float32."]
    publish(options.output, "Sampling", COLUMNS, speed(options, figures), notes, card(options))


def card(options: SamplingBenchmark) -> str | None:
    import torch

    return torch.cuda.get_device_name() if options.device == "cuda" else None
