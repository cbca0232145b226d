"""The ways to run a step: each gives the codes of the plain float32 loop, whatever was sampled before it.

A CUDA graph is played by a recording of the step on the CPU (recording.py).
"""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from recording import Recording, storage
from tiny_gpts import KINDS, SETTINGS, model_of, packs, sampled
from torch._inductor import config as inductor

from autoregressive.models import attend, ways
from autoregressive.models.captured import CapturedRunner
from autoregressive.models.draw import Draw, Sampling, guide
from autoregressive.models.packed import CompiledPackedRunner, Int8Linear, PackedRunner, can_pack, pack
from autoregressive.models.runners import BucketRunner, CompiledRunner, EagerRunner
from autoregressive.models.ways import make_runner


class Buckets(BucketRunner):
    BUCKET = 16


class Recorded(CapturedRunner):
    BUCKET = 16
    recordings = 0

    def capture(self, work):
        self.recordings += 1
        self.last = Recording(work)
        return self.last


class Packed(PackedRunner):
    BUCKET = 16


class Between(CompiledPackedRunner):
    BUCKET = 16

    def compile(self):
        with patch.object(torch, "compile", lambda function, **options: function):
            super().compile()


WAYS = [EagerRunner, Buckets, Recorded, pytest.param(Packed, marks=packs), pytest.param(Between, marks=packs)]


def stop(error, at, i, out):
    if i == at:
        raise error


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_codes_of_the_plain_loop(way, kind, name):
    expected = sampled(EagerRunner(model_of(kind)), kind, SETTINGS[name])
    runner = way(model_of(kind))
    for window in (1, 2, 7, 100):
        found = sampled(runner, kind, SETTINGS[name], window=window)
        assert torch.equal(found, expected), f"looking at {window} codes together"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_of_earlier_calls(way, kind):
    """Other batches, lengths, seeds, filters and captions, larger and smaller, before and after a capture."""
    runner, plain = way(model_of(kind)), EagerRunner(model_of(kind))
    for batch, codes, window, name in [(3, 36, 1, "guided"), (2, 20, 1, "plain"), (3, 36, 1, "scheduled"),
                                       (1, 9, 1, "guided"), (1, 14, 1, "guided"), (5, 36, 4, "guided"),
                                       (1, 9, 1, "greedy"), (3, 36, 1, "guided")]:  # fmt: skip
        given = dict(batch=batch, codes=codes, seed=batch, first=100 * codes)
        found = sampled(runner, kind, SETTINGS[name], window=window, **given)
        assert torch.equal(found, sampled(plain, kind, SETTINGS[name], **given)), (batch, codes, name)


@pytest.mark.parametrize("way", [EagerRunner, Buckets, Recorded])
def test_a_cache_may_be_wider_than_the_heads(way, monkeypatch):
    expected = sampled(EagerRunner(model_of("t2i")), "t2i", SETTINGS["guided"])
    monkeypatch.setitem(attend.MULTIPLES, "cpu", 24)  # as GPUs ask for multiples of 8; the heads have 16
    runner = way(model_of("t2i"))
    seen, allocate = [], runner.allocate
    monkeypatch.setattr(runner, "allocate", lambda *given: seen.append(allocate(*given)) or seen[-1])
    for window in (1, 5):
        assert torch.equal(sampled(runner, "t2i", SETTINGS["guided"], window=window), expected)
    assert {layer.shape[-1] for part in seen[0] for layer in part} == {24}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("way", WAYS)
def test_a_runner_is_usable_after_it_was_interrupted(way, error):
    runner, expected = way(model_of()), sampled(EagerRunner(model_of()), "c2i", SETTINGS["guided"])

    for at in (0, 11, 12, 30):  # the second branch of guidance ends after code 11
        with pytest.raises(error):
            sampled(runner, "c2i", SETTINGS["guided"], seed=9, on_code=partial(stop, error, at))
        assert torch.equal(sampled(runner, "c2i", SETTINGS["guided"]), expected)


@pytest.mark.parametrize("way", WAYS)
def test_another_runner_of_the_same_model_works_beside_it(way):
    runner, expected = way(model_of()), sampled(EagerRunner(model_of()), "c2i", SETTINGS["guided"])
    beside = runner.another()
    assert type(beside) is way and beside.model is runner.model
    seen = []

    def draw_beside(i, out):
        if i == 20:
            seen.append(sampled(beside, "c2i", SETTINGS["guided"]))

    assert torch.equal(sampled(runner, "c2i", SETTINGS["guided"], on_code=draw_beside), expected)
    assert torch.equal(seen[0], expected)


# ---- guidance


@pytest.mark.parametrize("way", WAYS)
def test_the_head_reads_one_state_a_picture(way):
    runner, rows = way(model_of()), []
    runner.model.output.register_forward_pre_hook(lambda head, given: rows.append(given[0].shape[:2]))
    sampled(runner, "c2i", SETTINGS["guided"])
    assert set(rows) == {(3, 1)}


def test_states_are_guided_in_float32():
    states, draw = torch.randn(8, 1, 64).bfloat16(), Draw(Sampling(cfg_scale=7.5), 1, 0, torch.arange(4), 96)
    exact, found = guide(states.float(), 7.5), draw.guided(states, torch.tensor([0]))
    assert found.dtype == torch.bfloat16 and ((found - exact).abs() <= 2**-8 * exact.abs()).all()


# ---- looking ahead


@pytest.mark.parametrize("known", [0, 1, 20, 35])
@pytest.mark.parametrize("kind", ["c2i", "t2i"])
def test_a_completion_looks_ahead_too(kind, known):
    runner = EagerRunner(model_of(kind))
    expected = sampled(runner, kind, SETTINGS["guided"])
    kept = expected[:, :known] if known else None
    assert torch.equal(sampled(runner, kind, SETTINGS["guided"], window=6, known=kept), expected)


@pytest.mark.parametrize("window, interval, first, looks", [
    (8, 10, 0, {8}), (8, -1, 0, {8}), (8, 10, 20, {8}), (16, 10, 0, {11, 16}), (8, 0, 0, {1, 8}), (100, -1, 0, {35}),
])  # fmt: skip
def test_looks_have_one_shape_but_where_fewer_codes_are_there(window, interval, first, looks):
    """Each is compiled, or captured: at the end of the picture, and where guidance ends after code interval + 1."""
    runner, shapes, sampling = EagerRunner(model_of()), [], Sampling(cfg_scale=2.0, cfg_interval=interval)
    expected, look = sampled(runner, "c2i", sampling), runner.look
    runner.look = lambda codes: shapes.append(codes.shape[1]) or look(codes)
    known = expected[:, :first] if first else None
    assert torch.equal(sampled(runner, "c2i", sampling, window=window, known=known), expected)
    assert set(shapes) == looks


def test_each_code_is_reported_once_when_it_is_right():
    seen, expected = [], sampled(EagerRunner(model_of()), "c2i", SETTINGS["guided"])

    def on_code(i, out):
        seen.append(i)
        assert torch.equal(out[:, : i + 1], expected[:, : i + 1])

    sampled(EagerRunner(model_of()), "c2i", SETTINGS["guided"], window=8, on_code=on_code)
    assert seen == list(range(36))


def test_right_guesses_save_steps_and_the_slowest_picture_sets_the_pace():
    class Counting(EagerRunner):
        looks = 0

        def look(self, codes):
            self.looks += 1
            return super().look(codes)

    def steps(model, window, batch=1):
        runner = Counting(model)
        sampled(runner, "c2i", Sampling(), batch=batch, window=window)
        return runner.looks

    model = model_of()
    assert steps(model, 1) == 35
    together = steps(model, 8, batch=3)
    alone = []
    for picture in range(3):
        runner = Counting(model)
        sampled(runner, "c2i", Sampling(), batch=1, first=picture, window=8)
        alone.append(runner.looks)
    assert max(alone) <= together <= 35
    torch.nn.init.zeros_(model.output.weight)  # codes are their noise alone, which is the first guess
    assert steps(model, 8) == steps(model, 8, batch=3) == -(-35 // 8)


# ---- captured


@pytest.mark.parametrize("asks", [
    int, bool, torch.Tensor.item, torch.nonzero, torch.unique, lambda x: torch.equal(x, x), lambda x: x[x > 0],
    lambda x: x.masked_select(x > 0), lambda x: x.masked_fill_(x > 0, 1)[x > 0], lambda x: x.expand(2)[:1] if x else x,
])  # fmt: skip
@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode])
def test_a_recording_refuses_what_waits_for_a_number(mode, asks):
    with mode(), pytest.raises(RuntimeError, match="waits for a number"):
        Recording(lambda: asks(torch.ones(1, dtype=torch.int64)))


def test_a_recording_is_called_again_on_the_same_memory():
    given, found = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    with torch.inference_mode():
        again = Recording(lambda: found.copy_((given[torch.tensor([2, 1, 0])] + 1).view(3).mul_(2)))
        assert found.tolist() == [6, 4, 2] and len(again.reads()) >= 3
        given.add_(10)
        again()
    assert found.tolist() == [26, 24, 22]


def test_a_graph_is_captured_once_a_shape_and_few_are_kept(monkeypatch):
    runner, plain = Recorded(model_of()), EagerRunner(model_of())
    for _ in range(2):
        for scale, seed, heat, share in ((2.0, 1, 1.0, 0.9), (3.0, 2, 0.7, 0.5)):  # are no part of the shape
            sampling = Sampling(cfg_scale=scale, top_k=9, temperature=heat, top_p=share)
            found = sampled(runner, "c2i", sampling, seed=seed, first=seed)
            assert torch.equal(found, sampled(plain, "c2i", sampling, seed=seed, first=seed))
    assert runner.recordings == len(runner.graphs) == 3  # buckets of 16 in 1 + 35 positions
    sampled(runner, "c2i", Sampling(cfg_scale=2.0, top_k=8))
    assert runner.recordings == 6
    monkeypatch.setattr(Recorded, "GRAPHS", 4)
    sampled(runner, "c2i", Sampling(cfg_scale=2.0, top_k=7))
    assert len(runner.graphs) <= 4
    cache = runner.place.cache
    sampled(runner, "c2i", Sampling(cfg_scale=2.0), batch=2)
    assert runner.place.cache is cache, "a smaller batch uses the memory that is there"


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_reads_nothing_that_the_next_call_has_not(kind):
    """A replay finds tensors by their place in memory: those that a call makes for itself are gone by then."""
    runner = Recorded(model_of(kind))
    sampled(runner, kind, SETTINGS["guided"])
    model = runner.model
    kept = [*model.state_dict().values(), model.rotary(torch.device("cpu")), *vars(runner.place).values()]
    kept = [tensor for part in kept for tensor in (sum(part, []) if isinstance(part, tuple) else [part])]
    lasting = {storage(tensor) for tensor in kept if isinstance(tensor, torch.Tensor)}
    reads = runner.last.reads()
    assert len({storage(tensor) for tensor in reads}) > 20
    assert all(storage(tensor) in lasting for tensor in reads if tensor.numel() > 1)


def test_memory_that_runs_out_during_a_capture_is_told_from_a_step_that_cannot_be_captured(monkeypatch):
    class Fails:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            raise error

        __exit__ = pool = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {"device": lambda _: nullcontext(), "Stream": lambda: stream, "current_stream": lambda: stream,
                       "stream": lambda _: nullcontext(), "CUDAGraph": Fails, "graph": Fails}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    runner, expected = CapturedRunner(model_of()), sampled(EagerRunner(model_of()), "c2i", SETTINGS["plain"])
    error = torch.OutOfMemoryError("out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        sampled(runner, "c2i", SETTINGS["plain"])
    error = RuntimeError("operation not permitted")
    with pytest.raises(RuntimeError, match="--runner captured: .*operation not permitted.*--runner eager"):
        sampled(runner, "c2i", SETTINGS["plain"])
    monkeypatch.setattr(runner, "capture", Recording)
    assert torch.equal(sampled(runner, "c2i", SETTINGS["plain"]), expected)


def test_what_is_masked_is_forgotten():
    """A picture that overflowed spoils no later one: what is masked is multiplied by 0, but 0 times NaN is NaN."""
    runner, expected = Recorded(model_of()), sampled(EagerRunner(model_of()), "c2i", SETTINGS["guided"])
    sampled(runner, "c2i", SETTINGS["guided"])
    with torch.inference_mode():
        for part in sum(runner.place.cache, []):
            part.fill_(float("nan"))
    assert torch.equal(sampled(runner, "c2i", SETTINGS["guided"]), expected)


def test_logits_can_be_had_from_a_captured_runner():
    cond, codes = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    with torch.inference_mode():
        runners = [way(model_of()) for way in (EagerRunner, Recorded)]
        found = [torch.stack([runner.start(cond, 8), runner.step(codes)]) for runner in runners]
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)


# ---- by name


def test_runners_are_chosen_by_name():
    assert type(make_runner("eager", model_of())) is EagerRunner
    for dtype in (torch.float32, torch.float16):
        best = PackedRunner if can_pack(torch.device("cpu"), dtype) else EagerRunner
        assert type(make_runner("auto", model_of(dtype=dtype))) is best
    assert type(make_runner("auto", model_of(dtype=torch.float64))) is EagerRunner
    for wrong, message in [
        (dict(name="fast"), "--runner fast: choose auto or one of eager, compiled, captured, packed"),
        (dict(name="captured"), "--runner captured: is for NVIDIA GPUs"),
        (dict(name="eager", int8=True), "--int8: .* --runner packed or compiled, .*; this is --runner eager on cpu"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_runner(model=model_of(), **wrong)
    with pytest.raises(ValueError, match="--runner packed: is for CPUs .* float64"):
        make_runner("packed", model_of(dtype=torch.float64))


@packs
def test_compiled_steps_on_a_cpu_have_packed_matrices_where_they_can(monkeypatch):
    monkeypatch.setattr(ways, "find_compiler", lambda: None)
    assert type(make_runner("compiled", model_of())) is CompiledPackedRunner
    assert type(make_runner("compiled", model_of(dtype=torch.float64))) is CompiledRunner
    runner = make_runner("compiled", model_of(), int8=True)
    assert type(runner) is CompiledPackedRunner and isinstance(runner.model.output, Int8Linear)
    with pytest.raises(ValueError, match="--int8: .* that has kernels there .* compiled on cpu in float64"):
        make_runner("compiled", model_of(dtype=torch.float64), int8=True)


def test_a_missing_compiler_is_said_before_anything_is_packed():
    model, without = model_of(), inductor.patch({"cpp.cxx": ("no-such-compiler",)})
    with without, pytest.raises(ValueError, match="--runner compiled: needs a C[+][+] compiler .*; install g[+][+]"):
        make_runner("compiled", model, int8=True)
    assert isinstance(model.output, torch.nn.Linear)


def test_missing_headers_are_said_too(monkeypatch, tmp_path):
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    monkeypatch.setattr(ways, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="--runner compiled: needs Python's headers, .*Python.h; install them"):
        ways.find_compiler()


def test_packing_in_eight_bits_after_packing_is_refused():
    model = model_of()
    pack(model)
    with pytest.raises(ValueError, match="--int8"):
        make_runner("packed", model, int8=True)
