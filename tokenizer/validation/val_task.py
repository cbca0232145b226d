"""The originals as an npz: rFID's reference."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.build import build_source, center_crops
from dataset.images import fingerprint
from engine.distributed import leave, setup
from evaluations.images import make_folder, write_npz
from tokenizer.validation.val_options import WriteOriginals


def write_originals(options: WriteOriginals) -> Path | None:
    """{sample_dir}/val_{dataset}.npz in the order of the data set; its path.

    Rank 0 writes it and the others go: the reading is what takes time, and --num-workers spreads that.
    """
    context = setup("cpu")
    path = write(options) if context.is_main else None
    leave()
    return path


def write(options: WriteOriginals) -> Path:
    chosen, data, size = options.originals, options.data, options.originals.image_size
    path = Path(chosen.sample_dir) / f"val_{data.dataset}.npz"
    make_folder(path.parent, "--sample-dir")
    source = build_source(data.dataset, data.data_path, data.split)
    meta = {"kind": "originals", "dataset": data.dataset, "split": data.split,
            "source": fingerprint(source, data.data_path), "image_size": size, "seed": chosen.global_seed}  # fmt: skip
    # An array's length stands before it, but how many pictures can be read is known at the end: they wait in a file.
    with tempfile.TemporaryFile(dir=path.parent, buffering=0) as aside:
        count = 0
        with tqdm(total=len(source), unit="picture", disable=None) as bar:
            for batch in center_crops(source, size, range(len(source)), chosen.per_proc_batch_size, data.num_workers,
                                      chosen.max_bad):  # fmt: skip
                put(aside, batch["images"].numpy().tobytes(), path)
                count += len(batch["images"])
                bar.update(len(batch["images"]))
        if not count:
            raise ValueError(f"--data-path {data.data_path}: none of its pictures can be read")
        aside.seek(0)
        write_npz(path, pictures(aside, count, size), (count, size, size, 3), meta)
    print(f"{count} pictures of {size} x {size} px -> {path}")
    return path


def put(file, data: bytes, path: Path) -> None:
    """All of it, to a file without a buffer (which would fail once more, and less clearly, when it is closed)."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror}; it needs twice its size for a while, "
                      "what stood there before is whole") from error  # fmt: skip


def pictures(file, count: int, size: int) -> Iterator[np.ndarray]:
    """uint8 [size, size, 3] each, from the file's bytes."""
    for _ in range(count):
        yield np.frombuffer(file.read(size * size * 3), np.uint8).reshape(size, size, 3)
