"""A GPT from options and weight files; whatever does not fit is named."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from autoregressive.models.gpt import GPT_CONFIGS, ModelArgs, Transformer
from autoregressive.options import GPTOptions
from engine.checkpoint import Weights, checksum, load_strict, read_weights
from engine.modes import on_meta

PUBLISHED_DOWNSAMPLE = 16  # of the tokenizers whose codes published GPTs draw, which their files do not say


@dataclass
class GPT:
    """A model and its papers."""

    model: Transformer
    name: str
    image_size: int
    downsample: int
    class_names: list[str] | None = None
    tokenizer: dict | None = None  # {"name", "checksum"} of the tokenizer whose codes it was trained on
    encoder: dict | None = None  # {"name", "checksum", ...} of the text encoder whose features it was trained on
    trained: dict = field(default_factory=dict)  # "steps" and "epochs" of its training, where the file tells

    def checksum(self) -> str:
        """Of the weights as they compute, in the model's precision. Reads them all, at about a second per GB; packed
        float16 takes five."""
        return checksum(self.model.state_dict())


def recognise(state: dict[str, Tensor]) -> str | None:
    """The name of the size that a state dict has, None if it is none of ours."""
    layers = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("layers.")), default=-1)
    dim = state["tok_embeddings.weight"].shape[1] if "tok_embeddings.weight" in state else None
    return next((name for name, c in GPT_CONFIGS.items() if (c["n_layer"], c["dim"]) == (layers, dim)), None)


def size_in_name(path: str) -> int | None:
    """The picture size in a published file's name, such as 384 in c2i_L_384.pt."""
    found = re.search(r"_(256|384|512)L?(?:\.|$)", Path(path).name)
    return int(found.group(1)) if found else None


def config_for(options: GPTOptions, weights: Weights, downsample: int) -> tuple[str, ModelArgs, int]:
    """Name, configuration and picture size of the weights; a contradiction between flags and file is a ValueError."""
    meta, state, path = weights.meta, weights.state, options.gpt_ckpt
    if meta and meta.get("kind") != "gpt":
        raise ValueError(f"--gpt-ckpt {path}: holds a {meta.get('kind')}, not a GPT")
    held = meta.get("model") or recognise(state)
    name = (held or "GPT-B") if options.gpt_model == "auto" else options.gpt_model
    if name not in GPT_CONFIGS:
        raise ValueError(f"--gpt-model {name}: unknown; choose auto or one of {', '.join(GPT_CONFIGS)}")
    if held and name != held:
        raise ValueError(f"--gpt-model {name}: {path} holds a {held}; give that name or leave the flag out")
    size = meta.get("image_size") or size_in_name(path)
    if options.image_size != "auto":
        if meta and options.image_size != size:
            raise ValueError(f"--image-size {options.image_size}: {path} was trained on pictures of {size} px; "
                             "leave the flag out")  # fmt: skip
        if size not in (None, options.image_size):
            raise ValueError(f"--image-size {options.image_size}: by its name, {path} was trained on pictures of "
                             f"{size} px; leave the flag out, or rename the file if its name is wrong")  # fmt: skip
        size = options.image_size
    size = size or 384
    if size % downsample:
        raise ValueError(f"--image-size {size}: must be a multiple of the tokenizer's down-sampling, {downsample}")
    if meta:
        known = {field.name for field in fields(ModelArgs)}
        args = ModelArgs(**{k: v for k, v in meta["config"].items() if k in known})
    else:
        kind = "t2i" if "cls_embedding.uncond_embedding" in state else "c2i"
        shape = {"model_type": kind, "block_size": (size // downsample) ** 2}
        if "output.weight" in state:
            shape["vocab_size"] = state["output.weight"].shape[0]
        if "cls_embedding.embedding_table.weight" in state:
            shape["num_classes"] = state["cls_embedding.embedding_table.weight"].shape[0] - 1
        if kind == "t2i":
            shape["cls_token_num"], shape["caption_dim"] = state["cls_embedding.uncond_embedding"].shape
        args = ModelArgs(**{**GPT_CONFIGS[name], **shape})
    if args.block_size != (size // downsample) ** 2:
        raise ValueError(f"--image-size {size}: with a tokenizer of down-sampling {downsample} a picture has "
                         f"{(size // downsample) ** 2} codes, {path} was trained on {args.block_size}")  # fmt: skip
    if options.gpt_type != args.model_type:
        raise ValueError(f"--gpt-type {options.gpt_type}: {path} is a {args.model_type} model; use "
                         f"autoregressive/sample/sample_{args.model_type}.py")  # fmt: skip
    if options.cls_token_num != args.cls_token_num:
        raise ValueError(f"--cls-token-num {options.cls_token_num}: {path} has {args.cls_token_num}")
    if options.num_classes not in ("auto", args.num_classes):
        raise ValueError(f"--num-classes {options.num_classes}: {path} has {args.num_classes}; leave the flag out")
    return name, args, size


def load_gpt(options: GPTOptions, downsample: int, device: torch.device, dtype: torch.dtype | None) -> GPT:
    """The GPT in eval mode on `device`, in `dtype` (None: the file's precision). downsample: pixels per code of the
    tokenizer it is used with."""
    if options.gpt_ckpt is None:
        raise ValueError("--gpt-ckpt: give the GPT's weights; `python3 scripts/download.py c2i_B_384.pt` fetches "
                         "published ones into pretrained_models/")  # fmt: skip
    if options.downsample_size not in ("auto", downsample):
        raise ValueError(f"--downsample-size {options.downsample_size}: the tokenizer's is {downsample}; "
                         "leave the flag out")  # fmt: skip
    weights = read_weights(options.gpt_ckpt, ("ema",) if options.use_ema else (), "--gpt-ckpt")
    loaded = gpt_from(weights, options, downsample, device, dtype)
    for name, value in loaded.model.state_dict().items() if dtype == torch.float16 else ():
        if not value.isfinite().all():
            raise ValueError(f"--gpt-ckpt {options.gpt_ckpt}: {name} holds numbers beyond 65504, where float16 ends; "
                             "give --precision none")  # fmt: skip
    return loaded


def options_for(weights: Weights, **given) -> GPTOptions:
    """Options that take the weights for what they are, class- or text-conditional."""
    none = weights.state.get("cls_embedding.uncond_embedding")  # [P, caption_dim]
    kind = {} if none is None else {"gpt_type": "t2i", "cls_token_num": len(none)}
    return GPTOptions(gpt_ckpt=str(weights.path), **kind, **given)


def downsample_of(weights: Weights) -> int:
    """Pixels per code of the tokenizer that they were trained with."""
    return weights.meta.get("downsample_size") or PUBLISHED_DOWNSAMPLE


def gpt_from(weights: Weights, options: GPTOptions, downsample: int, device: torch.device,
             dtype: torch.dtype | None) -> GPT:  # fmt: skip
    """The GPT of these weights in eval mode. dtype None: in the file's precision."""
    name, args, size = config_for(options, weights, downsample)
    with on_meta():
        model = Transformer(args)
    load_strict(model, weights, "--gpt-ckpt", f"Is it a {name}? Choose another --gpt-model")
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    papers = {name: weights.meta.get(name) for name in ("class_names", "tokenizer", "encoder")}
    return GPT(model, name, size, downsample, **papers, trained=weights.trained)
