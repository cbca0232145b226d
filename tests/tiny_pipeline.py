"""Tiny GPTs, their tokenizer and text encoder as files in our own formats, and the options that name them."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from support import filled
from tiny_t5 import write_t5

from autoregressive.models.gpt import Transformer, build_gpt, gpt_config
from autoregressive.options import EncoderOptions, GPTOptions, MachineOptions
from engine.checkpoint import checksum
from tokenizer.tokenizer_image.vq_model import VQ_models
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "grey whale"]
MACHINE = MachineOptions(device="cpu", precision="none")
GPT = build_gpt("GPT-1M", block_size=16)  # pictures of 16 x 16 pixels
TEXT_GPT = build_gpt("GPT-1M", block_size=16, model_type="t2i", cls_token_num=120, caption_dim=32)
ENCODER = EncoderOptions(t5_model_type="tiny", t5_precision="none")
VQ = VQ_models["VQ-4-tiny"]()


def write_files(folder: Path) -> Path:
    """The folder, with gpt.pt and vq.pt in it."""
    write_tokenizer(folder)
    write_gpt(folder / "gpt.pt", GPT, class_names=NAMES)
    return folder


def write_text_files(folder: Path, encoder: dict | None = None) -> Path:
    """The same with a text-conditional gpt.pt, and its encoder t5/tiny."""
    write_tokenizer(folder)
    write_gpt(folder / "gpt.pt", TEXT_GPT, class_names=None, encoder=encoder)
    write_t5(folder / "t5" / "tiny")
    return folder


def write_tokenizer(folder: Path) -> None:
    meta = {"format": 1, "kind": "tokenizer", "model": "VQ-4-tiny", "config": asdict(VQ.config), "image_size": 16,
            "class_names": NAMES}  # fmt: skip
    torch.save({"model": filled(VQ).state_dict(), "meta": meta}, folder / "vq.pt")


def write_gpt(path: Path, gpt: Transformer, **papers) -> None:
    vq = filled(VQ).state_dict()
    tokenizer = checksum({name: value for name, value in vq.items() if name != "quantize.codebook_used"})
    meta = {"format": 1, "kind": "gpt", "model": "GPT-1M", "config": gpt_config(gpt), "image_size": 16,
            "downsample_size": 4, "tokenizer": {"name": "VQ-4-tiny", "checksum": tokenizer}, **papers}  # fmt: skip
    torch.save({"model": filled(gpt).state_dict(), "meta": meta}, path)


def options(files: Path, gpt: dict | None = None, vq: dict | None = None) -> tuple[GPTOptions, TokenizerOptions]:
    return (
        replace(GPTOptions(gpt_ckpt=str(files / "gpt.pt")), **(gpt or {})),
        replace(TokenizerOptions(vq_ckpt=str(files / "vq.pt")), **(vq or {})),
    )
