"""A CUDA graph, played on a CPU."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operators of which a number in Python, or a shape, depends on what a tensor holds.
ASKING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Recording(TorchDispatchMode):
    """The operators that `work` calls, to be called again: on the very tensors of the first time, into the same memory,
    with Python's numbers baked in. As in a capture, operators that must wait for a number are refused (numpy() and
    tolist(), which are none, pass)."""

    def __init__(self, work: Callable[[], None]):
        super().__init__()
        self.calls = []
        with self:
            work()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if waits(operator, args):
            raise RuntimeError(f"{operator} waits for a number")
        out = operator(*args, **kwargs)
        self.calls.append((operator, args, kwargs, out))
        return out

    def __call__(self) -> None:
        for operator, args, kwargs, out in self.calls:
            for kept, new in zip(tensors(out), tensors(operator(*args, **kwargs)), strict=True):
                if kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)

    def reads(self) -> list[Tensor]:
        """Those tensors that it did not make."""
        found, made = [], set()
        for _, args, kwargs, out in self.calls:
            given = [*tensors(args), *tensors(tuple(kwargs.values()))]
            found += [tensor for tensor in given if storage(tensor) not in made]
            made |= {storage(tensor) for tensor in tensors(out)} - {storage(tensor) for tensor in given}
        return found


def waits(operator, args: tuple) -> bool:
    if operator in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
        return any(index.dtype == torch.bool for index in tensors(args[1]))
    return operator == torch.ops.aten.is_nonzero.default or bool(ASKING & set(operator.tags))


def tensors(part) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, (tuple, list)):
        for each in part:
            yield from tensors(each)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
