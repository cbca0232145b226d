"""What the benchmarks share: a process for each contender, the best of some runs, and the written table. Torch-free."""

import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def peak_memory() -> float:
    """The most memory that this process has held, in MiB."""
    try:
        with open("/proc/self/status") as status:  # ru_maxrss would count the parent's memory, inherited over exec
            return next(int(line.split()[1]) / 2**10 for line in status if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _measured(contender: Callable[..., dict[str, float]], arguments: tuple) -> dict[str, float]:
    figures = contender(*arguments)
    return {**figures, "peak": peak_memory()}


def in_own_process(contender: Callable[..., dict[str, float]], *arguments) -> dict[str, float]:
    """What the contender returns, and "peak": the memory of the fresh process it ran in, in MiB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, contender, arguments).result()


def rounds(contenders: dict[str, tuple], repeats: int,
           killed: dict[str, float] | None = None) -> dict[str, dict[str, float]]:  # fmt: skip
    """Each contender (a function and its arguments) once a round, in turn; of each figure the smallest counts.

    killed: the figures of one whose process the system ended, as it does where memory runs out; None: an error.
    """
    best: dict[str, dict[str, float]] = {}
    for number in range(repeats):
        for name, (contender, *arguments) in contenders.items():
            print(f"round {number + 1} of {repeats}: {name}", file=sys.stderr, flush=True)
            try:
                figures = in_own_process(contender, *arguments)
            except BrokenProcessPool:
                if killed is None:
                    raise
                figures = {**killed, "peak": float("inf")}
            before = best.get(name, figures)
            best[name] = before | {key: min(value, before.get(key, value)) for key, value in figures.items()}
    return best


def shortest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def fitted(starved: dict[str, float], contender: Callable[..., dict[str, float]], *arguments) -> dict[str, float]:
    """What the contender returns, or `starved` where its memory ran out."""
    try:
        return contender(*arguments)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):  # torch's
            raise
        return starved


def markdown(columns: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table; the columns after the first are of numbers."""
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] + ["---:"] * (len(columns) - 1), *rows)]


def publish(output: str, title: str, columns: list[str], rows: list[list[str]], notes: list[str],
            card: str | None = None) -> None:  # fmt: skip
    """Print a markdown table, and write it with date, machine, versions and command; `card`: the GPU that worked."""
    machine = [*([card] if card else []), processor(), f"{cpu_count()} cores", f"torch {version('torch')}"]
    command = shlex.join(["python3", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]])
    lines = [
        f"# {title}",
        "",
        f"{date.today()}, {', '.join(machine)}: `{command}`",
        "",
        *markdown(columns, rows),
        "",
        *notes,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
