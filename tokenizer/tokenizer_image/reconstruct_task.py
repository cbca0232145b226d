"""A data set through a tokenizer and back: PNG files, an npz made from them, and a report on how close they are.

A picture's file is numbered by its row in the data set (one that cannot be read leaves a gap), and batches are the same
whoever works on them, so nothing depends on the number of processes.

Axes: B pictures, H = W the side of one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dataset.build import build_source, center_crops
from dataset.images import ImageSource, fingerprint, name_of, scale
from engine.checkpoint import checksum, write_json, write_text
from engine.distributed import Context, leave, pick_precision, setup
from evaluations.feature_task import load_feature_net
from evaluations.images import PngWriter, claim, make_folder, picture_path, pngs_to_npz, save_grid, to_bytes
from tokenizer.tokenizer_image.perceptual import build_perceptual, lpips_vgg
from tokenizer.tokenizer_image.reconstruct_options import ClosenessOptions, ReconstructionRun, ReconstructTokenizer
from tokenizer.tokenizer_image.reconstruct_report import SHOWN, Found, Networks, Report, Tally, finite
from tokenizer.tokenizer_image.vq_load import Tokenizer, load_tokenizer

PUBLISHED_SIZE = 256
SMALLEST_FOR_VGG = 16  # it halves pictures four times
Net = TypeVar("Net")


def reconstruct(options: ReconstructTokenizer) -> Report | None:
    """Write the PNGs, the npz, the report and two grids; rank 0 returns the report."""
    run, data = options.run, options.data
    context = setup(run.device)
    context.on_main(lambda: make_folder(run.sample_dir, "--sample-dir"))
    dtype = pick_precision(run.precision, context.device)
    tokenizer = load_tokenizer(options.tokenizer, context.device, dtype, prefer=("ema",))
    size, side = sizes(run, tokenizer)
    source = build_source(data.dataset, data.data_path, data.split)
    networks = load_networks(options.closeness, side, context)
    meta = {"kind": "reconstruction", "dataset": data.dataset, "split": data.split,
            "source": fingerprint(source, data.data_path), "image_size": size, "image_size_eval": side,
            "tokenizer": tokenizer.name, "tokenizer_checksum": tokenizer.checksum, "seed": run.global_seed,
            "precision": str(dtype).removeprefix("torch.")}  # fmt: skip
    folder = Path(run.sample_dir) / run_name(options, tokenizer, size, side)

    def prepare() -> None:
        claim(folder, meta)
        for path in folder.glob("*.png"):  # of an earlier run of the same; it may have been able to read other rows
            path.unlink()

    context.on_main(prepare)
    parts = context.gather(reconstruct_share(options, source, tokenizer, networks, (size, side), folder, context))
    report = None

    def conclude() -> None:
        nonlocal report
        found = Found.merged(parts)
        notes = notes_on(found, len(source), run, size, side)
        made_by = {**meta, "vq_ckpt": Path(options.tokenizer.vq_ckpt).name}
        report = Report(found, networks, made_by, notes, str(context.device))
        npz = named(folder, ".npz")
        pngs_to_npz(npz, folder, found.rows.tolist(), side, meta)
        write_report(report, folder, source, (size, side))
        print(f"{len(found.rows)} reconstructions -> {npz}")

    context.on_main(conclude)
    leave()
    return report


def run_name(options: ReconstructTokenizer, tokenizer: Tokenizer, size: int, side: int) -> str:
    """The published name of the folder and of the files beside it."""
    config = tokenizer.model.config
    return (f"{tokenizer.name}-{options.data.dataset}-size-{size}-size-{side}-codebook-size-{config.codebook_size}-"
            f"dim-{config.codebook_embed_dim}-seed-{options.run.global_seed}")  # fmt: skip


def named(folder: Path, ending: str) -> Path:
    """A file beside the folder."""
    return folder.with_name(folder.name + ending)


def sizes(run: ReconstructionRun, tokenizer: Tokenizer) -> tuple[int, int]:
    """The side of what is encoded, and the side of what is compared."""
    size = (tokenizer.image_size or PUBLISHED_SIZE) if run.image_size == "auto" else run.image_size
    if size % tokenizer.model.downsample:
        raise ValueError(f"--image-size {size}: must be a multiple of {tokenizer.name}'s down-sampling, "
                         f"{tokenizer.model.downsample}")  # fmt: skip
    side = min(size, PUBLISHED_SIZE) if run.image_size_eval == "auto" else run.image_size_eval
    if side < 7:
        raise ValueError(f"--image-size {size}: SSIM needs pictures of 7 px at least; give a larger --image-size-eval")
    return size, side


def load_networks(closeness: ClosenessOptions, side: int, context: Context) -> Networks:
    """Those that are asked for. The default ones may be missing, one that is named by a flag may not."""
    found = Networks()
    if closeness.perceptual_net is not None:
        found.perceptual = build_perceptual(1.0, closeness.perceptual_net, context.device)
        found.perceptual_name = Path(closeness.perceptual_net).name
    elif closeness.lpips and side < SMALLEST_FOR_VGG:
        found.notes.append(f"LPIPS is left out: VGG16 needs pictures of {SMALLEST_FOR_VGG} px at least; give a larger "
                           "--image-size-eval, or a classifier by --perceptual-net")  # fmt: skip
    elif closeness.lpips:
        flags = {"flag": "--perceptual-net", "without": "leave LPIPS out: --no-lpips"}
        found.perceptual, why = where_there(lambda: lpips_vgg(**flags).to(context.device), context)
        found.notes += [f"LPIPS is left out: {why}"] if why else []
    if found.perceptual is not None:
        found.perceptual_checksum = checksum(found.perceptual.state_dict())
    if closeness.feature_net is not None:
        found.features = load_feature_net(closeness.feature_net, context.device)
        if found.features.side not in (None, side):
            raise ValueError(f"--feature-net {closeness.feature_net}: reads pictures of {found.features.side} px "
                             f"alone; give --image-size-eval {found.features.side}, or another network")  # fmt: skip
    elif closeness.rfid:
        found.features, why = where_there(lambda: load_feature_net(None, context.device), context)
        found.notes += [f"rFID is left out: {why}"] if why else []
    return found


def where_there(load: Callable[[], Net], context: Context) -> tuple[Net | None, str | None]:
    """What `load` gives on every rank, or None and why. Rank 0 goes first: it fetches what the others then find."""
    net, why = None, None
    for mine in (context.is_main, not context.is_main):
        if mine and why is None:
            try:
                net = load()
            except ValueError as error:
                why = str(error)
        why = context.share(why)
    if context.any(net is None):  # another machine may lack what rank 0's has
        return None, why or "a machine of this run has not got its weights"
    return net, None


def reconstruct_share(options: ReconstructTokenizer, source: ImageSource, tokenizer: Tokenizer, networks: Networks,
                      sizes: tuple[int, int], folder: Path, context: Context) -> Found:  # fmt: skip
    """This rank's batches: every world-th. Writing PNGs goes on beside the network."""
    run, model, (size, side) = options.run, tokenizer.model, sizes
    starts = range(context.rank * run.per_proc_batch_size, len(source), context.world * run.per_proc_batch_size)
    rows = [row for start in starts for row in range(start, min(start + run.per_proc_batch_size, len(source)))]
    tally = Tally(networks, model.config.codebook_size, context.device)
    quiet = None if context.is_main else True
    bar = tqdm(total=len(rows), unit="picture", disable=quiet)
    with PngWriter(folder) as writer, bar, torch.inference_mode():
        for batch in center_crops(source, size, rows, run.per_proc_batch_size, options.data.num_workers, run.max_bad,
                                  len(source)):  # fmt: skip
            images = scale(batch["images"].to(context.device).permute(0, 3, 1, 2))  # [B, 3, H, W]
            codes = model.encode_codes(images.to(memory_format=torch.channels_last))  # [B, h, w]
            pair = [to_bytes(resized(each, side)) for each in (images, model.decode_code(codes).float())]
            numbers = batch["index"].tolist()
            writer.write(numbers, pair[1])
            tally.add(numbers, *pair, codes)
            bar.update(len(numbers))
    return tally.found()


def resized(images: Tensor, side: int) -> Tensor:
    """Float pictures [B, 3, H, W] at another size: bicubic, not anti-aliased, as published."""
    return images if images.shape[-1] == side else F.interpolate(images, size=(side, side), mode="bicubic")


def notes_on(found: Found, total: int, run: ReconstructionRun, size: int, side: int) -> list[str]:
    """What a reader has to know of the pictures; ValueError if too many of them could not be read."""
    bad = total - len(found.rows)
    if bad > run.max_bad * total:  # each rank alone may have had few
        raise ValueError(f"{bad} of {total} pictures cannot be read, more than --max-bad {run.max_bad} allows")
    if bad == total:
        raise ValueError("--data-path: none of its pictures can be read")
    notes = [f"{bad} of {total} pictures cannot be read and are left out"] if bad else []
    if size != side:
        notes.append(f"originals of {size} px are resized to {side} px as their reconstructions are; published rFIDs "
                     f"are against originals cropped at {side} px: give evaluations/c2i/evaluator.py the npz and that "
                     f"of tokenizer/validation/val_ddp.py --image-size {side}")  # fmt: skip
    return notes


def write_report(report: Report, folder: Path, source: ImageSource, sizes: tuple[int, int]) -> None:
    """NAME_results.txt and .json, NAME_worst.png and _best.png: originals above reconstructions, the worst first."""
    text = "\n".join(report.lines()) + "\n"
    order = report.found.worst_to_best()
    shown = {"worst": order[:SHOWN].tolist(), "best": order[-SHOWN:].tolist()}
    listed = {}
    for which, places in shown.items():
        rows = report.found.rows[places].tolist()
        listed[which] = [{"row": row, "file": name_of(source, row),
                          **{name: finite(values[place]) for name, values in report.found.figures.items()}}
                         for row, place in zip(rows, places)]  # fmt: skip
        (crops,) = center_crops(source, sizes[0], rows, len(rows), workers=0, max_bad=0.0)
        originals = to_bytes(resized(scale(crops["images"].permute(0, 3, 1, 2)), sizes[1]))
        reconstructions = np.stack([np.asarray(Image.open(picture_path(folder, row))) for row in rows])
        save_grid(named(folder, f"_{which}.png"), np.concatenate([originals, reconstructions]), len(rows),
                  {"pictures": json.dumps(listed[which])})  # fmt: skip
    write_json(named(folder, "_results.json"), {**report.data(), **listed})
    write_text(named(folder, "_results.txt"), text)
    print(f"{text}-> {named(folder, '_results.txt')} and .json, _worst.png and _best.png")
