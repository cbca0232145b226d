"""Reading codes for training, from our store and from one file per picture, and extracting them.

Both readers serve the same generated codes, shuffled, one crop of each picture, an epoch long, from the disk cache.
"""

import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.measure import publish, rounds
from benchmarks.options import CodesBenchmark

GRID, VOCABULARY, CLASSES, SIZE = (16, 16), 16384, 1000, 256
TOKENIZER_FILE = "VQ-16.pt"


def write_codes(options: CodesBenchmark, folder: Path) -> None:
    """The same random codes in both layouts."""
    from dataset.codes import CodeStoreWriter

    numbers = np.random.default_rng(0)
    settings = {"grid": GRID, "crops": options.crops, "vocab_size": VOCABULARY, "tokenizer": None, "image_size": SIZE,
                "class_names": [str(i) for i in range(CLASSES)], "source": {"generated": True}}  # fmt: skip
    writer = CodeStoreWriter(folder / "store", settings, options.pictures)
    published = [folder / "published" / f"imagenet{SIZE}_{part}" for part in ("codes", "labels")]
    for part in published:
        part.mkdir(parents=True)
    for shard in writer.missing_shards():
        rows = np.array(writer.shard_rows(shard))
        codes = numbers.integers(VOCABULARY, size=(len(rows), options.crops, GRID[0] * GRID[1]))
        labels = numbers.integers(CLASSES, size=len(rows))
        writer.write_shard(shard, codes, labels, rows)
        for row, picture, label in zip(rows, codes, labels):
            np.save(published[0] / f"{row}.npy", picture[None])
            np.save(published[1] / f"{row}.npy", label[None])
    writer.finish()


def consume(loader, batch_size: int) -> float:
    """Seconds a sample, once the first batch is there: starting the workers does not count."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    return (time.perf_counter() - start) / (count * batch_size)


def ours(options: CodesBenchmark, folder: Path, workers: int) -> dict[str, float]:
    from dataset.codes import Codes, open_codes
    from dataset.loading import loader
    from dataset.order import Order

    store = open_codes(folder / "store")
    order = Order(store.count, options.batch_size, seed=0)
    epochs = 10  # one alone is over in a moment
    batches = loader(Codes(store, seed=0), order, 0, 1, 0, epochs * order.steps_per_epoch, workers)
    return {"sample": consume(batches, options.batch_size)}


class OneFileEach:
    """The published way: both files of a picture are read for each sample, and one crop is kept."""

    def __init__(self, folder: Path, pictures: int):
        self.codes, self.labels = (folder / f"imagenet{SIZE}_{part}" for part in ("codes", "labels"))
        self.pictures = pictures

    def __len__(self) -> int:
        return self.pictures

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        codes = np.load(self.codes / f"{index}.npy")
        crop = torch.randint(codes.shape[1], (1,)).item()
        return torch.from_numpy(codes[0, crop]), torch.from_numpy(np.load(self.labels / f"{index}.npy"))


def one_file_each(options: CodesBenchmark, folder: Path, workers: int) -> dict[str, float]:
    dataset = OneFileEach(folder / "published", options.pictures)
    batches = DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True, num_workers=workers)
    return {"sample": consume(batches, options.batch_size)}


def write_pictures(options: CodesBenchmark, folder: Path) -> None:
    """Smooth random pictures, and a tokenizer with random weights."""
    from PIL import Image

    from tokenizer.tokenizer_image.vq_model import VQ_models

    numbers = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(options.encoded):
        coarse = Image.fromarray(numbers.integers(256, size=(8, 8, 3), dtype=np.uint8))
        coarse.resize((SIZE + 64, SIZE + 32), Image.Resampling.BICUBIC).save(folder / "pictures" / f"{number}.jpg")
    torch.manual_seed(0)
    torch.save({"model": VQ_models["VQ-16"]().state_dict()}, folder / TOKENIZER_FILE)


def extraction(options: CodesBenchmark, folder: Path, precision: str) -> dict[str, float]:
    """Seconds a crop, by the command's own function: opening, cropping, encoding and writing, without loading."""
    from autoregressive.train.extract import extract_codes
    from autoregressive.train.options import ExtractCodes, Extraction
    from dataset.options import DataOptions
    from tokenizer.tokenizer_image.vq_options import TokenizerOptions

    def extract(pictures: Path) -> float:
        with tempfile.TemporaryDirectory() as out:
            settings = Extraction(out, image_size=SIZE, precision=precision, device="cpu", batch_size=8)
            data = DataOptions(str(pictures), dataset="flat", num_workers=0)
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                extract_codes(ExtractCodes(settings, data, TokenizerOptions("VQ-16", str(folder / TOKENIZER_FILE))))
            return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as few:
        one = Path(few) / "0.jpg"
        one.write_bytes((folder / "pictures" / "0.jpg").read_bytes())
        extract(Path(few))  # warm
        return {"sample": (extract(folder / "pictures") - extract(Path(few))) / (2 * (options.encoded - 1))}


def compare(options: CodesBenchmark) -> None:
    """Measure everything in a temporary folder and publish the table."""
    if options.encoded < 2:
        raise ValueError(f"--encoded {options.encoded}: give at least 2 pictures")
    if options.pictures < 2 * options.batch_size:
        raise ValueError(f"--pictures {options.pictures}: must be at least two batches of {options.batch_size}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_codes(options, folder)
        write_pictures(options, folder)
        counts = sorted({0, options.num_workers}, reverse=True)
        readers = {"ours": ours, "one file per picture": one_file_each}
        contenders = {f"{reader}, {workers} workers": (function, options, folder, workers)
                      for workers in counts for reader, function in readers.items()}  # fmt: skip
        best = rounds(contenders, options.repeats)
        encoders = {f"extraction, {each}": (extraction, options, folder, each) for each in ("none", "bf16")}
        best |= rounds(encoders, 1)
    rows = []
    for name in contenders:
        baseline = best[f"one file per picture, {name.rsplit(', ', 1)[1]}"]["sample"]
        sample, peak = best[name]["sample"], best[name]["peak"]
        rows.append([name, f"{1 / sample:,.0f}", f"{baseline / sample:.1f}", f"{peak:.0f}"])
    for each, dtype in (("none", "float32"), ("bf16", "bf16")):
        figures = best[f"extraction, {each}"]
        rows.append([f"extraction by VQ-16, {dtype}", f"{1 / figures['sample']:.2f}", "", f"{figures['peak']:.0f}"])
    notes = [
        f"{options.pictures} generated pictures x {options.crops} crops x {GRID[0] * GRID[1]} codes, batches of "
        f"{options.batch_size}, read from the disk cache, best of {options.repeats} rounds. Peak memory is the main "
        f"process's. Extraction: {options.encoded} generated pictures of {SIZE} px, a crop and its mirror image each, "
        "random weights, loading left out; a sample is a crop.",
    ]
    publish(options.output, "Codes", ["", "samples/s", "times one file per picture", "peak MiB"], rows, notes)
