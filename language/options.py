"""Options of extracting caption features, and of converting published ones. Torch-free."""

from dataclasses import dataclass, field
from typing import Literal

from engine.options import at_least, check_max_bad


@dataclass
class CaptionOptions:
    """Which captions."""

    data_path: str
    """A .jsonl list of captions, or a folder of lists."""
    data_start: int = 0
    """The first of the lists, as sorted, from 0."""
    data_end: int | None = None
    """The last one, included; default: all."""
    caption_key: str = "blip"
    """blip, llava or llava_first: `text`, or that caption of the published list there; anything else names the entry of
    a line that holds its caption."""
    trunc_caption: bool = False
    """Cut captions at the first full stop."""
    clean: bool = True
    """Clean captions as published models want them (language/README.md)."""
    num_workers: int = 24
    """Processes that read and clean captions, on each rank; at most one per processor core. 0: the main process does
    it."""


@dataclass
class FeatureOutput:
    """How features are stored."""

    t5_path: str
    """Where the features go: a folder for each list, named as the list up to its first dot."""
    dtype_of_store: Literal["bf16", "fp16"] = "bf16"
    """bf16 and fp16 take the same room."""
    shard_size: int = 2000
    """Captions in a shard; a stopped run loses the shard in hand, and holds as much in memory."""

    def __post_init__(self) -> None:
        at_least(self, 1, "shard_size")


@dataclass
class Encoding:
    """The text encoder."""

    t5_model_path: str = "./pretrained_models/t5-ckpt"
    """The folder that holds the encoder's; where it is not there, the encoder is fetched from the Hub."""
    t5_model_type: str = "flan-t5-xl"
    """flan-t5-xl, t5-v1_1-xl, t5-v1_1-xxl, an id of the Hub, or a folder."""
    precision: str = "auto"
    """bf16, fp16 or none (float32); auto: bf16 where the device computes in it."""
    batch_size: int = 64
    """Captions encoded at once; they are sorted by length."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""
    max_bad: float = 0.001
    """End with an error if a larger share of the lines has no caption."""
    global_seed: int = 0
    """Kept for old scripts: extraction draws nothing at random."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        check_max_bad(self)


@dataclass
class ExtractFeatures:
    captions: CaptionOptions
    output: FeatureOutput
    encoding: Encoding = field(default_factory=Encoding)


@dataclass
class Published:
    """What is converted."""

    published: str
    """The folder of the published layout, {list}/{line}.npy."""
    data_path: str | None = None
    """The lists that they were made of, to know how many lines there are; default: up to the last file."""
    max_bad: float = 0.001
    """End with an error if a larger share of the lines has a file that cannot be read."""

    def __post_init__(self) -> None:
        check_max_bad(self)


@dataclass
class ConvertFeatures:
    source: Published
    output: FeatureOutput
