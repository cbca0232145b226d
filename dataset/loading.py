"""From a dataset to the batches of a training run, which are a function of the step."""

import gc
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dataset.order import Order, RankBatches


class Feed:
    """What one process of a training run is fed: its share of each step's global batch.

    order: what decides which samples a step sees; a resumed run must have the same.
    """

    def __init__(self, dataset: Dataset, global_batch: int, seed: int, rank: int, world: int, workers: int):
        self.dataset, self.rank, self.world, self.workers = dataset, rank, world, workers
        self.samples = Order(len(dataset), global_batch, seed)
        self.steps_per_epoch = self.samples.steps_per_epoch
        self.order = {"samples": len(dataset), "global_batch_size": global_batch, "global_seed": seed}

    def batches(self, start: int, stop: int) -> Iterable[dict[str, torch.Tensor]]:
        """Of the steps start to stop - 1, each a dict of tensors whose first axis is the sample."""
        return loader(self.dataset, self.samples, self.rank, self.world, start, stop, self.workers)

    def probe(self, count: int = 100) -> dict[str, torch.Tensor]:
        """So many samples, evenly spaced from the first to the last, which every process must find alike."""
        places = np.linspace(0, len(self.dataset) - 1, min(count, len(self.dataset))).astype(int).tolist()
        return next(iter(batch_loader(self.dataset, [[(0, place) for place in places]], 0)))


def loader(
    dataset: Dataset, order: Order, rank: int, world: int, start: int, stop: int, workers: int
) -> Iterable[dict[str, torch.Tensor]]:
    """This rank's batches of the steps start..stop-1, of Images or Codes."""
    batches = RankBatches(order, rank, world, start, stop)
    if not workers:
        return batch_loader(dataset, batches, 0)
    if getattr(dataset, "mapped", False):
        return read_ahead(dataset, batches)
    return lasting(lambda step: batch_loader(dataset, RankBatches(order, rank, world, step, stop), workers), start)


def lasting(batches_from: Callable[[int], Iterable[dict]], start: int) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of a loader that is started again, at the step in hand, when one of its worker processes is killed.

    OSError where that happens before it has brought a batch.
    """
    step = start
    while True:
        began = step
        try:
            for batch in batches_from(step):
                if threading.current_thread() is threading.main_thread():
                    # torch's handler would raise the worker's end amid a training step; the next batch finds out, too.
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                yield batch
                step += 1
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A killed worker has many faces: torch names it, or its memory or the thread that pins it cannot be
            # reached. The dataset's own errors begin with this word.
            if str(error).startswith("Caught "):
                raise
            said = str(error) if "DataLoader worker" in str(error) else f"DataLoader worker gone: {error!r}"
            if step == began:
                raise OSError(f"the loader's worker processes are being killed ({said}); is there memory for as many "
                              "as --num-workers?") from error  # fmt: skip
            warnings.warn(f"{said}; the loader starts again at step {step}", stacklevel=2)
        gc.collect()  # of the ended loader, before the next one's processes are forked with what is left


def read_ahead(dataset: Dataset, batches: Iterable[list], ahead: int = 8) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of memory-mapped codes, read by a thread beside the training.

    Sending a batch from a worker process was measured to cost ten times as much as reading it.
    """
    with ThreadPoolExecutor(1) as reader:
        waiting: deque = deque()
        for keys in batches:
            waiting.append(reader.submit(dataset.__getitems__, keys))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batch_loader(dataset: Dataset, batches: Iterable[list], workers: int) -> DataLoader:
    """A batch for each list of keys, in that order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, cores)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=only_the_parent_ends_a_worker,
    )


def only_the_parent_ends_a_worker(worker: int) -> None:
    """Ctrl-C, or a SIGTERM to the whole process group, is for the main process, which still needs batches to save.

    A SIGTERM of the parent itself is heeded (plainly ignoring it would make Python wait for its workers for ever when a
    run ends in an error). Where a signal does not tell its sender (macOS), SIGTERM works as it always does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_the_parents_word, daemon=True).start()


def _exit_on_the_parents_word() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
