"""Weight files: the one reader of every format in circulation, atomic writing, and a run's training checkpoints.

Read: .pt and .pth with {"model"}, {"module"} (DeepSpeed), {"state_dict"}, {"ema"} or bare states, .safetensors, folders
of the Hub (model.safetensors), and those that FSDP training leaves (consolidated.pth). Written: files that appear whole
or not at all.
"""

import argparse
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from engine.parts import is_part, take

WRAPPERS = ("model", "module", "state_dict")
# Known and not weights: the rotary table that some published states carry along.
DROPPED = ("freqs_cis",)
PREFIXES = ("module.", "_orig_mod.")
HUB_WEIGHTS = "model.safetensors"  # of a folder as it lies on the Hub
SHARDED_META = "meta.json"  # of a folder that a sharded run wrote
# What the format calls the types of numbers.
SAFETENSORS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
               torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
               torch.bool: "BOOL"}  # fmt: skip


@dataclass
class Weights:
    """A state dict with what the file says about it."""

    state: dict[str, Tensor]
    path: Path
    key: str = "bare"  # the entry of the file that it was
    meta: dict = field(default_factory=dict)  # empty for files that others wrote
    trained: dict = field(default_factory=dict)  # "steps" and "epochs" of training, where the file tells


# ---- writing


def write_atomic(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Write aside in the same folder, flush to disk, rename. Whatever stops it, `path` is the old file or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = f"could not write {path}: {error.strerror}; what stood there before is whole"
            raise OSError(error.errno, reason) from error
        if isinstance(error, RuntimeError):  # torch.save reports a full disk so
            reason = f"could not write {path}: {error}; what stood there before is whole (is the disk full?)"
            raise OSError(reason) from error
        raise


def write_text(path: str | Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: str | Path, value) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Its weights as they are written: on the CPU, in the order of their axes."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def save_safetensors(path: str | Path, state: dict[str, Tensor], meta: dict) -> None:
    """Weights and `meta` (JSON in the header) as .safetensors, in the memory of the largest of them.

    safetensors' own save() copies all of them twice, its save_file() cannot be told to write aside and flush. The file:
    the header's length in 8 bytes, the header in JSON, the values without gaps.
    """
    header, end = {}, 0
    for name in sorted(state, key=lambda name: (-state[name].element_size(), name)):  # wide numbers first: all aligned
        value = state[name]
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": SAFETENSORS[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"meta": json.dumps(meta)}, **header}).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            file.write(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())

    write_atomic(path, write)


# ---- reading


def read_file(path: str | Path, flag: str = "checkpoint") -> dict:
    """Everything that a weight file holds, on the CPU; never runs code from it."""
    path = Path(path)
    if path.is_dir():
        if is_sharded_checkpoint(path):
            from engine.sharded_checkpoint import read_whole

            return read_whole(path)
        found = [path / name for name in (HUB_WEIGHTS, "consolidated.pth") if (path / name).is_file()]
        if not found:
            raise ValueError(f"{flag} {path}: a folder without weights; expected {HUB_WEIGHTS} (of the Hub), "
                             "consolidated.pth, or the meta.json of a sharded run in it")  # fmt: skip
        path = found[0]
    if not path.is_file():
        raise ValueError(f"{flag} {path}: there is no such file")
    if is_torchscript(path):
        raise ValueError(f"{flag} {path}: is a TorchScript program; give a file of the weights alone")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                meta = json.loads((file.metadata() or {}).get("meta", "{}"))
                return {"model": {name: file.get_tensor(name) for name in file.keys()}, "meta": meta}  # noqa: SIM118
        # Published training checkpoints carry their flags as an argparse.Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch's text ends with its reason and wraps it in advice to load the file unsafely, which is left out.
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0].partition(". Please")[0]
        if re.search("GLOBAL|reduce|build|class", reason):
            raise ValueError(f"{flag} {path}: holds objects that are not weights, which is not safe to load: "
                             f"{reason}") from error  # fmt: skip
        raise ValueError(f"{flag} {path}: truncated or not a weight file ({reason}); fetch it again") from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # of seeking in a file that is too short
            raise ValueError(f"{flag} {path}: truncated or not a weight file ({error}); fetch it again") from error
        # The disk's or the network's fault: nothing is wrong with what the file holds.
        raise OSError(error.errno, f"{flag} {path}: cannot be read now ({error.strerror or error})") from error
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        raise ValueError(f"{flag} {path}: truncated or not a weight file ({error}); fetch it again") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{flag} {path}: truncated or not a weight file ({error}); fetch it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{flag} {path}: no weights in it, but a {type(data).__name__}; expected a dict of tensors")
    return data


def is_sharded_checkpoint(path: Path) -> bool:
    return (path / SHARDED_META).is_file()


def is_torchscript(path: Path) -> bool:
    """Whether torch.jit.save wrote it: a program, which weights cannot be read from without running it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def read_weights(path: str | Path, prefer: Sequence[str] = (), flag: str = "checkpoint") -> Weights:
    """The weights of any file in circulation. `prefer` names entries (such as "ema") to take before the usual ones."""
    data = read_file(path, flag)
    for key in (*prefer, *WRAPPERS):
        if isinstance(data.get(key), dict) and data[key]:
            meta = data["meta"] if isinstance(data.get("meta"), dict) else {}
            return Weights(clean(data[key]), Path(path), key, meta, trained(data) or meta.get("trained", {}))
    if data and all(isinstance(value, Tensor) for value in data.values()):
        return Weights(clean(data), Path(path))
    raise ValueError(f"{flag} {path}: no weights in it; its entries are {', '.join(map(str, data)) or 'none'}, "
                     f"expected one of {', '.join(WRAPPERS)} or a bare state dict")  # fmt: skip


def read_average(path: str | Path, use_ema: bool, flag: str = "checkpoint") -> Weights:
    """The moving average with `use_ema`, else the weights; ValueError where there is none."""
    weights = read_weights(path, ("ema",) if use_ema else (), flag)
    if use_ema and weights.key != "ema":
        raise ValueError(f"--use-ema: {path} holds no moving average; leave the flag out")
    return weights


def trained(data: dict) -> dict:
    """How long a checkpoint's weights were trained: "steps", and "epochs" if it says of how many samples they were."""
    if not isinstance(data.get("steps"), int):
        return {}
    epochs = epochs_after(data["steps"], data.get("order") or {})
    return {"steps": data["steps"]} | ({} if epochs is None else {"epochs": epochs})


def differing(before: dict, now: dict) -> list[str]:
    """What two checkpoints' metas say differently of the data that they were trained on, as far as both say it."""
    sizes = before.get("image_size"), now.get("image_size")
    found = [] if None in sizes or sizes[0] == sizes[1] else ["image_size was {}, is {}".format(*sizes)]
    for part, keys in (("tokenizer", ("checksum",)), ("encoder", ("checksum", "cleaned"))):
        one, other = before.get(part) or {}, now.get(part) or {}
        found += [f"the {part} was {one.get('name')} ({key} {one[key]}), is {other.get('name')} ({key} {other[key]})"
                  for key in keys if None not in (one.get(key), other.get(key)) and one[key] != other[key]]  # fmt: skip
    return found


def epochs_after(steps: int, order: dict) -> float | None:
    """Passes over the data that so many steps are, whose incomplete last batch is dropped; None where unknown."""
    if not {"samples", "global_batch_size"} <= set(order):
        return None
    return steps / (order["samples"] // order["global_batch_size"])


def clean(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that wrappers leave, and without entries that are no weights."""
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return {name: value for name, value in state.items() if name not in DROPPED}


def load_strict(module: nn.Module, weights: Weights, flag: str, remedy: str = "") -> None:
    """Load exactly; a mismatch is named with the first names and shapes that differ.

    A module on the meta device takes the tensors themselves, in the file's dtype; any other copies them.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in weights.state]
    extra = [name for name in weights.state if name not in own]
    shapes = [f"{name} is {tuple(weights.state[name].shape)}, the model has {tuple(own[name].shape)}"
              for name in own if name in weights.state and weights.state[name].shape != own[name].shape]  # fmt: skip
    if missing or extra or shapes:
        found = [f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
                 for what, names in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
                 if names]  # fmt: skip
        raise ValueError(f"{flag} {weights.path}: not the weights of this model: {'; '.join(found)}. {remedy}".rstrip())
    if any(map(is_part, own.values())):
        for name, value in own.items():
            take(value, weights.state[name])
    else:
        module.load_state_dict(weights.state, assign=any(value.is_meta for value in own.values()))


def checksum(state: dict[str, Tensor]) -> str:
    """A short hash of names, shapes and values, the same for every file format and device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


# ---- a run's checkpoints


class CheckpointFolder:
    """{folder}/{step:07d}.pt, or a folder {step:07d} of a sharded run; the newest `keep` of them and every
    `keep_every`-th step (0: no more than that)."""

    def __init__(self, folder: str | Path, keep: int = 0, keep_every: int = 0):
        self.folder, self.keep, self.keep_every = Path(folder), keep, keep_every

    def path(self, step: int, sharded: bool = False) -> Path:
        return self.folder / (f"{step:07d}" if sharded else f"{step:07d}.pt")

    def paths(self) -> list[Path]:
        """All that are there, by their steps."""
        found = [path for path in self.folder.glob("[0-9]*") if path.stem.isdigit() and path.suffix in ("", ".pt")]
        return sorted(found, key=lambda path: (int(path.stem), path.suffix))

    def steps(self) -> list[int]:
        return [int(path.stem) for path in self.paths()]

    def save(self, step: int, payload: dict) -> Path:
        clear_leftovers(self.folder)
        write_atomic(self.path(step), lambda file: torch.save(payload, file))
        self.prune(step)
        return self.path(step)

    def prune(self, step: int) -> None:
        """Once `step` is written, remove what need not be kept beside it."""
        # Those of later steps are damaged ones that a resumed run passed over; they do not count.
        for old in [path for path in self.paths() if int(path.stem) <= step][: -self.keep] if self.keep else []:
            if not (self.keep_every and int(old.stem) % self.keep_every == 0):
                remove(old)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed runs were writing, sharded or not; each is as large as a checkpoint."""
    for leftover in folder.glob(".*.part"):
        remove(leftover)


def remove(path: Path) -> None:
    """A checkpoint of either kind."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_whole(path: Path) -> None:
    """ValueError, saying what is wrong, where a checkpoint is cut, changed or none."""
    if path.is_dir():
        from engine.sharded_checkpoint import verify

        verify(path)
        return
    read_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if name := archive.testzip():  # by the checksums that torch.save leaves
                raise ValueError(f"checkpoint {path}: damaged (the checksum of {name} is another)")


def newest_checkpoint(folders: Sequence[CheckpointFolder], say: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint of all folders that reads whole; damaged ones are named and passed over.

    None where there are no checkpoints; ValueError where there are, and none reads whole.
    """
    found = sorted(((int(path.stem), path) for folder in folders for path in folder.paths()), reverse=True)
    for _, path in found:
        try:
            check_whole(path)
            return path
        except ValueError as error:
            say(f"{error}; taking the checkpoint before it")
    if found:
        raise ValueError(f"--resume: none of the {len(found)} checkpoints in {found[0][1].parent} reads whole; "
                         "remove them to start again")  # fmt: skip
    return None
