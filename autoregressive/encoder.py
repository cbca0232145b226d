"""The text encoder of t2i models, from options."""

import torch

from autoregressive.options import EncoderOptions
from engine.distributed import pick_precision
from language.t5 import MAX_LENGTH, TextEncoder


def load_encoder(
    options: EncoderOptions, device: torch.device, most: int, clean: bool = True, max_length: int = MAX_LENGTH
) -> TextEncoder:
    """On the device, in --t5-precision; a folder in --t5-path, else fetched from the Hub.

    most: tokens that the GPT takes; max_length: those that captions are cut to if no flag says, or `most`.
    clean: captions are cleaned first.
    """
    dtype = pick_precision(options.t5_precision, device, "--t5-precision")
    length = min(max_length, most) if options.t5_feature_max_len == "auto" else options.t5_feature_max_len
    if length > most:
        raise ValueError(f"--t5-feature-max-len {length}: the GPT takes {most} tokens of a caption at most "
                         "(--cls-token-num in training)")  # fmt: skip
    encoder = TextEncoder.load(options.t5_model_type, options.t5_path, device, dtype, length, clean)
    check_width(options, encoder.width)
    return encoder


def check_width(options: EncoderOptions, width: int) -> None:
    if options.t5_feature_dim not in ("auto", width):
        raise ValueError(f"--t5-feature-dim {options.t5_feature_dim}: features are {width} wide; leave the flag out")
