"""Pictures as bytes, grids, PNG files, folders of them, and the npz that evaluators read.

Axes: N pictures, H height, W width.
"""

import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from evaluations.archive import READERS, SETTINGS, read_picture, read_settings
from evaluations.files import whole

CHUNK = 64  # pictures that are read at once, for an npz


def to_bytes(images: Tensor) -> np.ndarray:
    """Float [N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3]: clamp(127.5 x + 128, 0, 255), truncated."""
    scaled = torch.clamp(127.5 * images.float() + 128.0, 0, 255)
    pixels = scaled.permute(0, 2, 3, 1).to(torch.uint8)
    if pixels.is_cuda:  # through pinned memory, which another stream's work does not wait for
        pinned = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
        pixels = pinned.copy_(pixels.contiguous(), non_blocking=True)
        torch.cuda.current_stream(images.device).synchronize()
    return pixels.cpu().numpy()


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
    with whole(path) as aside:
        picture.save(aside, "PNG", pnginfo=info)


def save_grid(path: str | Path, images: np.ndarray, per_row: int, text: dict[str, str] | None = None) -> None:
    """A grid as PNG; pictures of up to 64 px are enlarged by whole numbers so that a person can see them."""
    scale = max(1, 128 // images.shape[2]) if images.shape[2] <= 64 else 1
    save_png(path, grid(images, per_row), text, scale)


def picture_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.png"


def claim(folder: Path, meta: dict, notes: Sequence[str] = ()) -> None:
    """Write down in the folder what makes its pictures; a folder that holds others is refused.

    notes: entries of `meta` that decide nothing about the pictures, and may differ.
    """
    path = folder / SETTINGS
    if path.exists():
        held = read_settings(folder)
        different = [name for name in meta if name not in notes and held.get(name) != meta[name]]
        if different:
            raise ValueError(f"--sample-dir {folder.parent}: {folder.name} holds pictures made with other settings "
                             f"({', '.join(f'{n} {held.get(n)}' for n in different)}); "
                             "choose another folder or remove it")  # fmt: skip
    elif any(folder.glob("*.png")) or any(folder.glob("images/*.png")):  # of classes, of prompts
        raise ValueError(f"--sample-dir {folder.parent}: {folder.name} holds pictures of unknown settings; "
                         "remove it first")  # fmt: skip
    else:
        make_folder(folder, "--sample-dir")
        with whole(path) as aside:
            aside.write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class PngWriter:
    """Writes the pictures of a folder by threads, beside the network; the batch before is waited for.

    threads: by default as many as there are cores, from 4 to 16. Pillow compresses beside Python, some hundred pictures
    of 256 px a second in each.
    """

    def __init__(self, folder: Path, threads: int | None = None):
        threads = threads or min(16, max(4, os.cpu_count() or 1))
        self.folder, self.pool, self.pending = folder, ThreadPoolExecutor(threads), []

    def __enter__(self) -> "PngWriter":
        return self

    def write(self, numbers: Iterable[int], images: np.ndarray) -> None:
        """Pictures uint8 [N, H, W, 3]. Raises what writing the batch before raised, such as a full disk."""
        writes = [self.pool.submit(save_png, picture_path(self.folder, number), image)
                  for number, image in zip(numbers, images)]  # fmt: skip
        self.wait()
        self.pending = writes

    def wait(self) -> None:
        for write in self.pending:
            write.result()

    def __exit__(self, kind, error, trace) -> None:
        with self.pool:
            if kind is None:
                self.wait()


def pngs_to_npz(path: Path, folder: Path, numbers: Sequence[int], side: int, meta: dict,
                **arrays: np.ndarray) -> None:  # fmt: skip
    """The npz of a folder's pictures, in the order of `numbers`."""

    def pictures() -> Iterator[np.ndarray]:
        for first in range(0, len(numbers), CHUNK):  # a bound on what waits to be written
            files = [picture_path(folder, number) for number in numbers[first : first + CHUNK]]
            yield from readers.map(read_picture, files)

    with ThreadPoolExecutor(READERS) as readers:
        shown = tqdm(pictures(), "npz", len(numbers), disable=None)
        write_npz(path, shown, (len(numbers), side, side, 3), meta, **arrays)


class Waiting:
    """Pictures of `size` x `size` pixels that wait in a file without a name beside `path`, by number, until it is known
    how many there are: an array's length stands before it. The disk holds them twice for a while, the memory never."""

    def __init__(self, path: Path, size: int):
        self.path, self.shape = path, (size, size, 3)
        self.bytes = size * size * 3
        # Without a buffer, which would fail once more, and less clearly, when the file is closed.
        self.file = tempfile.TemporaryFile(dir=path.parent, buffering=0)  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def put(self, number: int, images: np.ndarray) -> None:
        """uint8 [H, W, 3], or [N, H, W, 3] from that number on."""
        rest = memoryview(images.tobytes())
        try:
            self.file.seek(number * self.bytes)
            while rest:  # a write may take a part only
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, f"could not write {self.path}: {error.strerror}; it needs twice its size for a "
                          "while, what stood there before is whole") from error  # fmt: skip

    def get(self, number: int) -> np.ndarray:
        """uint8 [H, W, 3]."""
        self.file.seek(number * self.bytes)
        return np.frombuffer(self.file.read(self.bytes), np.uint8).reshape(self.shape)


def write_npz(path: str | Path, images: Iterable[np.ndarray], shape: tuple[int, ...], meta: dict,
              **arrays: np.ndarray) -> None:  # fmt: skip
    """`arr_0` uint8 of `shape` = (N, H, W, 3) from pictures given one by one, without holding them all.

    `meta` (what made the pictures) is stored as JSON in the array `meta`; further small arrays by name.
    """
    path = Path(path)
    with whole(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
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
