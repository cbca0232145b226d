"""Options of the evaluation commands. Torch-free."""

from dataclasses import dataclass, field

from tyro.conf import Positional

from dataset.options import DataOptions
from engine.options import OptimOptions, RunOptions, at_least, check_max_bad


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


@dataclass
class PlotScaling:
    runs: tuple[str, ...]
    """NAME=DIR for each training run: DIR is the run's folder (or its metrics.jsonl), NAME stands in the legend."""
    scores: tuple[str, ...] = ()
    """NAME=FILE for each scored checkpoint of these runs, as many for a run as there are: FILE is the evaluator's
    SAMPLES.json. NAME=EPOCHS:FILE where it does not tell how long its GPT was trained."""
    output: str = "scaling.png"
    """The picture."""


@dataclass
class NetOptions:
    """By which network pictures are compared."""

    feature_net: str | None = None
    """The network: Inception's weights (pt_inception-2015-12-05-6726825d.pth), or a classifier of
    evaluations/classifier.py. Default: Inception's weights, fetched once."""
    batch_size: int = 64
    """Pictures that go through the network at once."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")


@dataclass
class CachedNetOptions(NetOptions):
    cache: bool = True
    """Keep the features beside the pictures' file (NAME.features-NETWORK.safetensors), so that the next call is
    quick."""


@dataclass
class FeatureOptions(CachedNetOptions):
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""


@dataclass
class EvaluatorOptions:
    ref_batch: Positional[str]
    """The reference: an npz with statistics (mu, sigma, mu_s, sigma_s), pictures (arr_0) or both, or a folder."""
    sample_batch: Positional[str]
    """The pictures to score: an npz (arr_0), or a folder."""
    force: bool = False
    """Score a pairing that does not fit, too; the report says what is wrong with it."""


@dataclass
class Evaluate:
    evaluator: EvaluatorOptions
    features: FeatureOptions = field(default_factory=FeatureOptions)


@dataclass
class ReferenceOptions:
    output: str = "reference.npz"
    """The reference file."""
    image_size: int = 256
    """Side in pixels to which pictures are centre-cropped."""
    keep: int = 10_000
    """Pictures that are stored in it, for precision and recall, drawn from all."""
    seed: int = 0
    """Decides which."""
    max_bad: float = 0.001
    """End with an error if a larger share of the pictures cannot be read."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size")
        at_least(self, 0, "keep")
        check_max_bad(self)


@dataclass
class Reference:
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    data: DataOptions = field(default_factory=DataOptions)
    features: NetOptions = field(default_factory=NetOptions)
