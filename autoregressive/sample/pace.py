"""Pictures a second, and how busy the GPU was meanwhile."""

import ctypes
from collections.abc import Callable
from threading import Event, Thread
from time import perf_counter
from typing import NamedTuple

import torch

from engine.distributed import Context

PERIOD = 0.2  # seconds between two looks at the GPU; the driver's own number is of the last 0.2 to 1 s


class Mark(NamedTuple):
    """What there was at a moment."""

    seconds: float
    pictures: int
    looks: int


class Pace:
    """Counts from the end of the first batch on, in which steps are compiled and captured; a single batch counts whole.

    Busy is what the driver calls so, and nvidia-smi shows: the share of the time in which at least one kernel ran on
    the GPU, whichever process it was of. Launches that come too late, compiling and waiting for the disk are not busy.
    """

    def __init__(self, device: torch.device):
        self.look = utilization(device) if device.type == "cuda" else None
        self.looks: list[float] = []
        self.marks = [Mark(perf_counter(), 0, 0)]
        self.over = Event()
        self.thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Pace":
        if self.look is not None:
            self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(PERIOD):
            share = self.look()
            if share is not None:
                self.looks.append(share)

    def add(self, pictures: int) -> None:
        """So many more are there."""
        self.marks.append(Mark(perf_counter(), self.marks[-1].pictures + pictures, len(self.looks)))

    def figures(self) -> "Figures":
        since, until = self.marks[min(1, len(self.marks) - 2)], self.marks[-1]
        looks = self.looks[since.looks : until.looks]
        rate = (until.pictures - since.pictures) / max(until.seconds - since.seconds, 1e-9)
        return Figures(until.pictures, rate, sum(looks) / len(looks) if looks else None, since.pictures > 0)

    def report(self, context: Context) -> "Figures | None":
        """This process's figures; the main process says those of all of them, which all call it."""
        own = self.figures() if len(self.marks) > 1 else None
        every = context.gather(own)
        found = [figures for figures in every if figures]
        if found:
            print(in_words(found, context.device.type == "cuda"))
        return own


class Figures(NamedTuple):
    """Of a process."""

    pictures: int  # in all
    rate: float  # pictures a second
    busy: float | None  # share of the time, if it is known
    later: bool  # whether rate and share are of what came after the first batch


def in_words(found: list[Figures], on_gpu: bool) -> str:
    """One line of the figures of all processes."""
    known = [each.busy for each in found if each.busy is not None]
    busy = f"busy {100 * sum(known) / len(known):.0f} % of the time" if known else "how busy, its driver does not tell"
    line = f"{sum(each.pictures for each in found):,} pictures, {sum(each.rate for each in found):,.2f} pictures/s"
    later = " (after the first batch)" if any(each.later for each in found) else ""
    return line + (f", the GPU {busy}" if on_gpu else "") + later


def utilization(device: torch.device) -> Callable[[], float | None] | None:
    """Asks NVML, the library that comes with the driver, for the share of the last moments in which a kernel ran; None
    where it is not there or does not know the GPU (a slice of one by MIG)."""

    class Rates(ctypes.Structure):
        _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]  # percent

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, rates = ctypes.c_void_p(), Rates()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()  # its number may be another to the driver
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
        return None

    def look() -> float | None:
        failed = nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates))
        return None if failed else rates.gpu / 100

    return look
