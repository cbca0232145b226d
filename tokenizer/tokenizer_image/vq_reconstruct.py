"""Picture files through a tokenizer and back."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch

from dataset.augmentation import center_crop_arr, to_tensor
from dataset.images import read_rgb
from engine.distributed import pick_device
from evaluations.images import grid, save_png, to_bytes
from tokenizer.tokenizer_image.vq_load import load_tokenizer
from tokenizer.tokenizer_image.vq_options import DemoTokenizer


def reconstruct_files(options: DemoTokenizer) -> None:
    """Each picture beside its reconstruction, as PNG; PSNR in dB over 0..255."""
    demo = options.reconstruction
    missing = [path for path in demo.image_path if not Path(path).is_file()]
    if missing:
        raise ValueError(f"--image-path {missing[0]}: there is no such file")
    device = pick_device(demo.device)
    tokenizer = load_tokenizer(options.tokenizer, device, prefer=("ema",))
    size = (tokenizer.image_size or 512) if demo.image_size == "auto" else demo.image_size
    for path, name in zip(demo.image_path, names_for(demo.image_path)):
        original = torch.from_numpy(to_tensor(center_crop_arr(read_rgb(path), size)))[None]
        with torch.inference_mode():
            codes = tokenizer.model.encode_codes(original.to(device))  # [1, h, w]
            pair = to_bytes(torch.cat([original, tokenizer.model.decode_code(codes).cpu()]))
        error = np.square(pair[0].astype(np.float64) - pair[1]).mean()
        psnr = 10 * np.log10(255**2 / max(error, 1e-12))
        out = Path(demo.output_dir) / f"{name}_{demo.suffix}.png"
        save_png(out, grid(pair, per_row=2))
        print(f"{path}: {codes.shape[1]} x {codes.shape[2]} codes, {len(codes.unique())} of them different, "
              f"PSNR {psnr:.2f} dB -> {out}")  # fmt: skip


def names_for(paths: Sequence[str]) -> list[str]:
    """The files' stems; one that is taken gets a number, so that no output overwrites another (on macOS either)."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = Path(path).stem
        name = next(each for i in count(1) if (each := stem if i == 1 else f"{stem}-{i}").lower() not in taken)
        names.append(name)
        taken.add(name.lower())
    return names
