"""A training run whose processes are killed at random moments, beside one that is left alone: same codes, same flags.

torchrun starts killed processes again; where it is killed too, as by a power cut, the same command is given again.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.measure import ROOT, publish
from benchmarks.options import KillsTrial

ONE, ALL, TORCHRUN = "one process", "all processes", "torchrun and all processes"
STARTING, SAVING, TRAINING = "starting", "saving", "training"
WAIT = 120  # seconds for anything to happen


def write_codes(folder: Path) -> None:
    """40 pictures of 4 x 4 random codes."""
    from dataset.code_store import CodeStoreWriter

    settings = {"grid": [4, 4], "crops": 1, "vocab_size": 256, "tokenizer": None, "image_size": 16,
                "class_names": None, "source": {"generated": True}}  # fmt: skip
    writer = CodeStoreWriter(folder, settings, 40)
    codes = np.random.default_rng(0).integers(0, 256, (40, 1, 16))
    writer.write_shard(0, codes, np.arange(40) % 10, np.arange(40))
    writer.finish()


class Training:
    """train_c2i_fsdp.py under torchrun, in a process group of its own."""

    def __init__(self, options: KillsTrial, folder: Path, name: str, restarts: int = 0):
        self.folder, self.log = folder / name, folder / f"{name}.log"
        self.command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.processes}",
            f"--max-restarts={restarts}", ROOT / "autoregressive/train/train_c2i_fsdp.py", "--code-path",
            folder / "codes", "--gpt-model", "GPT-1M", "--num-classes", 10, "--global-batch-size", 8, "--max-steps",
            options.steps, "--ckpt-every", options.ckpt_every, "--keep-ckpts", 2, "--ema", "--num-workers", 0,
            "--device", "cpu", "--mixed-precision", "none", "--results-dir", folder, "--run-name", name, "--log-every",
            1, "--preview-every", 0, "--resume", "--async-ckpt" if options.async_ckpt else "--no-async-ckpt",
        ]  # fmt: skip

    def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with open(self.log, "a") as log:
            self.torchrun = subprocess.Popen([str(part) for part in self.command], env=environment, stdout=log,
                                             stderr=log, start_new_session=True)  # fmt: skip

    def processes(self) -> list[int]:
        """torchrun's children."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has just ended
                continue
            if int(parent) == self.torchrun.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    def step(self) -> int:
        """The last one in metrics.jsonl."""
        try:
            return int((self.folder / "metrics.jsonl").read_text().rpartition('{"step": ')[2].partition(",")[0] or 0)
        except FileNotFoundError:
            return 0

    def saving(self) -> bool:
        return any((self.folder / "checkpoints").glob(".*.part"))

    def ended(self) -> bool:
        return self.torchrun.poll() is not None

    def wait(self, until: Callable[[], bool]) -> None:
        """For that, or the run's end; TimeoutError where neither comes."""
        deadline = time.monotonic() + WAIT
        while not until() and not self.ended():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.folder.name}: stands at step {self.step()}; {self.tail()}")
            time.sleep(0.002)

    def finish(self) -> None:
        """Wait for the last step; RuntimeError where it does not come to it."""
        while not self.ended():
            before = self.step()
            self.wait(lambda: self.step() > before)  # noqa: B023 - is called in this round alone
        if self.torchrun.returncode:
            raise RuntimeError(f"{self.folder.name}: ended with code {self.torchrun.returncode}; {self.tail()}")

    def tail(self) -> str:
        return "its log ends:\n" + "\n".join(self.log.read_text().splitlines()[-40:])

    def kill(self, what: str, chance: random.Random) -> None:
        if what == TORCHRUN:
            for pid in (self.torchrun.pid, *self.processes()):  # torchrun's children are in groups of their own
                end(pid)
            self.torchrun.wait()
            self.start()
            return
        victims = self.processes()
        for pid in [chance.choice(victims)] if what == ONE and victims else victims:
            end(pid)


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_often(training: Training, options: KillsTrial) -> tuple[Counter, list[str]]:
    """Run to the last step, killed on the way: how often what was killed doing what, and a line for each."""
    chance, found, log = random.Random(options.seed), Counter(), []
    training.start()
    while found.total() < options.kills:
        what = chance.choices([ONE, ALL, TORCHRUN], [0.7, 0.15, 0.15])[0]
        before = training.step()
        if chance.random() < 0.2:
            training.wait(lambda: len(training.processes()) == options.processes)
            time.sleep(4 * chance.random())
        else:  # so many steps on that the last kill comes near the last step
            share = (options.steps - before) / (options.kills - found.total())
            target = before + 1 + chance.randrange(max(1, round(1.6 * share)))
            training.wait(lambda: training.step() >= target)  # noqa: B023 - is called in this round alone
            time.sleep(0.1 * chance.random())
        if training.ended():
            break
        at = STARTING if training.step() <= before else SAVING if training.saving() else TRAINING
        training.kill(what, chance)
        found[what, at] += 1
        log.append(f"kill {found.total()}: {what} while {at}, after step {training.step()}")
        print(log[-1], file=sys.stderr, flush=True)
    training.finish()
    return found, log


def differences(one: Path, other: Path) -> list[str]:
    """What two runs' last checkpoints and logged losses do not have in common, to the bit."""
    import torch

    from engine.sharded_checkpoint import read_tensors

    folders = [max((run / "checkpoints").glob("[0-9]*")) for run in (one, other)]
    left, right = map(read_tensors, folders)
    found = [name for name in left.keys() | right.keys()
             if name not in left or name not in right or not torch.equal(left[name], right[name])]  # fmt: skip
    lines = [[line.partition(', "codes_per_s"')[0] for line in (run / "metrics.jsonl").read_text().splitlines()]
             for run in (one, other)]  # fmt: skip
    found += ["the step"] * (folders[0].name != folders[1].name) + ["the losses"] * (lines[0] != lines[1])
    return found


def trial(options: KillsTrial, folder: Path) -> tuple[Counter, list[str], list[str]]:
    """How often what was killed doing what, a line for each, and what was not as without."""
    write_codes(folder / "codes")
    alone, killed = Training(options, folder, "alone"), Training(options, folder, "killed", 2 * options.kills)
    alone.start()
    alone.finish()
    return *kill_often(killed, options), differences(alone.folder, killed.folder)


def report(options: KillsTrial) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found, log, different = trial(options, Path(folder))
    states = (STARTING, TRAINING, SAVING)
    rows = [[what, *(str(found[what, at]) for at in states)] for what in (ONE, ALL, TORCHRUN)]
    verdict = f"**not as without kills: {', '.join(different[:5])}**" if different else (
        "weights, moments, moving average and the loss of every step are those of the run that was left alone, to the "
        "bit")  # fmt: skip
    notes = [
        f"{found.total()} kills (SIGKILL) of a GPT-1M that trains sharded over {options.processes} gloo processes, "
        f"{options.steps} steps of 8 samples with dropout, a checkpoint every {options.ckpt_every} steps, written "
        f"{'beside the training' if options.async_ckpt else 'between steps'}; {time.monotonic() - began:.0f} s in all.",
        f"At its end: {verdict}.",
        "",
        *(f"    {line}" for line in log),
    ]
    publish(options.output, "Killed at random moments", ["killed", *(f"while {at}" for at in states)], rows, notes)
    if different:
        raise SystemExit(1)
