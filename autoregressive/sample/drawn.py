"""Pictures that were drawn, as PNGs that hold how: their settings, and their codes.

Axes: N codes of a picture, B pictures, S side of a picture in pixels.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoregressive.sample.pipeline import Pipeline
from evaluations.images import save_png

GREY = 96  # of what is not sampled yet
CLOSE = 8  # levels of 255 that two devices, or two precisions, may decode the same codes apart


def save_drawn(path: str | Path, picture: np.ndarray, settings: dict, codes: Tensor | np.ndarray,
               pipeline: Pipeline) -> None:  # fmt: skip
    """uint8 [S, S, 3] of codes [N], at the size that they decode to or resized() to another."""
    save_png(path, picture, metadata(settings, codes, pipeline))


def metadata(settings: dict, codes: Tensor | np.ndarray, pipeline: Pipeline) -> dict[str, str]:
    """The text of such a PNG."""
    held = {"tokenizer": pipeline.tokenizer.checksum, "codes": codes.tolist()}
    return {"settings": json.dumps(settings), "codes": json.dumps(held)}


def read_settings(path: str | Path) -> dict:
    """What a PNG of ours says of how it was made; ValueError for any other file."""
    held = _read(path, "settings")
    if not isinstance(held, dict):
        raise ValueError("this file holds no settings: choose a PNG that was made here or by sample_c2i.py")
    return held


def codes_of(path: str | Path, picture: Image.Image, pipeline: Pipeline) -> Tensor:
    """The codes of a picture that was read from this file, int64 [N]: its own, or the tokenizer's, which are near those
    at best."""
    own = own_codes(path, picture, pipeline)
    return pipeline.encode(picture) if own is None else own


def own_codes(path: str | Path, picture: Image.Image, pipeline: Pipeline) -> Tensor | None:
    """The codes that the picture was drawn from, where the file holds them and it still shows them."""
    held = _read(path, "codes")
    if isinstance(held, dict) and held.get("tokenizer") == pipeline.tokenizer.checksum:
        codes, vocabulary = held.get("codes"), pipeline.gpt.model.config.vocab_size
        whole = isinstance(codes, list) and len(codes) == pipeline.grid**2
        if whole and all(type(code) is int and 0 <= code < vocabulary for code in codes):
            codes = torch.tensor(codes, device=pipeline.device)
            if _shows(picture, pipeline.to_pictures(codes[None])):  # otherwise somebody has painted in it
                return codes
    return None


def resized(pictures: np.ndarray, side: int) -> np.ndarray:
    """uint8 [B, S, S, 3] at another side, bicubic."""
    if pictures.shape[1] == side:
        return pictures
    return np.stack([np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC))
                     for each in pictures])  # fmt: skip


def greyed(pictures: np.ndarray, filled: int, grid: int) -> np.ndarray:
    """uint8 [B, S, S, 3] with grey in the place of all but the first `filled` of their grid x grid codes."""
    pictures, side = pictures.copy(), pictures.shape[1] // grid
    row, column = divmod(filled, grid)
    pictures[:, row * side : (row + 1) * side, column * side :] = GREY
    pictures[:, (row + 1) * side :] = GREY
    return pictures


def _read(path: str | Path, name: str):
    """An entry of a PNG's metadata; None where the file has none that can be read."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return json.loads(picture.info[name])  # .text would decode all pixels, for what may stand behind them
    except Exception:  # from KeyError to RecursionError, as the file's author likes
        return None


def _shows(picture: Image.Image, decoded: np.ndarray) -> bool:
    """Whether it is the one of `decoded`, uint8 [1, S, S, 3], at any size."""
    if picture.width != picture.height:
        return False
    wanted = resized(decoded, picture.width)[0].astype(np.int16)
    return bool((np.abs(wanted - np.asarray(picture)) <= CLOSE).all())
