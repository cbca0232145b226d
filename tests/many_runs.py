"""Runs of the samplers of thousands on tiny models, and a GPU for them that is none."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from tiny_pipeline import MACHINE, options

import autoregressive.sample.many as many_module
from autoregressive.options import SamplingOptions
from autoregressive.sample.options import ManyOptions, SampleC2IMany
from autoregressive.sample.overlap import SecondStream
from autoregressive.sample.pipeline import Pipeline


def many(files: Path, folder: Path, **changed) -> SampleC2IMany:
    """Ten pictures from tiny_pipeline.write_files()'s weights."""
    gpt, vq = options(files)
    numbers = ManyOptions(image_size_eval=16, sample_dir=str(folder), num_fid_samples=10, decode_batch_size=2)
    return SampleC2IMany(gpt, vq, MACHINE, SamplingOptions(cfg_scale=1.5, top_k=0), replace(numbers, **changed))


def contents(folder: Path) -> dict[str, bytes]:
    """The PNGs of a --sample-dir, by name."""
    return {path.name: path.read_bytes() for path in folder.glob("*/*.png")}


class Gpu:
    """torch.cuda's streams on the CPU: codes that are sampled are there when an event that was recorded after them was
    waited for. `launched`: what writes them; `sampled`: the size of each batch."""

    def __init__(self, monkeypatch):
        self.launched, self.sampled, self.own = [], [], Pipeline.codes
        gpu = self

        class FakeEvent:
            def __init__(self, blocking: bool):
                assert blocking, "a thread that spins takes a core from those that write"

            def record(self, stream) -> None:
                self.before = list(gpu.launched)

            def synchronize(self) -> None:
                for write in self.before:
                    write()

        monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(synchronize=lambda: None))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        monkeypatch.setattr(many_module, "second_stream", SecondStream)
        monkeypatch.setattr(Pipeline, "codes", lambda *given, **more: gpu.codes(*given, **more))

    def codes(self, *given, **more) -> torch.Tensor:
        true = self.own(*given, **more)
        late = torch.zeros_like(true)
        self.sampled.append(len(true))
        self.launched.append(lambda: late.copy_(true))
        return late
