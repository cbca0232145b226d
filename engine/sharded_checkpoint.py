"""Checkpoints of sharded runs, written by all processes at once and read by any number of them.

    0005000/meta.json               what trains and where it stands, and of each file its size and CRC-32
    0005000/.metadata, *.distcp     of torch.distributed.checkpoint: weights, moments, moving average, by name

A folder is written aside, as .0005000.part, and renamed when it is whole.
"""

import json
import os
import pickle
import shutil
import warnings
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from engine.checkpoint import SHARDED_META, clear_leftovers, write_json
from engine.distributed import Context

FORMAT = 1
WHOLE = ("model.", "ema.")  # names of what is read to sample from
PART = 2**24  # bytes that are read at once
# What the index of a checkpoint is made of, beside torch's types of numbers.
INDEX = {
    "pathlib": ("Path", "PosixPath"),
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
}  # fmt: skip


class ShardedWriter:
    """Writes checkpoints; all processes make the same calls.

    `save` begins, `finish` ends it. background: in between, training may go on; what is written are copies in main
    memory.
    """

    def __init__(self, context: Context, background: bool = False, minutes: float = 30):
        """minutes: that processes wait for one another."""
        self.context = context
        # A thread beside the training loop must not share its process group.
        self.group = dist.new_group(backend="gloo", timeout=timedelta(minutes=minutes)) if background else None
        self.future: Future | None = None

    def check_shared(self, folder: Path) -> None:
        """ValueError where the processes do not all see what one writes there."""
        name = self.context.on_main(lambda: write_probe(folder))
        if self.context.any(not (folder / name).is_file()):
            raise ValueError(f"--results-dir or --cloud-save-path: {folder} is not the same folder for all processes, "
                             "which write a sharded checkpoint's parts there; give one that all nodes share")
        self.context.on_main((folder / name).unlink)

    def save(self, path: Path, tensors: dict[str, Tensor], papers: dict) -> None:
        """tensors: whole or sharded, by name. papers: what meta.json says of them."""
        assert self.future is None, "the one before has not been finished"
        self.path, self.aside, self.papers = path, path.with_name(f".{path.name}.part"), papers
        self.context.on_main(self._clear)
        writer = dcp.FileSystemWriter(self.aside)
        if self.group is not None:
            self.future = dcp.async_save(tensors, storage_writer=writer, process_group=self.group)
            return
        self.future = Future()
        try:
            self.future.set_result(dcp.save(tensors, storage_writer=writer))
        except (CheckpointException, OSError) as error:
            self.future.set_exception(error)

    def ready(self) -> bool:
        """Whether one is written on all processes that has not been finished."""
        return self.future is not None and not self.context.any(not self.future.done())

    def finish(self) -> Path | None:
        """Wait for what is being written, and give it its name; OSError where it could not be written."""
        if self.future is None:
            return None
        future, self.future = self.future, None
        files, failure = {}, None
        try:
            future.result()
            own = [*self.aside.glob(f"__{self.context.rank}_*"), *[self.aside / ".metadata"] * self.context.is_main]
            files = {path.name: (path.stat().st_size, checksum(path)) for path in own}
        except (CheckpointException, OSError) as error:
            failure = error
        if self.context.any(failure is not None):
            self.context.on_main(lambda: shutil.rmtree(self.aside, ignore_errors=True))
            raise OSError(f"could not write {self.path}: {reason(failure)}; what stood there before is whole")
        described = self.context.gather(files)
        self.context.on_main(lambda: self._publish(described))
        return self.path

    def _clear(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(self.path.parent)
        self.aside.mkdir()

    def _publish(self, described: list[dict]) -> None:
        files = {name: value for each in described for name, value in each.items()}
        papers = json.loads(json.dumps({"format": FORMAT, **self.papers, "files": files}))  # as it will be read
        write_json(self.aside / SHARDED_META, {**papers, "checksum": checksum_of(papers)})
        if self.path.is_dir():  # of a later step, damaged, that the resumed run has come to again
            shutil.rmtree(self.path)
        os.replace(self.aside, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def write_probe(folder: Path) -> str:
    """The name of a new file in the folder, which goes with what killed runs have left."""
    name = f".{uuid4().hex}.part"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return name


def reason(failure: BaseException | None) -> str:
    """Why a checkpoint could not be written, in a line."""
    if failure is None:
        return "another process failed"
    causes = list(failure.failures.values()) if isinstance(failure, CheckpointException) else [failure]
    first = causes[0][0] if isinstance(causes[0], tuple) else causes[0]
    return str(first).strip().partition("\n")[0]


def checksum(path: Path) -> int:
    """CRC-32: it finds what disks and networks do to a file."""
    found = 0
    with open(path, "rb") as file:
        while part := file.read(PART):
            found = zlib.crc32(part, found)
    return found


def checksum_of(papers: dict) -> int:
    """CRC-32 of what a file says, however it is written down."""
    return zlib.crc32(json.dumps(papers, sort_keys=True).encode())


def read_papers(path: Path) -> dict:
    """What meta.json says; ValueError where it cannot be read."""
    try:
        papers = json.loads((path / SHARDED_META).read_text(encoding="utf-8"))
        checked = papers.pop("checksum", None)  # those of an earlier version have none
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path / SHARDED_META}: cannot be read ({error})") from error
    if checked not in (None, checksum_of(papers)):
        raise ValueError(f"{path / SHARDED_META}: damaged (its checksum is another)")
    if papers.get("format") != FORMAT:
        raise ValueError(f"{path / SHARDED_META}: format {papers.get('format')}, this version reads {FORMAT}: update "
                         "llamagen")  # fmt: skip
    return papers


def verify(path: Path) -> None:
    """ValueError, naming the file, where one is missing, cut or changed."""

    def fault(name: str, size: int, expected: int) -> str | None:
        file = path / name
        if not file.is_file():
            return f"{file}: is missing"
        if file.stat().st_size != size:
            return f"{file}: truncated ({file.stat().st_size} bytes of {size})"
        return None if checksum(file) == expected else f"{file}: damaged (its checksum is another)"

    files = read_papers(path)["files"]
    with ThreadPoolExecutor(8) as pool:  # zlib and reading leave the interpreter to others
        faults = list(filter(None, pool.map(lambda item: fault(item[0], *item[1]), files.items())))
    if faults:
        raise ValueError(faults[0])


class Index(pickle.Unpickler):
    """Reads the index of a checkpoint and nothing that could run code."""

    def find_class(self, module: str, name: str):
        number = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not number and name not in INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"names {module}.{name}")
        return super().find_class(module, name)


class Reader(dcp.FileSystemReader):
    def read_metadata(self, *args, **kwargs) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with open(path, "rb") as file:
                metadata = Index(file).load()
        except (OSError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{path}: not the index of a checkpoint ({error})") from error
        metadata.storage_meta = metadata.storage_meta or dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def fill(path: Path, tensors: dict[str, Tensor]) -> None:
    """Each process reads what it holds, without the others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant
        dcp.load(tensors, storage_reader=Reader(path), no_dist=True)


def read_tensors(path: Path, prefixes: str | tuple[str, ...] = "") -> dict[str, Tensor]:
    """All whole tensors whose names begin so."""
    held = Reader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in held.items()
               if name.startswith(prefixes)}  # fmt: skip
    fill(path, tensors)
    return tensors


def read_whole(path: Path) -> dict:
    """Weights and moving average, and the papers, as a file of an unsharded run holds them; no moments."""
    papers, tensors = read_papers(path), read_tensors(path, WHOLE)
    found = {part: {name.removeprefix(f"{part}."): value for name, value in tensors.items()
                    if name.startswith(f"{part}.")} for part in ("model", "ema")}  # fmt: skip
    return {**papers, **{part: state for part, state in found.items() if state}}


def names_in(path: Path) -> list[str]:
    """What tensors it holds."""
    return list(Reader(path).read_metadata().state_dict_metadata)


def load(path: Path, tensors: dict[str, Tensor], flag: str) -> None:
    """Fill tensors, whole or sharded in whatever way, with those of their names. ValueError where one is not there or
    is of another shape."""
    held = Reader(path).read_metadata().state_dict_metadata
    missing = [name for name in tensors if name not in held]
    shapes = [f"{name} is {tuple(held[name].size)}, not {tuple(value.shape)}" for name, value in tensors.items()
              if name in held and held[name].size != value.shape]  # fmt: skip
    if missing or shapes:
        listing = "; ".join([f"{len(missing)} missing ({', '.join(missing[:2])})"] * bool(missing) + shapes[:2])
        raise ValueError(f"{flag} {path}: not a checkpoint of this run: {listing}")
    fill(path, tensors)
