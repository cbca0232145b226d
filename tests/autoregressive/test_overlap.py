"""Decoding and writing beside the sampling: the same pictures, bounded memory, errors, Ctrl-C; how busy a GPU was."""

import ctypes
import time
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from many_runs import Gpu, contents, many
from PIL import Image

import autoregressive.sample.pace as pace_module
import evaluations.images as images_module
from autoregressive.sample.many import sample_many
from autoregressive.sample.overlap import SecondStream, drawn
from autoregressive.sample.pace import Pace
from autoregressive.sample.pipeline import Pipeline
from engine.distributed import Context
from evaluations.images import to_bytes

CPU = torch.device("cpu")
ALONE = Context(0, 1, CPU)


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.mark.parametrize("batch", [1, 3, 4, 10, "auto"])
def test_decoding_beside_the_sampling_changes_no_picture(batch, gpu, files, wanted, tmp_path):
    sample_many(many(files, tmp_path, per_proc_batch_size=batch))
    assert contents(tmp_path) == wanted
    assert len(set(gpu.sampled)) == 1, "one more size would be compiled or captured anew"


def test_without_a_second_stream_no_row_is_sampled_twice(files, wanted, tmp_path, monkeypatch):
    sizes, own = [], Pipeline.codes
    monkeypatch.setattr(Pipeline, "codes", lambda self, cond, *more: sizes.append(len(cond)) or own(self, cond, *more))
    sample_many(many(files, tmp_path, per_proc_batch_size=4))
    assert contents(tmp_path) == wanted and sizes == [4, 4, 2]


def test_a_batch_is_decoded_while_the_next_is_sampled_and_no_further_one_is_begun(gpu):
    begun, threads = [Event() for _ in range(5)], set()

    def codes_of(part: list[int]) -> torch.Tensor:
        begun[part[0]].set()
        return torch.tensor(part)

    def pictures_of(codes: torch.Tensor) -> np.ndarray:
        threads.add(current_thread())
        number = int(codes[0])
        assert number == 4 or begun[number + 1].wait(10)
        return codes.numpy()

    with SecondStream(CPU) as beside:
        found = drawn([[i] for i in range(5)], codes_of, pictures_of, beside)
        for number in range(5):
            part, pictures = next(found)
            assert part == [number] == pictures.tolist()
            time.sleep(0.02)
            assert sum(each.is_set() for each in begun) == min(number + 2, 5)
    assert len(threads) == 1 and main_thread() not in threads and not next(iter(threads)).is_alive()


@pytest.mark.parametrize("error", [None, RuntimeError("an illegal memory access")])
def test_decoding_is_launched_on_its_stream_when_codes_are_there_and_waited_for_before_they_go(error, gpu, monkeypatch):
    order = []

    @contextmanager
    def launching_on(stream):
        order.append(f"on {stream.name}")
        yield

    def pictures_of(codes: torch.Tensor) -> np.ndarray:
        order.append("decoded")
        if error:
            raise error
        return codes.numpy()

    monkeypatch.setattr(torch.cuda, "stream", launching_on)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device:
                        SimpleNamespace(name="second", synchronize=lambda: order.append("waited for")))  # fmt: skip
    gpu.launched.append(lambda: order.append("sampled"))
    with SecondStream(CPU) as beside:
        assert beside.start(pictures_of, torch.tensor([1])).exception() is error
    assert order == ["sampled", "on second", "decoded", "waited for"]


def test_what_waits_for_a_slow_disk_is_bounded(gpu, files, wanted, tmp_path, monkeypatch):
    disk, save = Event(), images_module.save_png
    monkeypatch.setattr(images_module, "save_png", lambda *given: disk.wait(30) and save(*given))
    run = Thread(target=sample_many, args=(many(files, tmp_path, per_proc_batch_size=1),))
    run.start()
    try:
        until(lambda: len(gpu.sampled) >= 3)
        time.sleep(0.3)
        assert len(gpu.sampled) == 3, "one is written, one waits for that, one is decoded"
    finally:
        disk.set()
        run.join()
    assert contents(tmp_path) == wanted


def until(there, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(0.01)
    assert there()


def test_an_error_of_the_decoding_is_raised_before_another_batch_is_begun(gpu):
    begun = []

    def codes_of(part: list[int]) -> torch.Tensor:
        begun.extend(part)
        return torch.tensor(part)

    def pictures_of(codes: torch.Tensor) -> np.ndarray:
        if codes[0] == 1:
            raise RuntimeError("an illegal memory access")
        return codes.numpy()

    with SecondStream(CPU) as beside:
        found = drawn([[i] for i in range(9)], codes_of, pictures_of, beside)
        assert next(found)[0] == [0]
        with pytest.raises(RuntimeError, match="an illegal memory access"):
            next(found)
    assert begun == [0, 1, 2]


def test_where_sampling_fails_nothing_is_decoded_any_more(gpu):
    """So that who begins anew has the memory for himself."""
    decoded = []

    def codes_of(part: list[int]) -> torch.Tensor:
        if part == [1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor(part)

    def pictures_of(codes: torch.Tensor) -> np.ndarray:
        time.sleep(0.2)
        decoded.append(int(codes[0]))
        return codes.numpy()

    with SecondStream(CPU) as beside:
        with pytest.raises(torch.OutOfMemoryError):
            next(drawn([[0], [1]], codes_of, pictures_of, beside))
        assert decoded == [0]


def test_an_interrupted_run_leaves_whole_pictures_and_the_same_command_goes_on(gpu, files, wanted, tmp_path,
                                                                               monkeypatch):  # fmt: skip
    """Ctrl-C, while a batch is sampled, one is decoded and one is written."""
    late, save = Event(), images_module.save_png
    monkeypatch.setattr(images_module, "save_png", lambda *given: late.wait(0.2) or save(*given))
    with monkeypatch.context() as patch:
        codes = gpu.codes

        def interrupted(*given, **more):
            if len(gpu.sampled) == 3:
                raise KeyboardInterrupt
            return codes(*given, **more)

        patch.setattr(gpu, "codes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sample_many(many(files, tmp_path, per_proc_batch_size=2))
    there = contents(tmp_path)
    assert 2 <= len(there) < 10 and there.items() <= wanted.items() and not list(tmp_path.glob("*/.*"))
    gpu.sampled.clear()
    npz = sample_many(many(files, tmp_path, per_proc_batch_size=2))
    assert contents(tmp_path) == wanted and sum(gpu.sampled) == 10 - len(there)
    with np.load(npz) as arrays:
        pictures = {f"{i:06d}.png": picture for i, picture in enumerate(arrays["arr_0"])}
    for name, picture in pictures.items():
        assert np.array_equal(np.asarray(Image.open(npz.with_suffix("") / name)), picture)


# ---- how fast, and how busy


class Driver:
    """NVML of a machine with one GPU, which is busy as `shares` says, one look after the other."""

    def __init__(self, shares):
        self.shares = shares

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle) -> int:
        return 0 if uuid == b"GPU-12-34" else 6

    def nvmlDeviceGetUtilizationRates(self, handle, rates) -> int:
        share = next(self.shares)
        rates._obj.gpu = share or 0
        return 0 if share is not None else 3


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    monkeypatch.setattr(pace_module, "PERIOD", 0.001)
    shares = iter([20, 20, 90, None, 100, *[95] * 10**6])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(shares))


def test_a_gpu_is_busy_as_its_driver_says_from_the_end_of_the_first_batch_on(driver, monkeypatch, capsys):
    on_gpu, clock = Context(0, 1, torch.device("cuda", 0)), iter([0.0, 50.0, 51.0, 54.0])
    monkeypatch.setattr(pace_module, "perf_counter", lambda: next(clock))
    pace = Pace(on_gpu.device)
    for looks, pictures in ((2, 100), (3, 100), (1, 60)):
        pace.looks += [share for share in (pace.look() for _ in range(looks)) if share is not None]
        pace.add(pictures)
    pace.report(on_gpu)
    assert capsys.readouterr().out == (
        "260 pictures, 40.00 pictures/s, the GPU busy 95 % of the time (after the first batch)\n"
    )


def test_the_gpu_is_looked_at_beside_the_work_and_no_longer(driver):
    with Pace(torch.device("cuda", 0)) as pace:
        until(lambda: len(pace.looks) > 5)
    assert pace.looks[:4] == [0.2, 0.2, 0.9, 1.0] and not pace.thread.is_alive()


@pytest.mark.parametrize("uuid, library", [("MIG-1", None), ("12-34", OSError("no such file"))])
def test_where_no_driver_tells_the_line_says_so(uuid, library, driver, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
    if library:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(library))
    on_gpu = Context(0, 1, torch.device("cuda", 0))
    with Pace(on_gpu.device) as pace:
        assert pace.look is None
        pace.add(7)
    pace.report(on_gpu)
    assert "7 pictures, " in (said := capsys.readouterr().out) and said.endswith("how busy, its driver does not tell\n")


def test_the_pictures_of_all_processes_are_counted_and_none_where_none_were_made(monkeypatch, capsys):
    idle, one = Pace(CPU), Pace(CPU)
    idle.report(ALONE)
    assert capsys.readouterr().out == ""
    one.add(10)
    monkeypatch.setattr(one, "figures", lambda: pace_module.Figures(10, 2.5, None, False))
    monkeypatch.setattr(Context, "gather", lambda self, value: [value, None, value])
    one.report(Context(0, 3, CPU))
    assert capsys.readouterr().out == "20 pictures, 5.00 pictures/s\n"


def test_bytes_leave_a_gpu_through_pinned_memory(monkeypatch):
    """The copy waits for its own stream alone."""
    made, waited, empty = [], [], torch.empty
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory:
                        made.append(pin_memory) or empty(shape, dtype=dtype))  # fmt: skip
    monkeypatch.setattr(torch.cuda, "current_stream",
                        lambda device: SimpleNamespace(synchronize=lambda: waited.append(device)))  # fmt: skip
    images = torch.linspace(-1.2, 1.2, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    found = to_bytes(images)
    monkeypatch.undo()
    assert np.array_equal(found, to_bytes(images)) and made == [True] and waited == [CPU]
