"""Options of training a GPT on extracted codes, and of extracting them. Torch-free."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import arg

from autoregressive.options import EncoderOptions
from dataset.options import DataOptions
from engine.config import Auto
from engine.options import OptimOptions, ParallelOptions, RunOptions, at_least, check_max_bad
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


@dataclass
class GPTTraining:
    """What both kinds of GPT are told."""

    gpt_model: str = "GPT-B"
    """GPT-B, -L, -XL, -XXL, -XXXL, -1B, -3B, -7B (published), GPT-1M, -5M, -25M."""
    gpt_ckpt: Annotated[str | None, arg(aliases=("--gpt-resume",))] = None
    """A training checkpoint to go on from; with --finetune any weights, to start from at step 0."""
    finetune: bool = False
    """Take the weights of --gpt-ckpt alone, not its optimizer and step."""
    gpt_type: str = "c2i"
    """c2i (class-conditional) or t2i (text-conditional), as the command trains."""
    cls_token_num: int = 1
    """Condition tokens: 1 for c2i, 120 for t2i."""
    vocab_size: int | Auto = "auto"
    """Codes in the vocabulary; auto: the codes' or the tokenizer's, else 16384."""
    num_classes: int | Auto = "auto"
    """Classes of a c2i GPT; auto: the store's, else 1000."""
    image_size: int | Auto = "auto"
    """Side of the pictures in pixels; auto: the codes', else the published default."""
    downsample_size: int | Auto = "auto"
    """Pixels per code; auto: the codes' or the tokenizer's, else 16."""
    dataset: str = "imagenet_code"
    """imagenet_code: codes extracted beforehand, of whatever pictures; t2i: lists of captioned pictures."""
    n_kv_head: int | None = None
    """Grouped key/value heads (fewer than query heads; smaller caches)."""
    dropout_p: float = 0.1
    """Dropout on the two residual branches; none with --drop-path-rate."""
    token_dropout_p: float = 0.1
    """Dropout on the embedded sequence."""
    drop_path_rate: Annotated[float, arg(aliases=("--drop-path",))] = 0.0
    """Drop whole branches of samples, rising linearly with depth to this rate."""
    class_dropout_prob: float = 0.1
    """How often a condition is replaced by 'none', which guidance needs."""
    num_workers: int = 24
    """Processes that read data, per rank (never more than there are cores); a code store is read by one thread. 0:
    nothing beside the main process."""


@dataclass(kw_only=True)
class CodeTraining(GPTTraining):
    code_path: str
    """The codes: a code store, or the published layout of one .npy per picture."""


@dataclass
class HoldOut:
    val_fraction: float = 0.0
    """Hold out this share of the training data for the validation loss."""
    preview_cfg_scale: float = 4.0
    """Guidance scale of the previews, which are drawn when --vq-ckpt gives the tokenizer."""


@dataclass
class ValidationOptions(HoldOut):
    val_code_path: str | None = None
    """Held-out codes, instead of --val-fraction."""
    preview_labels: list[str] | None = None
    """Classes of the preview grid, by number or name; default: the first eight."""


@dataclass(kw_only=True)
class TextTraining(GPTTraining):
    gpt_type: str = "t2i"
    cls_token_num: int = 120
    dataset: str = "t2i"
    data_path: str
    """A .jsonl list of captioned pictures, or a folder of lists."""
    t5_feat_path: str | None = None
    """Caption features of language/extract_t5_feature.py, or the published layout, in a folder for each list. Without
    it captions are encoded in training by --t5-path, for small sets."""
    short_t5_feat_path: str | None = None
    """Features of short captions."""
    short_share: float = 0.3
    """How often the short caption is drawn, where there is one."""
    code_path: str | None = None
    """Codes of extract_codes_t2i.py, in a folder for each list. Without it pictures are encoded in training by
    --vq-ckpt."""
    data_start: int = 0
    """The first of --data-path's lists, as sorted."""
    data_end: int | None = None
    """The last one, included; default: all."""
    caption_key: str = "blip"
    """Where captions are encoded in training: blip, llava or llava_first of a published line's "text", or a key of the
    line. A text that is no list is taken as it is."""
    trunc_caption: bool = False
    """There, too: take a caption's first sentence alone."""
    max_bad: float = 0.001
    """End with an error if a larger share of the samples cannot be used; their neighbours take their places."""

    def __post_init__(self) -> None:
        check_max_bad(self)
        if not 0 <= self.short_share <= 1:
            raise ValueError(f"--short-share {self.short_share}: is a share of the draws, from 0 to 1")


@dataclass
class TrainC2I:
    model: CodeTraining
    optim: OptimOptions = field(default_factory=lambda: OptimOptions(compile=True))
    run: RunOptions = field(default_factory=RunOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)


@dataclass
class TrainSharded(TrainC2I):
    """The same, sharded."""

    run: RunOptions = field(default_factory=lambda: RunOptions(wandb_project="c2i_fsdp"))
    parallel: ParallelOptions = field(default_factory=lambda: ParallelOptions(data_parallel="fsdp"))


@dataclass
class TrainT2I:
    model: TextTraining
    optim: OptimOptions = field(default_factory=lambda: OptimOptions(compile=True))
    run: RunOptions = field(default_factory=RunOptions)
    validation: HoldOut = field(default_factory=lambda: HoldOut(preview_cfg_scale=7.5))
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)


@dataclass(kw_only=True)
class Extraction:
    code_path: str
    """The folder of the code store; of several lists: of a folder with a store for each."""
    image_size: int = 256
    """Side of the crops in pixels."""
    batch_size: int = 32
    """Crops encoded at once."""
    shard_size: int = 2000
    """Pictures in a shard; a stopped extraction loses the shard in hand."""
    max_bad: float = 0.001
    """End with an error if a larger share of the pictures cannot be read."""
    precision: str = "none"
    """none (float32), bf16 or fp16 for the encoder; published codes are float32's."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""
    global_seed: int = 0
    """Kept for old scripts: extraction draws nothing at random."""
    debug: bool = False
    """The first 64 pictures only, to see that everything fits."""

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size", "batch_size", "shard_size")
        check_max_bad(self)


@dataclass(kw_only=True)
class CropExtraction(Extraction):
    ten_crop: bool = False
    """Ten crops (four corners, centre, and their mirror images) of each range instead of the centre crop and its
    mirror."""
    crop_range: tuple[float, ...] = (1.1,)
    """With --ten-crop: first centre-crop to range times --image-size. Several ranges give ten crops each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ten_crop and min(self.crop_range, default=0) < 1:
            raise ValueError(f"--crop-range {min(self.crop_range, default='')}: must be at least 1, the share of "
                             "--image-size to crop from")  # fmt: skip


@dataclass(kw_only=True)
class ListExtraction(Extraction):
    image_size: int = 512
    """Side of the crops in pixels; pictures that are smaller are left out."""


@dataclass
class ListOptions:
    """Lists of captioned pictures."""

    data_path: str
    """A .jsonl list, or a folder of lists."""
    data_start: int = 0
    """The first of the folder's lists, as sorted."""
    data_end: int | None = None
    """The last one, included; default: all."""
    num_workers: int = 24
    """Processes that read pictures, per rank (never more than there are cores)."""


@dataclass
class ExtractTextCodes:
    extraction: ListExtraction
    lists: ListOptions
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)


@dataclass
class ExtractCodes:
    extraction: CropExtraction
    data: DataOptions = field(default_factory=lambda: DataOptions(num_workers=24))
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)


@dataclass
class ConvertCodes:
    published: str
    """The folder that holds {dataset}{size}_codes and {dataset}{size}_labels."""
    code_path: str
    """The folder of the new code store."""
    image_size: int | None = None
    """Which size, where the folder holds several."""
    vocab_size: int = 16384
    """Codes in the vocabulary of the tokenizer that made them."""


@dataclass
class Drawing:
    code_path: str
    """A code store, or the published layout."""
    pictures: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    """Numbers of the pictures."""
    crop: int = 0
    """Which of a picture's crops."""
    output: str = "codes.png"
    """The grid."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""


@dataclass
class DrawCodes:
    drawing: Drawing
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
