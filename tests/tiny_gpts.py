"""Tiny GPTs of each kind, conditions for them, settings, and what a runner samples of them."""

import pytest
import torch
from support import filled

from autoregressive.models.draw import Sampling
from autoregressive.models.generate import decode_codes
from autoregressive.models.gpt import ModelArgs, Transformer
from autoregressive.models.packed import can_pack

KINDS = {
    "c2i": {},
    "grouped heads": {"n_kv_head": 2},
    "t2i": {"model_type": "t2i", "cls_token_num": 12, "caption_dim": 24},
}
SETTINGS = {
    "plain": Sampling(),
    "guided": Sampling(cfg_scale=2.5, cfg_interval=10, top_k=40, top_p=0.95, temperature=0.9),
    "scheduled": Sampling(cfg_scale=3.0, cfg_schedule="power-cosine"),
    "greedy": Sampling(cfg_scale=2.0, greedy=True),
}
packs, packs_bf16, packs_half = (
    pytest.mark.skipif(not can_pack(torch.device("cpu"), dtype), reason=f"there are no kernels in {dtype} here")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
)


def model_of(kind: str = "c2i", dtype: torch.dtype = torch.float32) -> Transformer:
    args = ModelArgs(dim=64, n_layer=2, n_head=4, vocab_size=96, num_classes=10, block_size=36, **KINDS[kind])
    return filled(Transformer(args)).to(dtype)


def conditions(kind: str, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels, or captions of different lengths and which of their rows hold a token."""
    if kind != "t2i":
        return torch.arange(batch) % 10, None
    captions = torch.randn(batch, 12, 24, generator=torch.Generator().manual_seed(batch))
    return captions, torch.arange(12) >= 12 - torch.arange(2, 2 + batch)[:, None]


def sampled(runner, kind, sampling, batch=3, seed=5, first=0, codes=36, **more):
    cond, valid = conditions(kind, batch)
    return decode_codes(runner, cond, codes, sampling, seed, torch.arange(first, first + batch), valid, **more)
