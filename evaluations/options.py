"""Options of the evaluation commands. Torch-free."""

from dataclasses import dataclass, field

from dataset.options import DataOptions
from engine.options import OptimOptions, RunOptions


@dataclass
class ClassifierTraining:
    width: int = 64
    """Channels of the first of three stages; the next have twice and four times as many."""
    image_size: int = 32
    """Side of the pictures in pixels."""
    val_data_path: str | None = None
    """Held-out pictures, in a folder with the same classes. cifar10 and digits bring a test split of their own."""
    val_fraction: float = 0.0
    """Instead: hold out this share of --data-path's pictures."""
    output: str | None = None
    """The finished classifier (.safetensors); default: classifier.safetensors in the run's folder."""


@dataclass
class TrainClassifier:
    training: ClassifierTraining = field(default_factory=ClassifierTraining)
    data: DataOptions = field(default_factory=lambda: DataOptions(num_workers=16))
    optim: OptimOptions = field(
        default_factory=lambda: OptimOptions(
            epochs=30, lr=2e-3, lr_schedule="cosine", lr_final=0.01, warmup_steps=50, weight_decay=0.05
        )
    )
    run: RunOptions = field(default_factory=lambda: RunOptions(results_dir="results_classifier", preview_every=0))


@dataclass
class Scoring:
    classifier: str
    """The classifier that reads the pictures: a file or a checkpoint of evaluations/classifier.py."""
    samples: str
    """An npz of autoregressive/sample/sample_c2i_ddp.py, with the classes that were asked for."""
    batch_size: int = 256
    """Pictures read at once."""
    output: str | None = None
    """Write the figures here as JSON, too."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""


@dataclass
class Score:
    scoring: Scoring
    data: DataOptions = field(default_factory=lambda: DataOptions(split="test"))


@dataclass
class PlotLosses:
    runs: tuple[str, ...]
    """NAME=DIR for each training run: DIR is the run's folder (or its metrics.jsonl), NAME stands above its panels."""
    output: str = "losses.png"
    """The picture."""
