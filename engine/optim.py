"""Parameter groups, learning-rate schedules, and the exponential moving average of weights."""

from math import cos, pi

import torch
from torch import Tensor, nn

from engine.parts import local, take


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
    sizes, held = ([len(g["params"]) for g in groups] for groups in (optimizer.param_groups, state["param_groups"]))
    if sizes != held:
        raise ValueError(f"its optimizer has groups of {held} weights, this run's of {sizes}: give the --weight-decay "
                         "it was trained with (none, or some), or --finetune to take the weights alone")  # fmt: skip
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fused = all(group.get("fused") for group in optimizer.param_groups)
    for parameter, number in zip(parameters, numbers):
        own = optimizer.state[parameter] = {}
        for key, value in state["state"].get(number, {}).items():
            if value.shape == parameter.shape:  # a moment; of a sharded weight, this process's part
                own[key] = torch.empty_like(parameter)
                take(own[key], value)
            else:
                own[key] = value.to(parameter.device if fused else "cpu", copy=True)
        if not own:
            del optimizer.state[parameter]


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
                averages.append(local(self.state[name]))
                values.append(local(value).float())
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - self.decay)

    def load(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state.items():
            take(value, state[name])
