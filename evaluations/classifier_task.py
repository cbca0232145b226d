"""Training a classifier: batch of pictures and labels -> loss; the accuracy on held-out pictures.

Over several processes, batch norm takes each process's own pictures, and keeps the statistics of the first.

Axes: B pictures, H height, W width.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dataset.build import build_source
from dataset.images import Images, ImageSource
from dataset.loading import Feed, batch_loader
from dataset.options import DataOptions
from dataset.order import HELD_OUT, draw
from engine.checkpoint import save_safetensors
from engine.distributed import Context, leave
from engine.modes import evaluating
from engine.optim import adamw
from engine.run import Run
from engine.startup import join
from engine.trainer import Phase, Trainer
from evaluations.convnet import ConvNet, ConvNetConfig
from evaluations.options import ClassifierTraining, TrainClassifier


@dataclass
class Part:
    """Some rows of a source of pictures."""

    source: ImageSource
    rows: np.ndarray  # int64

    @property
    def class_names(self) -> list[str] | None:
        return self.source.class_names

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, row: int) -> str | None:
        return self.source.path(int(self.rows[row]))

    def label(self, row: int) -> int:
        return self.source.label(int(self.rows[row]))

    def open(self, row: int) -> Image.Image:
        return self.source.open(int(self.rows[row]))


class ClassifierTask:
    """Cross-entropy of the class. A step counts pictures."""

    unit, units, flops = "pictures", 1, 0.0

    def __init__(self, model: ConvNet, papers: dict, optimizer: torch.optim.Optimizer, context: Context,
                 held_out: Images, batch: int = 256, workers: int = 0):  # fmt: skip
        self.model, self.papers, self.context = model, papers, context
        self.held_out, self.batch, self.workers = held_out, batch, workers
        self.phases = [Phase("model", model, optimizer, self.loss)]
        self.accuracy: float | None = None  # of the last validation

    def meta(self) -> dict:
        return {"format": 1, "kind": "classifier", "config": asdict(self.model.config), **self.papers}

    def loss(self, module: nn.Module, batch: dict, step: int) -> tuple[Tensor, dict]:
        """batch: image float32 [B, 3, H, W] in [-1, 1], label int64 [B]."""
        logits = module(batch["image"].to(memory_format=torch.channels_last)).float()
        right = (logits.detach().argmax(1) == batch["label"]).float().mean()
        return F.cross_entropy(logits, batch["label"]), {"accuracy": right}

    def validate(self) -> dict[str, float]:
        """This rank's part of the accuracy: the mean over ranks is the share of held-out pictures read right."""
        rows = range(self.context.rank, len(self.held_out), self.context.world)
        right = sum(int(ok.sum()) for ok, _ in readings(self.model, self.held_out, rows, self.batch, self.workers))
        figures = {"val_accuracy": right * self.context.world / len(self.held_out)}
        self.accuracy = self.context.mean(figures)["val_accuracy"]
        return figures

    def preview(self, path: Path) -> None:
        """A classifier draws nothing."""

    def after_step(self, step: int) -> str | None:
        return None

    def at_end(self) -> str | None:
        return None


def readings(model: ConvNet, images: Images, rows: range, batch: int, workers: int):
    """For each batch of rows: which are read as their own label, bool [B], and the labels, int64 [B]."""
    device = model.head.weight.device
    for part in batch_loader(images, [list(rows[i : i + batch]) for i in range(0, len(rows), batch)], workers):
        read = model(part["image"].to(device, memory_format=torch.channels_last)).argmax(1).cpu()
        yield read == part["label"], part["label"]


def held_out(
    training: ClassifierTraining, data: DataOptions, source: ImageSource, seed: int
) -> tuple[ImageSource, ImageSource]:
    """The pictures to train on, and those that are held out."""
    given = bool(training.val_data_path) + bool(training.val_fraction)
    if given > 1:
        raise ValueError("--val-data-path and --val-fraction: give one of them")
    if training.val_fraction:
        if not 0 < training.val_fraction < 1 or len(source) < 2:
            raise ValueError(f"--val-fraction {training.val_fraction}: must be above 0 and below 1, of at least two "
                             f"pictures (there are {len(source)})")  # fmt: skip
        draws = draw(seed, 0, np.arange(len(source)), HELD_OUT)
        outside = draws < training.val_fraction
        outside[draws.argmin()], outside[draws.argmax()] = True, False  # neither part is empty
        return Part(source, np.flatnonzero(~outside)), Part(source, np.flatnonzero(outside))
    if training.val_data_path:
        other = build_source(data.dataset, training.val_data_path, "test")
    elif data.dataset in ("cifar10", "digits") and data.split == "train":
        other = build_source(data.dataset, data.data_path, "test")
    else:
        raise ValueError(f"--dataset {data.dataset} --split {data.split}: brings no held-out pictures; give a folder "
                         "of them by --val-data-path, or a share to hold out by --val-fraction 0.1")  # fmt: skip
    if other.class_names != source.class_names:
        raise ValueError(f"--val-data-path {training.val_data_path}: its classes are not those of --data-path")
    return source, other


def number_of_classes(source: ImageSource, path: str | None) -> int:
    labels = np.array([source.label(row) for row in range(len(source))])
    if labels.min() < 0:
        raise ValueError(f"--data-path {path}: has pictures without labels; a classifier needs a sub-folder per class, "
                         "or a list with labels")  # fmt: skip
    count = len(source.class_names) if source.class_names else int(labels.max()) + 1
    if count < 2:
        raise ValueError(f"--data-path {path}: has one class only")
    return count


def build_classifier(config: ConvNetConfig) -> ConvNet:
    """A network whose every trainable parameter has a say in the logits, as DDP wants it."""
    model = ConvNet(config)
    model.norms[:-1].requires_grad_(False)  # of the earlier feature maps: gains of 1; their statistics are learnt
    return model


def train_classifier(options: TrainClassifier) -> None:
    """Open the pictures, build the network, train it, write it, print its accuracy."""
    training, optim, data = options.training, options.optim, options.data
    if training.image_size < 8:
        raise ValueError(f"--image-size {training.image_size}: must be at least 8")
    context = join(options)
    whole = build_source(data.dataset, data.data_path, data.split)
    classes = number_of_classes(whole, data.data_path)
    source, other = held_out(training, data, whole, optim.global_seed)
    images = Images(source, training.image_size, "random", optim.global_seed, data.flips)
    feed = Feed(images, optim.global_batch_size, optim.global_seed, context.rank, context.world, data.num_workers)

    torch.manual_seed(optim.global_seed)
    model = build_classifier(ConvNetConfig(training.width, classes, training.image_size))
    model = model.to(context.device, memory_format=torch.channels_last)
    decay = 0.05 if optim.weight_decay == "auto" else optim.weight_decay
    name = f"ConvNet-{training.width}"
    papers = {"model": name, "image_size": training.image_size, "class_names": whole.class_names}
    optimizer = adamw(model, optim.lr, (optim.beta1, optim.beta2), decay)
    task = ClassifierTask(model, papers, optimizer, context, Images(other, training.image_size, "center"),
                          optim.global_batch_size, data.num_workers)  # fmt: skip
    run = Run(options.run, name, context)
    trainer = Trainer(task, optim, run, context, feed)
    trainer.resume(None, "--resume")
    trainer.fit()
    if trainer.step == trainer.total:
        if task.accuracy is None:  # a finished run was resumed, or --val-every is 0
            with evaluating(model), trainer.averaged():
                task.validate()
        finish(trainer, Path(training.output or run.folder / "classifier.safetensors"))
    leave()


def finish(trainer: Trainer, path: Path) -> None:
    """Write the weights that were scored (the moving average, where there is one), and say how well they read."""
    task, context = trainer.task, trainer.context
    if context.is_main:
        state = trainer.ema.state if trainer.ema is not None else task.model.state_dict()
        save_safetensors(path, state, {**task.meta(), "accuracy": task.accuracy})
        print(f"accuracy {task.accuracy:.4f} on {len(task.held_out)} held-out pictures -> {path}")
    context.barrier()
