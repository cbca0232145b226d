"""A checkpoint of a GPT -> the folder that vLLM loads: model.safetensors, config.json, and unguided/config.json.

The folder lies in a cache, under a name that says which weights it was made of. It is made aside and renamed.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from autoregressive.load import GPT, load_gpt
from autoregressive.models.gpt import gpt_config
from autoregressive.options import GPTOptions
from engine.checkpoint import save_safetensors, state_of, write_json

ARCHITECTURE = "LlamaGenForImageCodes"
MODEL_TYPE = "llamagen"
VERSION = 1  # of the folder's layout
HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # that vLLM's attention has kernels for
UNGUIDED = "unguided"  # the configuration for requests without guidance alone: half of the work


@dataclass
class Converted:
    """A folder for vLLM, and what the GPT was."""

    folder: Path
    gpt: GPT  # its blocks have no weights: they are in the folder


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llamagen/vllm"


def convert(options: GPTOptions, downsample: int, cache: str | Path | None = None) -> Converted:
    """The folder of these weights, which is made where it is not there yet. ValueError where they are no whole GPT, or
    are not what the options say."""
    gpt = load_gpt(options, downsample, torch.device("cpu"), None)
    identity = json.dumps([VERSION, gpt.checksum(), config_of(gpt, streams=2)]).encode()
    folder = Path(cache or cache_folder()) / f"{gpt.name}-{hashlib.sha256(identity).hexdigest()[:16]}"
    if not folder.is_dir():
        write(gpt, folder)
    gpt.model.layers.to("meta")
    return Converted(folder, gpt)


def write(gpt: GPT, folder: Path) -> None:
    """Whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(".*.part"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > 24 * 3600:
            shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        (aside / UNGUIDED).mkdir()
        save_safetensors(aside / "model.safetensors", state_of(gpt.model), {})
        write_json(aside / "config.json", config_of(gpt, streams=2))
        write_json(aside / UNGUIDED / "config.json", config_of(gpt, streams=1))
        aside.chmod(0o755)  # as any other folder: mkdtemp's own are this user's alone
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was as far a moment ago
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def config_of(gpt: GPT, streams: int) -> dict:
    """What config.json holds. streams 2: guidance lives inside a request, whose heads are twice as many."""
    args = gpt.model.config
    wide = next((width for width in HEAD_WIDTHS if width >= args.head_width), args.head_width)
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "dtype": str(gpt.model.output.weight.dtype).removeprefix("torch."),
        # What vLLM reads.
        "hidden_size": args.dim,
        "num_hidden_layers": args.n_layer,
        "num_attention_heads": streams * args.n_head,
        "num_key_value_heads": streams * args.n_kv_head,
        "head_dim": wide,
        "intermediate_size": args.ffn_width,
        "vocab_size": args.vocab_size,
        "max_position_embeddings": args.cls_token_num + args.block_size,
        "mrope_section": [1, 1, 1],  # positions are the model's to say
        "tie_word_embeddings": False,
        # What the model reads beside.
        "cfg_streams": streams,
        "gpt_type": args.model_type,
        "head_width": args.head_width,
        **{name: value for name, value in gpt_config(gpt.model).items()
           if name in ("n_head", "n_kv_head", "norm_eps", "rope_base", "num_classes", "cls_token_num", "block_size")},
    }  # fmt: skip
