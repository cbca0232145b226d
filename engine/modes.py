"""Modules in another state, or made in another way, for the length of a `with`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class on_meta(TorchFunctionMode):
    """Modules that are made have shapes alone: they lie on the meta device, and nothing is drawn for them.

    For a few functions torch imports its compiler there, half of the time that a command takes to start. They are left
    out: what they return has the shape of their input.
    """

    LEFT_OUT = (nn.init.normal_, F.normalize)

    def __init__(self):
        super().__init__()
        self.device = torch.device("meta")

    def __enter__(self):
        self.device.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.device.__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.LEFT_OUT and (tensor := next(iter((*args, *kwargs.values())))).is_meta:
            return tensor
        return function(*args, **kwargs)


class evaluating:
    """A module in eval mode without gradients, for the length of a `with`."""

    def __init__(self, module: nn.Module):
        self.module, self.grad = module, torch.no_grad()

    def __enter__(self):
        self.module.eval()
        self.grad.__enter__()

    def __exit__(self, *error):
        self.grad.__exit__(*error)
        self.module.train()


class swapped:
    """A module with other weights, for the length of a `with`."""

    def __init__(self, module: nn.Module, state: dict[str, Tensor]):
        self.module, self.state = module, state

    def __enter__(self):
        self.own = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.state)

    def __exit__(self, *error):
        self.module.load_state_dict(self.own)
