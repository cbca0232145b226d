"""THE training loop: it knows processes, precision, accumulation, checkpoints and signals, but no model and no data.

A task says what one step is: an ordered list of phases, each a module with its optimizer and a loss. A GPT has one
phase, a tokenizer two (generator, then discriminator). All phases of a step see the same batch and may leave things in
it for the phases after them. A loss returns (loss, figures) and logs nothing.
"""

import signal
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from engine.checkpoint import differing, epochs_after, newest_checkpoint, write_json
from engine.distributed import Context, peak_flops, pick_precision
from engine.logger import Logger, Window
from engine.modes import evaluating, swapped
from engine.optim import EMA, schedule
from engine.options import OptimOptions, ParallelOptions
from engine.parallel import Parallel, clip, no_sync, wrap
from engine.run import Run
from engine.startup import digest, fingerprint
from engine.state import load_state, read_state, tensors_of
from engine.watch import Watch

Loss = Callable[[nn.Module, dict, int], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Phase:
    """One optimizer's part of a step."""

    name: str  # entry of the checkpoint that holds the weights: "model", "discriminator"
    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss  # (module as wrapped for training, micro-batch, step) -> (loss, figures)
    optimizer_name: str = "optimizer"  # entry of the checkpoint that holds the optimizer's state
    first_step: int = 0  # the phase is skipped before
    caller: nn.Module | None = None  # what a step calls, if not `module`: a module around it
    wrapped: nn.Module = field(init=False)


class Task(Protocol):
    """What is trained. `unit` names what a step counts (pictures, tokens), `units` how many of it a sample is."""

    phases: list[Phase]
    unit: str
    units: int
    flops: float  # of one sample, forward and backward; 0 where unknown

    def meta(self) -> dict: ...
    def validate(self) -> dict[str, float]: ...
    def preview(self, path: Path) -> None: ...
    def after_step(self, step: int) -> str | None: ...  # something that the user must hear, or None
    def at_end(self) -> str | None: ...  # the same, when all steps are done


class Feed(Protocol):
    """What this rank trains on."""

    steps_per_epoch: int
    order: dict  # what decides which samples a step sees; a resumed run must have the same

    def batches(self, start: int, stop: int) -> Iterable[dict]: ...  # of steps start to stop - 1; axis 0 is the sample
    def probe(self) -> dict: ...  # samples that all ranks should find alike


class Trainer:
    """Trains `task` from where its checkpoint stands to the last step."""

    def __init__(
        self,
        task: Task,
        optim: OptimOptions,
        run: Run,
        context: Context,
        feed: Feed,
        parallel: Parallel | None = None,
    ):
        self.task, self.optim, self.run, self.context, self.feed = task, optim, run, context, feed
        self.total, self.order = optim.max_steps or optim.epochs * feed.steps_per_epoch, feed.order
        self.parallel = parallel or Parallel(ParallelOptions(), context, optim)
        self.writer = self.parallel.writer(run.options.timeout_minutes)
        self.accumulate = optim.gradient_accumulation_steps
        if optim.global_batch_size % (context.world * self.accumulate):
            raise ValueError(f"--global-batch-size {optim.global_batch_size}: must be a multiple of {context.world} "
                             f"processes x {self.accumulate} --gradient-accumulation-steps")  # fmt: skip
        self.dtype = pick_precision(optim.mixed_precision, context.device, "--mixed-precision")
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=self.dtype == torch.float16)
        self.ema = EMA(task.phases[0].module, optim.ema_decay) if optim.ema else None
        self.step, self.stop_signal = 0, 0
        schedule(optim.lr_schedule, 0, self.total, optim.warmup_steps, optim.lr_final)  # a wrong name is said at once
        config = {**asdict(optim), **asdict(run.options), **self.order}
        self.logger = Logger(run.folder if context.is_main else None,
                             run.options.wandb_project if run.options.wandb else None, config)  # fmt: skip

    # ---- state

    def papers(self) -> dict:
        """What a checkpoint says beside its tensors."""
        found = {"steps": self.step, "meta": self.task.meta(), "order": self.order, "args": asdict(self.optim)}
        return found | ({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {})

    def payload(self) -> dict:
        """Everything that a resumed run needs, with the published entries by their published names."""
        state = self.papers()
        for phase in self.task.phases:
            state[phase.name] = phase.module.state_dict()
            state[phase.optimizer_name] = phase.optimizer.state_dict()
        return state | ({"ema": self.ema.state} if self.ema is not None else {})

    def load(self, path: Path, flag: str) -> None:
        """Continue from a checkpoint: ours of either kind, or one of the published training programs."""
        state = read_state(path, flag)
        mine, held = self.task.meta(), state.get("meta", {})
        different = [f"{name} was {value}, is {self.order.get(name)}" for name, value in state.get("order", {}).items()
                     if self.order.get(name) != value]  # fmt: skip
        different += differing(held, mine)
        if different:
            raise ValueError(f"{flag} {path}: cannot go on exactly, since {'; '.join(different)}. Give the same "
                             "data and flags, or start a new run from these weights with --finetune")  # fmt: skip
        needed = [name for phase in self.task.phases for name in (phase.name, phase.optimizer_name)]
        missing = [name for name in (*needed, "steps") if name not in state]
        if missing:
            raise ValueError(f"{flag} {path}: has no {', '.join(missing)}; --finetune starts from its weights at "
                             "step 0")  # fmt: skip
        for name in ("kind", "model"):
            if held.get(name, mine[name]) != mine[name]:
                raise ValueError(f"{flag} {path}: holds the {name} {held[name]}, this run trains {mine[name]}")
        try:
            load_state(path, state, self.task.phases, self.ema, flag)
        except ValueError as error:
            raise error if str(path) in str(error) else ValueError(f"{flag} {path}: {error}") from error
        model = state[self.task.phases[0].name]
        self.parallel.origin = fingerprint(model.items()) if model is not None else digest(state["files"])
        if "scaler" in state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["steps"])

    def resume(self, checkpoint: str | None, flag: str) -> None:
        """Go on where this run stopped, if --resume asks and it was ever saved; else from `checkpoint`, if given."""
        found = None
        if self.run.resumes:
            # One rank looks, so that all go on from the same step; without a shared folder the others say so.
            found = self.context.on_main(lambda: newest_checkpoint(self.run.stores, self.logger.say))
        if found is not None:
            self.load(found, "--resume")
        elif checkpoint:
            self.load(Path(checkpoint), flag)
        if self.step:
            self.logger.rewind(self.step)
            self.logger.say(f"resumed at step {self.step} of {self.total}")

    def save(self) -> None:
        """Write the checkpoint. Where it goes to two folders, one that cannot be written does not keep it from the
        other; a sharded one goes to one, which all processes must see."""
        if self.writer is not None:
            self.saved()
            path = self.run.stores[-1].path(self.step, sharded=True)
            self.writer.save(path, tensors_of(self.task.phases, self.ema), self.papers())
            if not self.parallel.options.async_ckpt:
                self.saved()
            return

        def write() -> None:
            payload, failures = self.payload(), []
            for store in self.run.stores:
                try:
                    self.logger.say(f"saved {store.save(self.step, payload)}")
                except OSError as error:
                    failures.append(error)
            if failures:
                raise failures[0]

        self.context.on_main(write)

    def saved(self) -> None:
        """See a sharded checkpoint to its end, if one is being written."""
        if path := self.writer and self.writer.finish():
            self.context.on_main(lambda: self.run.stores[-1].prune(int(path.name)))
            self.logger.say(f"saved {path}")

    # ---- the loop

    def check_alike(self) -> None:
        """ValueError where the ranks have other models, data, steps or weights."""
        if self.context.world == 1:
            return
        if self.writer is not None:
            self.writer.check_shared(self.run.stores[-1].folder)
        states = [item for phase in self.task.phases for item in phase.module.state_dict().items()]
        self.context.alike({
            "the model": self.task.meta(),
            "the number and order of samples": self.order,
            "the data (a hash of a hundred samples)": fingerprint(self.feed.probe().items()),
            "the step": self.step,
            "the weights (a hash)": self.parallel.origin if self.parallel.sharded else fingerprint(states),
        })  # fmt: skip

    def fit(self) -> None:
        """Train to the last step, to --max-minutes, or to a signal; leaves a checkpoint of where it ended."""
        context, task, options = self.context, self.task, self.run.options
        self.check_alike()
        for phase in task.phases:
            if self.optim.compiles(context.device.type) and not self.parallel.sharded:
                phase.module.compile()
            phase.wrapped = wrap(phase.caller or phase.module, context)
            phase.wrapped.train()
        if self.optim.compile and not self.optim.compiles(context.device.type):
            self.logger.say(f"--compile: left out on {context.device.type}; --compile-on-cpu insists")
        parameters = sum(p.numel() for p in task.phases[0].module.parameters())
        self.logger.say(f"{self.run.folder}: {parameters / 1e6:.1f}M parameters, {context.world} process(es) on "
                        f"{context.device}, {str(self.dtype).removeprefix('torch.')}, "
                        f"{max(0, self.total - self.step)} steps to go")  # fmt: skip
        previous = self.catch_signals()
        began, saved_at, why = time.monotonic(), self.step, ""
        window, watch = Window(self.step), Watch(context, options.timeout_minutes)
        bar = tqdm(total=self.total, initial=self.step, unit="step", disable=None if context.is_main else True)
        try:
            watch.expect(f"loading the batch of step {self.step}")
            for batch in self.feed.batches(self.step, self.total):
                watch.expect(f"step {self.step}")
                window.add(self.train_step(batch))
                self.step += 1
                bar.update()
                if message := task.after_step(self.step):
                    self.logger.say(message)
                if self.due(options.log_every):
                    self.log(window, bar)
                    window = Window(self.step)
                watch.expect(f"saving, validating or drawing after step {self.step - 1}")
                paused = time.monotonic()
                if self.writer is not None and self.writer.ready():
                    self.saved()
                if self.due(options.ckpt_every):  # first, so that nothing below can lose the steps before it
                    self.save()
                    saved_at = self.step
                if self.due(options.val_every):
                    self.validate()
                if self.due(options.preview_every):
                    self.preview()
                window.began += time.monotonic() - paused  # rates are those of training
                watch.expect(f"loading the batch of step {self.step}")
                late = options.max_minutes is not None and time.monotonic() - began > 60 * options.max_minutes
                if context.any(bool(late or self.stop_signal)):
                    why = "signal" if context.any(bool(self.stop_signal)) else "--max-minutes"
                    break
            watch.expect("saving the last step")
            if saved_at != self.step:
                self.save()
            self.saved()
        finally:
            watch.end()
            for phase in task.phases:
                phase.wrapped = phase.module  # DDP would hold the process group beyond its end
            bar.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if why:
            self.logger.say(f"stopped at step {self.step} of {self.total} ({why}); everything is saved, "
                            "--resume goes on")  # fmt: skip
        elif message := task.at_end():
            self.logger.say(message)
        self.logger.close()
        context.barrier()  # a launcher counts from the first process that leaves
        if why == "signal":
            raise SystemExit(128 + (self.stop_signal or signal.SIGTERM))

    def train_step(self, batch: dict) -> dict[str, Tensor]:
        """One optimizer step of every phase; the step's figures, means over its micro-batches."""
        # Dropout is a function of (seed, step, rank), so that a resumed run draws what an uninterrupted one would.
        torch.manual_seed(((self.optim.global_seed * 1_000_003 + self.step) * 65_537 + self.context.rank) % 2**63)
        batch = {k: v.to(self.context.device, non_blocking=True) for k, v in batch.items()}
        parts = [dict(zip(batch, values)) for values in zip(*(v.chunk(self.accumulate) for v in batch.values()))]
        figures: dict[str, Tensor] = {}
        factor = schedule(self.optim.lr_schedule, self.step, self.total, self.optim.warmup_steps, self.optim.lr_final)
        for phase in self.task.phases:
            if self.step < phase.first_step:
                continue
            for part in parts:
                reduces = part is parts[-1] or self.parallel.options.reduce_every_part
                with nullcontext() if reduces else no_sync(phase.wrapped):
                    with self.autocast():
                        loss, parts_of_loss = phase.loss(phase.wrapped, part, self.step)
                    self.scaler.scale(loss / self.accumulate).backward()
                total = "loss" if phase is self.task.phases[0] else f"{phase.name}_loss"
                for name, value in {**parts_of_loss, total: loss.detach()}.items():
                    figures[name] = figures.get(name, 0.0) + value / self.accumulate
            figures[f"{phase.name}_grad_norm"] = self.apply(phase, factor, batch, figures[total])
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.task.phases[0].module)
        return figures

    def apply(self, phase: Phase, factor: float, batch: dict, loss: Tensor) -> Tensor:
        """Clip and step the optimizer; the gradient norm before. A loss that is not finite ends the run unapplied."""
        for group in phase.optimizer.param_groups:
            group["lr"] = self.optim.lr * factor
        self.scaler.unscale_(phase.optimizer)
        norm = clip(phase.module.parameters(), self.optim.max_grad_norm)
        if self.scaler.is_enabled():  # its scale may be too large for a gradient, never for a loss
            broken = self.context.any(not bool(loss.isfinite()))
        else:
            broken = not bool(norm.isfinite())
        if broken:
            samples = batch["index"].tolist() if "index" in batch else "unknown"
            ranks = self.context.gather(samples)
            path = self.run.folder / f"not-finite-{self.step:07d}.json"
            if self.context.is_main:
                write_json(path, {"step": self.step, "phase": phase.name, "samples of each rank": ranks})
            raise FloatingPointError(f"step {self.step}: loss or gradient of {phase.name} are not finite; its weights "
                                     f"are those of the step before. Samples of this rank: {samples}; of all: {path}")
        self.scaler.step(phase.optimizer)  # with fp16 it skips steps whose gradients overflowed
        phase.optimizer.zero_grad(set_to_none=True)
        return norm

    # ---- beside the loop

    def due(self, every: int) -> bool:
        """Every so many steps and at the last; 0: never."""
        return every > 0 and (self.step % every == 0 or self.step == self.total)

    def log(self, window: Window, bar: tqdm) -> None:
        task, context = self.task, self.context
        figures = context.mean(window.means())
        rate = (self.step - window.first_step) * self.optim.global_batch_size / window.seconds()
        figures |= {f"{task.unit}_per_s": rate * task.units, "lr": task.phases[0].optimizer.param_groups[0]["lr"]}
        peak = peak_flops(context.device)
        if task.flops and peak:
            figures["mfu"] = rate * task.flops / (peak * context.world)
        figures |= self.progress()
        self.logger.record(self.step, figures)
        left = timedelta(seconds=int((self.total - self.step) * self.optim.global_batch_size / rate))
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        bar.set_postfix_str(f"loss {figures['loss']:.3f}", refresh=False)
        self.logger.say(f"step {self.step}/{self.total}  {shown}  {left} left")

    def progress(self) -> dict[str, float]:
        """Epochs and FLOPs of all steps up to this one; of the step alone, so that a resumed run counts on."""
        epochs, flops = epochs_after(self.step, self.order), self.step * self.optim.global_batch_size * self.task.flops
        return {name: value for name, value in (("epoch", epochs), ("flops", flops)) if value}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.context.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def averaged(self):
        """A context in which the first phase's module holds the moving average, where there is one."""
        return swapped(self.task.phases[0].module, self.ema.state) if self.ema is not None else nullcontext()

    def validate(self) -> None:
        with evaluating(self.task.phases[0].module), self.averaged(), self.autocast():
            figures = self.context.mean(self.task.validate())
        if figures:
            self.logger.record(self.step, figures)
            self.logger.say(f"step {self.step}/{self.total}  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))

    def preview(self) -> None:
        if self.context.is_main or self.parallel.sharded:  # of sharded weights, all compute it
            with evaluating(self.task.phases[0].module), self.averaged():
                self.task.preview(self.run.folder / "previews" / f"{self.step:07d}.png")
        self.context.barrier()

    def catch_signals(self) -> dict:
        """Ctrl-C and SIGTERM end the run after the step in hand; the handlers that were there before."""

        def note(number, frame):
            self.stop_signal = number

        try:
            return {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever owns it handles signals
            return {}
