"""Parameter groups, learning-rate schedules, and the exponential moving average of weights."""

from math import cos, pi

import torch
from torch import Tensor, nn


def adamw(module: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW; the decay acts on matrices, convolutions and embeddings, never on gains and biases.

    Without decay there is one group in the module's order, with it the decayed parameters come first: the order in
    which published optimizer states number them.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": parameters, "weight_decay": 0.0}]
    if weight_decay:
        decayed, plain = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cuda", "cpu") for p in parameters)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=fused)


def schedule(name: str, step: int, total: int, warmup: int, final: float) -> float:
    """Factor on the learning rate at `step` (0-based) of `total`: constant or cosine down to `final`, after warm-up."""
    if step < warmup:
        return (step + 1) / warmup
    if name == "constant":
        return 1.0
    if name == "cosine":
        at = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * (1 + cos(pi * at)) / 2
    raise ValueError(f"--lr-schedule {name}: choose constant or cosine")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load moments and step counts, and keep the learning rate, decay and betas that this run was given."""
    given = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, given):
        group.update(options)


class EMA:
    """A float32 moving average of a module's parameters; buffers are copied as they are."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.state = {k: v.detach().clone().float() if v.is_floating_point() else v.clone()
                      for k, v in module.state_dict().items()}  # fmt: skip
        self.parameters = {name for name, _ in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        averages, values = [], []
        for name, value in module.state_dict().items():
            if name in self.parameters:
                averages.append(self.state[name])
                values.append(value.float())
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - self.decay)

    def load(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state.items():
            value.copy_(state[name])
