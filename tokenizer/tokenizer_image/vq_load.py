"""A tokenizer from options and weight files, with all that the file says about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from engine.checkpoint import Weights, checksum, load_strict, read_weights
from engine.modes import on_meta
from tokenizer.tokenizer_image.vq_model import USAGE_WINDOW, VQ_CONFIGS, VQ_models, VQConfig, VQModel
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

USAGE = "quantize.codebook_used"  # statistics that training keeps beside the weights; 0.25 MB that some files leave out


@dataclass
class Tokenizer:
    """A model and its papers."""

    model: VQModel
    name: str
    checksum: str  # its identity, of the weights as the file holds them
    image_size: int | None = None  # it was trained on; None for published weights
    class_names: list[str] | None = None
    trained: dict = field(default_factory=dict)  # "steps" and "epochs" of its training, where the file tells


def without_usage(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != USAGE}


def identity(state: dict[str, Tensor]) -> str:
    """Which tokenizer it is: a checksum of the weights."""
    return checksum(without_usage(state))


def with_usage(weights: Weights) -> Weights:
    """Usage begins anew where the file holds none."""
    return replace(weights, state={USAGE: torch.zeros(USAGE_WINDOW, dtype=torch.int32), **weights.state})


def recognise(state: dict[str, Tensor]) -> str | None:
    """The preset of the same names and shapes, whatever its codebook; None if it is none of ours."""
    if "quantize.embedding.weight" not in state:
        return None
    size, width = state["quantize.embedding.weight"].shape
    shapes = {name: value.shape for name, value in state.items()}
    for name in VQ_CONFIGS:
        with on_meta():
            own = VQ_models[name](codebook_size=size, codebook_embed_dim=width).state_dict()
        if {name: value.shape for name, value in own.items()} == shapes:
            return name
    return None


def config_for(options: TokenizerOptions, weights: Weights | None = None, **overrides) -> tuple[str, VQConfig]:
    """The preset's name and configuration; the file's own where it has one. A contradiction is a ValueError."""
    meta = weights.meta if weights is not None else {}
    if meta and meta.get("kind") != "tokenizer":
        raise ValueError(f"--vq-ckpt {options.vq_ckpt}: holds a {meta.get('kind')}, not a tokenizer")
    name = options.vq_model
    if name == "auto":
        name = meta.get("model") or recognise({} if weights is None else weights.state) or "VQ-16"
    if name not in VQ_CONFIGS:
        raise ValueError(f"--vq-model {name}: unknown; choose auto or one of {', '.join(VQ_CONFIGS)}")
    if meta and name != meta["model"]:
        raise ValueError(f"--vq-model {name}: {options.vq_ckpt} holds {meta['model']}; give that name or leave the "
                         "flag out")  # fmt: skip
    fields = {**VQ_CONFIGS[name], **meta.get("config", {})}
    if weights is not None and not meta and "quantize.embedding.weight" in weights.state:
        fields["codebook_size"], fields["codebook_embed_dim"] = weights.state["quantize.embedding.weight"].shape
    for key in ("codebook_size", "codebook_embed_dim"):
        given = getattr(options, key)
        if given != "auto" and weights is not None and given != fields.get(key, given):
            raise ValueError(f"--{key.replace('_', '-')} {given}: {options.vq_ckpt} has {fields[key]}; "
                             "leave the flag out")  # fmt: skip
        if given != "auto":
            fields[key] = given
    return name, VQConfig(**{**fields, **overrides})


def load_tokenizer(
    options: TokenizerOptions,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    prefer: Sequence[str] = (),
) -> Tokenizer:
    """The tokenizer in eval mode on `device`, in `dtype`, channels-last. `prefer`: entries to take first, as "ema"."""
    if options.vq_ckpt is None:
        raise ValueError("--vq-ckpt: give the tokenizer's weights; `python3 scripts/download.py vq_ds16_c2i.pt` "
                         "fetches the published ones into pretrained_models/")  # fmt: skip
    return tokenizer_from(read_weights(options.vq_ckpt, prefer, "--vq-ckpt"), options, device, dtype)


def tokenizer_from(weights: Weights, options: TokenizerOptions, device: torch.device,
                   dtype: torch.dtype | None) -> Tokenizer:  # fmt: skip
    """The same of weights that have been read. dtype None: in the file's precision."""
    weights = with_usage(weights)
    name, config = config_for(options, weights)
    with on_meta():
        model = VQModel(config)
    load_strict(model, weights, "--vq-ckpt", f"Is it a {name}? Choose another --vq-model")
    model = model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    for part in (model.encoder, model.decoder, model.quant_conv, model.post_quant_conv):  # the codebook stays float32
        part.to(dtype)
    # Rounded weights are the same tokenizer to the GPTs that were trained on its codes, as with --decode-precision.
    known = weights.meta.get("rounded_from") or identity(weights.state)
    papers = {name: weights.meta.get(name) for name in ("image_size", "class_names")}
    return Tokenizer(model, name, known, **papers, trained=weights.trained)


def refuse_other_codes(tokenizer: Tokenizer, store, path: str) -> None:
    """ValueError where `store` (of dataset.codes, at `path`) is known to hold the codes of another tokenizer."""
    known = (store.tokenizer or {}).get("checksum")
    if known not in (None, tokenizer.checksum):
        raise ValueError(f"--vq-ckpt: is another tokenizer than the one that made {path} ({store.tokenizer['name']}, "
                         f"checksum {known}); this is {tokenizer.name}, checksum {tokenizer.checksum}")  # fmt: skip
    codes = tokenizer.model.config.codebook_size
    if store.vocab_size not in (None, codes):
        raise ValueError(f"--vq-ckpt: has {codes} codes, {path} was made with {store.vocab_size}")
