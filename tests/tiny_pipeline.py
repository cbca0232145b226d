"""A tiny GPT and its tokenizer as weight files in our own format, and the options that name them."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from support import filled

from autoregressive.models.gpt import build_gpt, gpt_config
from autoregressive.options import GPTOptions, MachineOptions
from engine.checkpoint import checksum
from tokenizer.tokenizer_image.vq_model import VQ_models
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "grey whale"]
MACHINE = MachineOptions(device="cpu", precision="none")
GPT = build_gpt("GPT-1M", block_size=16)  # pictures of 16 x 16 pixels
VQ = VQ_models["VQ-4-tiny"]()


def write_files(folder: Path) -> Path:
    """The folder, with gpt.pt and vq.pt in it."""
    vq, gpt = filled(VQ).state_dict(), filled(GPT).state_dict()
    papers = {"name": "VQ-4-tiny", "checksum": checksum({k: v for k, v in vq.items() if k != "quantize.codebook_used"})}
    vq_meta = {
        "format": 1,
        "kind": "tokenizer",
        "model": "VQ-4-tiny",
        "config": asdict(VQ.config),
        "image_size": 16,
        "class_names": NAMES,
    }
    gpt_meta = {
        "format": 1,
        "kind": "gpt",
        "model": "GPT-1M",
        "config": gpt_config(GPT),
        "image_size": 16,
        "class_names": NAMES,
        "downsample_size": 4,
        "tokenizer": papers,
    }
    torch.save({"model": vq, "meta": vq_meta}, folder / "vq.pt")
    torch.save({"model": gpt, "meta": gpt_meta}, folder / "gpt.pt")
    return folder


def options(files: Path, gpt: dict | None = None, vq: dict | None = None) -> tuple[GPTOptions, TokenizerOptions]:
    return (
        replace(GPTOptions(gpt_ckpt=str(files / "gpt.pt")), **(gpt or {})),
        replace(TokenizerOptions(vq_ckpt=str(files / "vq.pt")), **(vq or {})),
    )
