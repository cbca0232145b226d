"""The text encoder of t2i models, from options."""

import torch

from autoregressive.options import EncoderOptions
from engine.distributed import pick_precision
from language.t5 import TextEncoder


def load_encoder(options: EncoderOptions, device: torch.device, clean: bool = True) -> TextEncoder:
    """On the device, in --t5-precision; a folder in --t5-path, else fetched from the Hub. `clean`: captions first."""
    dtype = pick_precision(options.t5_precision, device, "--t5-precision")
    encoder = TextEncoder.load(options.t5_model_type, options.t5_path, device, dtype, options.t5_feature_max_len, clean)
    check_width(options, encoder.width)
    return encoder


def check_width(options: EncoderOptions, width: int) -> None:
    if options.t5_feature_dim not in ("auto", width):
        raise ValueError(f"--t5-feature-dim {options.t5_feature_dim}: features are {width} wide; leave the flag out")
