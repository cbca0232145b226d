"""The small pair of models that ships with a clone: a class-conditional GPT and its tokenizer, for pictures of 32 px.
Torch-free."""

from dataclasses import replace
from pathlib import Path

from autoregressive.options import GPTOptions
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

SIZE = "GPT-5M"
BUNDLED = Path(__file__).resolve().parents[1] / "pretrained_models/demo"


def or_bundled(gpt: GPTOptions, tokenizer: TokenizerOptions) -> tuple[GPTOptions, TokenizerOptions]:
    """The options as they are; where they name no weights, and no size of a GPT but its own, with those of the pair
    that ships."""
    named = gpt.gpt_ckpt is not None or tokenizer.vq_ckpt is not None
    if named or gpt.gpt_type != "c2i" or gpt.gpt_model not in ("auto", SIZE) or not BUNDLED.is_dir():
        return gpt, tokenizer
    return replace(gpt, gpt_ckpt=str(BUNDLED / "gpt")), replace(tokenizer, vq_ckpt=str(BUNDLED / "tokenizer"))
