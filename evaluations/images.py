"""Pictures as bytes, grids, PNG files and the npz that evaluators read.

Axes: N pictures, H height, W width.
"""

import json
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor


def to_bytes(images: Tensor) -> np.ndarray:
    """Float [N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3]: clamp(127.5 x + 128, 0, 255), truncated."""
    scaled = torch.clamp(127.5 * images.float() + 128.0, 0, 255)
    return scaled.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


def grid(images: np.ndarray, per_row: int, padding: int = 2) -> np.ndarray:
    """uint8 [N, H, W, 3] -> one picture, `per_row` side by side, on black."""
    count, height, width, channels = images.shape
    columns = min(per_row, count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + padding) + padding, columns * (width + padding) + padding, channels), np.uint8)
    for i, image in enumerate(images):
        top = padding + i // columns * (height + padding)
        left = padding + i % columns * (width + padding)
        sheet[top : top + height, left : left + width] = image
    return sheet


def make_folder(path: str | Path, flag: str) -> None:
    """Make a folder and write into it, so that one that takes no files is known before the work; `flag` is blamed."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"{flag}: cannot write into the folder {path} ({error.strerror}); choose another") from error


def save_png(path: str | Path, image: np.ndarray, text: dict[str, str] | None = None, scale: int = 1) -> None:
    """Write uint8 [H, W, 3], whole or not at all; `text` goes into the file's metadata, `scale` repeats pixels."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    picture = Image.fromarray(image)
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    aside = path.with_name(f".{path.name}.part")
    try:
        picture.save(aside, "PNG", pnginfo=info)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def save_grid(path: str | Path, images: np.ndarray, per_row: int, text: dict[str, str] | None = None) -> None:
    """A grid as PNG; pictures of up to 64 px are enlarged by whole numbers so that a person can see them."""
    scale = max(1, 128 // images.shape[2]) if images.shape[2] <= 64 else 1
    save_png(path, grid(images, per_row), text, scale)


def write_npz(path: str | Path, images: Iterable[np.ndarray], shape: tuple[int, ...], meta: dict,
              **arrays: np.ndarray) -> None:  # fmt: skip
    """`arr_0` uint8 of `shape` = (N, H, W, 3) from pictures given one by one, without holding them all.

    `meta` (what made the pictures) is stored as JSON in the array `meta`; further small arrays by name.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                count = 0
                for image in images:
                    if image.dtype != np.uint8 or image.shape != shape[1:]:
                        raise ValueError(f"picture {count} is {image.dtype} {image.shape}, expected uint8 {shape[1:]}")
                    file.write(np.ascontiguousarray(image).data)
                    count += 1
                if count != shape[0]:
                    raise ValueError(f"{path}: {count} pictures were given for an array of {shape[0]}")
            for name, array in {"meta": np.array(json.dumps(meta)), **arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
