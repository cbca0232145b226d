"""A run is fed what its steps say, whatever becomes of the processes that load it."""

import os
import signal
import time
from functools import partial, wraps
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import reductions
from torch.utils.data import Dataset, default_collate

from dataset.loading import Feed, lasting


class Mortal(Dataset):
    """Samples are their own numbers; loading one of `deadly` kills the worker process, `lives` times in all."""

    collate = staticmethod(default_collate)

    def __init__(self, folder: Path, deadly: tuple[int, ...], lives: int):
        self.folder, self.deadly, self.lives = folder, deadly, lives

    def __len__(self) -> int:
        return 24

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, sample = key
        if sample in self.deadly and len(os.listdir(self.folder)) < self.lives:
            (self.folder / f"{len(os.listdir(self.folder))}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"epoch": torch.tensor(epoch), "index": torch.tensor(sample)}


def feed(folder: Path, deadly: tuple[int, ...] = (), lives: int = 0, workers: int = 0) -> Feed:
    folder.mkdir(exist_ok=True)
    return Feed(Mortal(folder, deadly, lives), global_batch=4, seed=0, rank=0, world=1, workers=workers)


def read(fed: Feed, start: int = 2, stop: int = 11) -> list:
    found = []
    for batch in fed.batches(start, stop):
        found.append((batch["epoch"].tolist(), batch["index"].tolist()))
        time.sleep(0.05)  # a training step, in which a worker that reads ahead may die
    return found


@pytest.mark.parametrize("place", [0, 3, 8], ids=["first batch", "middle", "last"])
def test_a_killed_worker_costs_no_batch(place, tmp_path):
    whole = read(feed(tmp_path / "whole"))
    assert len(whole) == 9
    mortal = feed(tmp_path / "mortal", deadly=(whole[place][1][2],), lives=1, workers=1)
    if place == 0:  # not one batch came before
        with pytest.raises(OSError, match=r"being killed \(DataLoader worker .*as many as --num-workers"):
            read(mortal)
        return
    with pytest.warns(UserWarning, match=r"DataLoader worker .*the loader starts again at step \d"):
        assert read(mortal) == whole


def test_workers_that_are_killed_again_and_again_end_the_run(tmp_path):
    whole = read(feed(tmp_path / "whole"))
    with pytest.raises(OSError, match="being killed"), pytest.warns(UserWarning, match="starts again"):
        read(feed(tmp_path / "mortal", deadly=(whole[3][1][2],), lives=9, workers=1))


def failing(error: Exception, start: int):
    """What lasting() takes: batches that are the numbers of their steps; the first time, step 4 fails."""
    fails = iter([error])

    def batches_from(step: int):
        for each in range(step, 6):
            if each == 4 and (now := next(fails, None)):
                raise now
            yield each

    return lasting(batches_from, start)


@pytest.mark.parametrize("error", [
    ConnectionResetError(104, "Connection reset by peer"), ConnectionRefusedError(), EOFError(),
    RuntimeError("Pin memory thread exited unexpectedly"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_a_worker_killed_before_it_handed_its_batch_over_costs_none(error):
    with pytest.warns(UserWarning, match=f"DataLoader worker gone: {type(error).__name__}.*starts again at step 4"):
        assert list(failing(error, 2)) == [2, 3, 4, 5]
    with pytest.raises(OSError, match="being killed .DataLoader worker gone"):
        list(failing(error, 4))


def test_a_batch_whose_memory_is_gone_is_loaded_again(tmp_path, monkeypatch):
    """The worker sends where it lies; whoever takes it asks the worker for it."""
    takes, own = [], reductions.rebuild_storage_fd

    @wraps(own)
    def rebuild_storage_fd(*given):
        takes.append(1)
        if len(takes) == 5:
            raise ConnectionResetError(104, "Connection reset by peer")
        return own(*given)

    monkeypatch.setattr(reductions, "rebuild_storage_fd", rebuild_storage_fd)
    with pytest.warns(UserWarning, match="DataLoader worker gone: ConnectionResetError.*starts again"):
        assert read(feed(tmp_path / "cut", workers=1)) == read(feed(tmp_path / "whole"))


@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError, RuntimeError])
def test_what_a_dataset_cannot_reach_is_not_taken_for_a_killed_worker(kind, tmp_path):
    spoilt = feed(tmp_path / "spoilt", workers=1)
    spoilt.dataset.collate = partial(fail, kind)
    with pytest.raises(kind, match="a bad sample"):
        read(spoilt)


def fail(kind: type[Exception], samples: list) -> None:
    raise kind("a bad sample")


def test_the_probe_is_the_same_on_every_process_and_the_order_says_what_a_run_needs(tmp_path):
    one, other = (Feed(Mortal(tmp_path, (), 0), 4, 7, rank, 2, 0) for rank in range(2))
    assert one.probe(3)["index"].tolist() == other.probe(3)["index"].tolist() == [0, 11, 23]
    assert one.probe()["index"].tolist() == list(range(24)), "all, where there are no more"
    assert one.order == {"samples": 24, "global_batch_size": 4, "global_seed": 7} and one.steps_per_epoch == 6
