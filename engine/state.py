"""What a training step changes, by name: weights, moments, moving average; out of checkpoints of every kind."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoint import HUB_WEIGHTS, Weights, clean, is_sharded_checkpoint, load_strict, read_file
from engine.optim import EMA, load_optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def moments(module: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimizer's state by the names of the weights: layers.0.attention.wo.weight.exp_avg."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {f"{names[parameter]}.{key}": value for parameter, state in optimizer.state.items()
            for key, value in state.items()}  # fmt: skip


def make_room(module: nn.Module, optimizer: torch.optim.AdamW, held: Iterable[str]) -> None:
    """Moments of zero for every weight that `held` (names as moments() gives them) has some of."""
    held = set(held)
    fused = {parameter: group.get("fused") for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        if parameter in fused and f"{name}.step" in held:
            device = parameter.device if fused[parameter] else "cpu"
            optimizer.state[parameter] = {"step": torch.zeros((), device=device)}
            optimizer.state[parameter] |= {key: torch.zeros_like(parameter) for key in MOMENTS}


def tensors_of(phases: Sequence, ema: EMA | None) -> dict[str, Tensor]:
    """All of them: model.layers.0..., optimizer.layers.0...exp_avg, ema.layers.0...."""
    found: dict[str, Tensor] = {}
    for phase in phases:
        found |= prefixed(phase.name, phase.module.state_dict())
        found |= prefixed(phase.optimizer_name, moments(phase.module, phase.optimizer))
    return found | prefixed("ema", {} if ema is None else ema.state)


def read_state(path: Path, flag: str) -> dict:
    """The entries of a checkpoint; of one of a sharded run, whose tensors lie in parts, what it says of them, and None
    for each entry of tensors."""
    if not path.is_dir() or (path / HUB_WEIGHTS).is_file():
        return read_file(path, flag)
    if not is_sharded_checkpoint(path):
        return read_published(path, flag)
    from engine.sharded_checkpoint import names_in, read_papers

    return {**dict.fromkeys(name.partition(".")[0] for name in names_in(path)), **read_papers(path)}


def load_state(path: Path, state: dict, phases: Sequence, ema: EMA | None, flag: str) -> None:
    """Fill weights, moments and the moving average, which starts as the weights are where the checkpoint has none."""
    if state[phases[0].name] is None:
        from engine.sharded_checkpoint import load, names_in

        names = names_in(path)
        for phase in phases:
            prefix = f"{phase.optimizer_name}."
            held = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
            make_room(phase.module, phase.optimizer, held)
        load(path, tensors_of(phases, ema if "ema" in state else None), flag)
        if ema is not None and "ema" not in state:
            ema.load(phases[0].module.state_dict())
        return
    for phase in phases:
        load_strict(phase.module, Weights(clean(state[phase.name]), path), flag)
        load_optimizer(phase.optimizer, state[phase.optimizer_name])
    if ema is not None:
        ema.load(clean(state.get("ema") or state[phases[0].name]))


def read_published(folder: Path, flag: str) -> dict:
    """A folder of the published FSDP training: {"model", "optimizer", "steps"}, the optimizer's state put together from
    the files of all its processes.

    Each of them holds, of each weight, a piece of its flat values; the weights are numbered with all but the norms'
    first. Where several nodes held the same (hsdp), the first one's count.
    """
    model = read_file(folder / "consolidated.pth", flag)
    files = sorted(folder.glob("optimizer.*-of-*.pth"))
    if not files:
        return {"model": model}
    world = int(re.fullmatch(r"optimizer\.\d+-of-(\d+)\.pth", files[0].name)[1])
    names = [f"optimizer.{rank:05d}-of-{world:05d}.pth" for rank in range(world)]
    if missing := sorted(set(names) - {file.name for file in files}):
        raise ValueError(f"{flag} {folder}: lacks {missing[0]}; all {world} of them are needed, or none")
    step = (folder / "resume_step.txt").read_text().strip() if (folder / "resume_step.txt").is_file() else ""
    if not step.isdigit():
        raise ValueError(f"{flag} {folder}: no number of steps in resume_step.txt")
    parts = [read_file(folder / name, flag) for name in names]
    weights = sorted(model, key=lambda name: "norm" in name)  # a stable order
    merged = {}
    for number, name in enumerate(weights):
        held = [part["state"][number] for part in parts if number in part["state"]]
        if not held:
            continue
        merged[number] = {"step": held[0]["step"]}
        for key in MOMENTS:
            flat = torch.cat([each[key].flatten() for each in held])
            if flat.numel() < model[name].numel() or flat.numel() % model[name].numel():
                raise ValueError(f"{flag} {folder}: {key} of {name} has {flat.numel()} values in all files together, "
                                 f"the weight has {model[name].numel()}")  # fmt: skip
            merged[number][key] = flat[: model[name].numel()].view(model[name].shape)
    optimizer = {"state": merged, "param_groups": parts[0]["param_groups"]}
    return {"model": model, "optimizer": optimizer, "steps": int(step)}
