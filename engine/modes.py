"""A module in another state, for the length of a `with`."""

import torch
from torch import Tensor, nn


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
