"""The originals as an npz: rFID's reference."""

from pathlib import Path

from tqdm import tqdm

from dataset.build import build_source, center_crops
from dataset.images import fingerprint
from engine.distributed import leave, setup
from evaluations.images import Waiting, make_folder, write_npz
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
    with Waiting(path, size) as waiting:
        count = 0
        with tqdm(total=len(source), unit="picture", disable=None) as bar:
            for batch in center_crops(source, size, range(len(source)), chosen.per_proc_batch_size, data.num_workers,
                                      chosen.max_bad):  # fmt: skip
                waiting.put(count, batch["images"].numpy())
                count += len(batch["images"])
                bar.update(len(batch["images"]))
        if not count:
            raise ValueError(f"--data-path {data.data_path}: none of its pictures can be read")
        write_npz(path, map(waiting.get, range(count)), (count, size, size, 3), meta)
    print(f"{count} pictures of {size} x {size} px -> {path}")
    return path
