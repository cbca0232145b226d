"""Weights of any checkpoint, of a GPT or a tokenizer, written in the format that others read."""

from pathlib import Path

import torch

from autoregressive import hub as gpt_hub
from autoregressive.export_options import Export
from autoregressive.load import GPT, downsample_of, gpt_from, options_for, size_in_name
from engine.checkpoint import Weights, read_average, save_safetensors, state_of, write_atomic
from engine.distributed import PRECISIONS
from engine.hub import push
from tokenizer.tokenizer_image import vq_hub
from tokenizer.tokenizer_image.vq_load import Tokenizer, tokenizer_from, without_usage
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


def export(options: Export) -> None:
    output = Path(options.output)
    if output.exists() and not (options.format == "hub" and output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"--output {output}: is there already; give another name or remove it")
    weights = read_average(options.ckpt, options.use_ema, "--ckpt")
    loaded = load(weights, options)
    hub = gpt_hub if isinstance(loaded, GPT) else vq_hub
    state = state_of(loaded.model)
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"--precision {options.precision}: {len(broken)} weights ({broken[0]}, ...) would hold values "
                         "that are infinite or no numbers; fp16 ends at 65504, bf16 and fp32 do not")  # fmt: skip
    if options.format == "hub":
        hub.save_pretrained(loaded, output, options.push_to_hub, options.license)
    elif options.format == "safetensors":
        save_safetensors(output, without_usage(state), hub.meta_of(loaded))
    else:
        content = state if options.format == "bare" else {"model": state, "meta": hub.meta_of(loaded)}
        write_atomic(output, lambda file: torch.save(content, file))
    print(f"{options.ckpt}: {loaded.name}, entry {weights.key} -> {output} ({options.format})")
    if options.push_to_hub:
        print(f"{output} -> {publish(output, options)}")


def load(weights: Weights, options: Export) -> GPT | Tokenizer:
    """What the checkpoint holds, on the CPU; ValueError where it is neither."""
    state, meta, device = weights.state, weights.meta, torch.device("cpu")
    dtype = PRECISIONS.get(options.precision)  # auto: as they are
    kind = meta.get("kind")
    if kind == "tokenizer" or (not meta and "quantize.embedding.weight" in state):
        tokenizer = tokenizer_from(weights, TokenizerOptions(vq_ckpt=options.ckpt), device, dtype)
        if options.round_codebook:
            tokenizer.model.quantize.embedding.to(dtype)
        return tokenizer
    if kind != "gpt" and (meta or "tok_embeddings.weight" not in state):
        raise ValueError(f"--ckpt {options.ckpt}: holds {f'a {kind}' if kind else 'something else'}; give the weights "
                         "of a GPT or of a tokenizer")  # fmt: skip
    if not meta and options.image_size == "auto" and size_in_name(options.ckpt) is None:
        raise ValueError(f"--image-size: {options.ckpt} does not say of what size its pictures are; give it")
    downsample = downsample_of(weights) if options.downsample_size == "auto" else options.downsample_size
    return gpt_from(weights, options_for(weights, image_size=options.image_size), downsample, device, dtype)


def publish(folder: Path, options: Export) -> str:
    try:
        return push(folder, options.push_to_hub, options.private)
    except OSError as error:
        raise OSError(f"--push-to-hub {error}. {folder} is whole: "
                      f"`hf upload {options.push_to_hub} {folder}` sends it again") from error  # fmt: skip
