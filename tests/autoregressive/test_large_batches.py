"""As many pictures at once as the free memory takes: none is another one for it, none is lost where it was too much."""

import weakref
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from many_runs import Gpu, contents, many
from support import ROOT, run_script
from tiny_pipeline import MACHINE, options

import autoregressive.sample.batches as batches
import autoregressive.sample.many as many_module
import evaluations.images as images_module
from autoregressive.models.generate import Sampling, decode_codes
from autoregressive.models.gpt import build_gpt
from autoregressive.models.runners import EagerRunner
from autoregressive.sample.many import sample_into, sample_many
from autoregressive.sample.options import BatchOptions
from autoregressive.sample.pipeline import Pipeline, load_pipeline
from benchmarks.live_memory import live_memory
from engine.distributed import Context
from tokenizer.tokenizer_image.vq_model import build_vq

CPU = torch.device("cpu")
ALONE = Context(0, 1, CPU)
AUTO = BatchOptions(per_proc_batch_size="auto")
GUIDED, PLAIN = Sampling(cfg_scale=1.5), Sampling()


@pytest.fixture(scope="module")
def pipeline(files) -> Pipeline:
    return load_pipeline(*options(files), MACHINE)


# ---- how many at once


@pytest.mark.parametrize("sampling", [GUIDED, PLAIN], ids=["guided", "plain"])
def test_auto_takes_what_fits_into_the_free_memory_and_leaves_a_share(sampling, pipeline, monkeypatch):
    each, decoding = batches.bytes_a_picture(pipeline, sampling), batches.bytes_to_decode(pipeline, 16)
    most = 256 // batches.rows_of(sampling)
    for free in (0, decoding, 30 * each, 100 * each, 10**13):
        monkeypatch.setattr(batches, "free_memory", lambda device, free=free: free)
        batch = batches.batch_size(pipeline, AUTO, sampling, 10**6, ALONE)
        assert batch <= most, "more rows gain nothing"
        assert batch == 1 or batch * each + decoding <= 0.9 * free
        beyond = batches.evenly(10**6, batch) + 1  # as many batches could not have held a picture more each
        assert batch >= most - 1 or beyond * each + decoding > 0.9 * free


def test_processes_part_the_memory_that_they_share(pipeline, monkeypatch):
    monkeypatch.setattr(batches, "free_memory", lambda device: 60 * batches.bytes_a_picture(pipeline, GUIDED))
    monkeypatch.setattr(Context, "barrier", lambda self: None)
    monkeypatch.setattr(Context, "share", lambda self, value: value)
    here, found = batches.place_of(CPU), []
    for places in ([here, "another"], [here, here, "another", here]):
        monkeypatch.setattr(Context, "gather", lambda self, value, places=places: places)
        found.append(batches.batch_size(pipeline, AUTO, GUIDED, 10**6, Context(0, len(places), CPU)))
    assert found[0] > 2 * found[1] > 0


def test_what_a_picture_is_said_to_take_is_what_it_takes():
    """Traced on tensors without memory. Not below it, and not far above."""

    def second_step(i: int, codes: torch.Tensor) -> None:
        if i:
            raise StopIteration  # the others take as much

    counts, taken = (2, 12), []
    for count in counts:
        with live_memory() as live, suppress(StopIteration):
            gpt = build_gpt("GPT-B").eval().requires_grad_(False)
            live.peak = before = live.now
            decode_codes(EagerRunner(gpt), torch.zeros(count, dtype=torch.int64), 256, GUIDED, 0, torch.arange(count),
                         on_code=second_step)  # fmt: skip
        taken.append(live.peak - before)
    each = (taken[1] - taken[0]) / (counts[1] - counts[0])
    loaded = SimpleNamespace(gpt=SimpleNamespace(model=gpt), window=1, device=torch.device("cpu"),
                             runner=EagerRunner(gpt))  # fmt: skip
    said = batches.bytes_a_picture(loaded, GUIDED)
    assert each <= said < 1.3 * each


@pytest.mark.parametrize("multipliers, side", [((1, 1, 2, 2, 4), 16), ((1, 2, 2, 4), 32), ((1, 4), 32)])
def test_what_decoding_is_said_to_take_is_what_it_takes(multipliers, side):
    """The same; convolutions take more than is seen."""
    with live_memory() as live, torch.inference_mode():
        vq = build_vq("VQ-16", channel_multipliers=multipliers).eval().requires_grad_(False)
        live.peak = before = live.now
        vq.decode_code(torch.zeros(2, side, side, dtype=torch.int64))
    loaded = SimpleNamespace(tokenizer=SimpleNamespace(model=vq), grid=side, offload=False)
    assert live.peak - before <= batches.bytes_to_decode(loaded, 2) < 3 * (live.peak - before)


def test_an_encoder_that_comes_back_to_the_gpu_needs_its_place(pipeline):
    encoder = SimpleNamespace(model=torch.nn.Linear(1000, 10))
    away, there = (batches.bytes_to_decode(replace(pipeline, encoder=encoder, offload=offload), 1)
                   for offload in (True, False))  # fmt: skip
    assert away - there == 4 * 10_010


def test_free_memory_is_what_the_system_or_the_gpu_says(monkeypatch):
    with open("/proc/meminfo") as file:
        whole = int(file.readline().split()[1]) * 1024
    assert 0 < batches.free_memory(CPU) < whole
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    assert 0 < batches.free_memory(CPU) < whole
    monkeypatch.setattr(batches.os, "sysconf_names", {"SC_PHYS_PAGES": 1})
    assert batches.free_memory(CPU) == pytest.approx(whole / 2, rel=0.1), "where it does not know: half of all"
    monkeypatch.setattr(batches.os, "sysconf_names", {})
    with pytest.raises(ValueError, match="--per-proc-batch-size auto: this system does not say .*give a number"):
        batches.free_memory(CPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 40)
    assert batches.free_memory(torch.device("cuda", 0)) == 750, "what torch holds without using it is free, too"
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1000)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 300)
    assert batches.free_memory(torch.device("mps")) == 700


@pytest.mark.parametrize("count, most, batch", [(10, 3, 3), (1000, 300, 250), (513, 512, 257), (7, 32, 7), (0, 9, 9)])
def test_batches_are_as_few_as_can_be_and_alike(count, most, batch):
    assert batches.evenly(count, most) == batch
    if count:
        assert -(-count // batch) == -(-count // most)


@pytest.mark.parametrize("value", [0, -3])
def test_a_batch_of_none_is_refused(value):
    with pytest.raises(ValueError, match=f"--per-proc-batch-size {value}: must be at least 1"):
        BatchOptions(per_proc_batch_size=value)


def test_auto_changes_no_picture_and_the_main_process_says_what_it_chose(files, wanted, tmp_path):
    flags = ["--vq-ckpt", files / "vq.pt", "--gpt-ckpt", files / "gpt.pt", "--image-size-eval", "16", "--sample-dir",
             tmp_path, "--per-proc-batch-size", "auto", "--num-fid-samples", "10", "--precision", "none", "--device",
             "cpu"]  # fmt: skip
    said = run_script(ROOT / "autoregressive/sample/sample_c2i_ddp.py", *flags, ranks=2).stdout
    assert contents(tmp_path) == wanted
    assert said.count("--per-proc-batch-size auto: 5 pictures at once") == 1
    assert said.count("10 pictures, ") == said.count(" pictures/s") == 1
    sample_many(many(files, tmp_path, per_proc_batch_size=3))  # the folder does not say by how many it was made


# ---- where memory runs out after all


def small_gpu(monkeypatch, method: str, pictures: int, after: int = 0) -> None:
    """`method` of a pipeline has memory for so many pictures alone, once it was called `after` times."""
    own, calls = getattr(Pipeline, method), Counter()

    def limited(self, first, *more, **named):
        calls[method] += 1
        if calls[method] > after and len(first) > pictures:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return own(self, first, *more, **named)

    monkeypatch.setattr(Pipeline, method, limited)


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "in turn"])
@pytest.mark.parametrize("method, most, after", [("codes", 3, 0), ("codes", 1, 1), ("to_pictures", 2, 1)])
def test_auto_halves_a_batch_that_does_not_fit_and_writes_each_picture_once(
    method, most, after, beside, files, wanted, tmp_path, monkeypatch, capsys
):
    written, save = [], images_module.save_png
    monkeypatch.setattr(images_module, "save_png", lambda path, *more: written.append(path.name) or save(path, *more))
    monkeypatch.setattr(many_module, "batch_size", lambda *given: 4)
    small_gpu(monkeypatch, method, most, after)
    if beside:
        Gpu(monkeypatch)
    sample_many(many(files, tmp_path, per_proc_batch_size="auto"))
    assert contents(tmp_path) == wanted and sorted(written) == sorted(wanted)
    halved = [line for line in capsys.readouterr().out.splitlines() if "out of memory; goes on with" in line]
    assert len(halved) == (2 if most == 1 else 1)


def test_what_was_kept_for_another_batch_is_let_go_before_memory_is_looked_at_or_taken_again(files, tmp_path,
                                                                                             monkeypatch):  # fmt: skip
    """A runner may keep a batch's caches and graphs."""
    own, kept, looked = Pipeline.codes, [], []

    def codes(self, cond, *more):
        assert len(cond) == 5 or kept[1]() is None
        kept.append(weakref.ref(self.runner))
        if len(cond) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, cond, *more)

    def free_memory(device: torch.device) -> int:
        looked.append([each() for each in kept])
        return 10**9

    monkeypatch.setattr(Pipeline, "codes", codes)
    monkeypatch.setattr(batches, "free_memory", free_memory)
    pipeline = load_pipeline(*options(files), MACHINE)
    kept.append(weakref.ref(pipeline.runner))
    sample_into(pipeline, many(files, tmp_path, per_proc_batch_size="auto", num_fid_samples=5), ALONE)
    assert looked == [[None]] and len(kept) > 3


@pytest.mark.parametrize("asked, fits, words", [
    (4, 2, "4: does not fit into this GPU's memory; give a smaller number or auto"),
    ("auto", 0, "auto: not even one picture fits into this GPU's memory"),
])  # fmt: skip
def test_where_nothing_smaller_can_be_tried_the_flag_is_named(asked, fits, words, files, tmp_path, monkeypatch):
    small_gpu(monkeypatch, "codes", fits)
    with pytest.raises(ValueError, match=f"--per-proc-batch-size {words}"):
        sample_many(many(files, tmp_path, per_proc_batch_size=asked))
