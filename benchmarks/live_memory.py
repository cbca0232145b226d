"""What a program would hold in memory, told without holding it: it runs on fake tensors, which have sizes alone."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that are alive: `now`, and the most there were, `peak` (to be set back by whoever asks).

    What an operation takes and gives back within itself is not seen. Where the program asks for a number that is not
    there (is the gradient finite?), it is told 1.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.held: dict[int, tuple[weakref.ref, int]] = {}  # of each storage, and its bytes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented  # first taken apart, into operations on this process's part
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1
        result = function(*args, **kwargs or {})
        for each in tree_iter(result):
            if isinstance(each, FakeTensor) and each.device.type != "meta":
                self.note(each.untyped_storage())
        return result

    def note(self, storage: torch.UntypedStorage) -> None:
        """Count a storage by the size it has now."""
        key, size = id(storage), storage.nbytes()
        reference, before = self.held.get(key) or (weakref.ref(storage, partial(self.forget, key)), 0)
        self.held[key] = reference, size
        self.now += size - before
        self.peak = max(self.peak, self.now)

    def forget(self, key: int, _: weakref.ref) -> None:
        self.now -= self.held.pop(key)[1]


@contextmanager
def live_memory() -> Iterator[LiveMemory]:
    """Within, every tensor is a fake one, and its memory is counted."""
    resize = torch.UntypedStorage.resize_

    def resized(storage: torch.UntypedStorage, size: int) -> None:
        resize(storage, size)
        if id(storage) in live.held:
            live.note(storage)

    # Resizing is no operation, and FSDP frees and takes memory by it.
    patched = mock.patch.object(torch.UntypedStorage, "resize_", resized)
    with FakeTensorMode(), patched, LiveMemory() as live:
        yield live
