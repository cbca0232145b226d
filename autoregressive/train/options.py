"""Options of training a GPT on extracted codes, and of extracting them. Torch-free."""

from dataclasses import dataclass, field

from dataset.options import DataOptions
from engine.config import Auto
from engine.options import OptimOptions, RunOptions, at_least, check_max_bad
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


@dataclass
class GPTTraining:
    code_path: str
    """The codes: a code store, or the published layout of one .npy per picture."""
    gpt_model: str = "GPT-B"
    """GPT-B, -L, -XL, -XXL, -XXXL, -1B, -3B, -7B (published), GPT-1M, -5M, -25M."""
    gpt_ckpt: str | None = None
    """A training checkpoint to go on from; with --finetune any weights, to start from at step 0."""
    finetune: bool = False
    """Take the weights of --gpt-ckpt alone, not its optimizer and step."""
    gpt_type: str = "c2i"
    """c2i: class-conditional."""
    cls_token_num: int = 1
    """Condition tokens: 1 for c2i."""
    vocab_size: int | Auto = "auto"
    """Codes in the vocabulary; auto: the store's, else 16384."""
    num_classes: int | Auto = "auto"
    """Classes; auto: the store's, else 1000."""
    image_size: int | Auto = "auto"
    """Side of the pictures in pixels; auto: the store's, else 256."""
    downsample_size: int | Auto = "auto"
    """Pixels per code; auto: the store's, else 16."""
    dataset: str = "imagenet_code"
    """imagenet_code: codes extracted beforehand, of whatever pictures."""
    n_kv_head: int | None = None
    """Grouped key/value heads (fewer than query heads; smaller caches)."""
    dropout_p: float = 0.1
    """Dropout on the two residual branches; none with --drop-path-rate."""
    token_dropout_p: float = 0.1
    """Dropout on the embedded sequence."""
    drop_path_rate: float = 0.0
    """Drop whole branches of samples, rising linearly with depth to this rate."""
    class_dropout_prob: float = 0.1
    """How often a class is replaced by 'no class', which guidance needs."""
    num_workers: int = 24
    """Processes that load codes in the published layout, per rank (never more than there are cores); a code store is
    read by one thread. 0: nothing beside the main process."""


@dataclass
class ValidationOptions:
    val_code_path: str | None = None
    """Held-out codes for the validation loss."""
    val_fraction: float = 0.0
    """Instead: hold out this share of --code-path's pictures."""
    preview_labels: list[str] | None = None
    """Classes of the preview grid, by number or name; default: the first eight."""
    preview_cfg_scale: float = 4.0
    """Guidance scale of the previews, which are drawn when --vq-ckpt gives the tokenizer."""


@dataclass
class TrainC2I:
    model: GPTTraining
    optim: OptimOptions = field(default_factory=lambda: OptimOptions(compile=True))
    run: RunOptions = field(default_factory=RunOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)


@dataclass
class Extraction:
    code_path: str
    """The folder of the code store."""
    image_size: int = 256
    """Side of the crops in pixels."""
    ten_crop: bool = False
    """Ten crops (four corners, centre, and their mirror images) of each range instead of the centre crop and its
    mirror."""
    crop_range: tuple[float, ...] = (1.1,)
    """With --ten-crop: first centre-crop to range times --image-size. Several ranges give ten crops each."""
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
        if self.ten_crop and min(self.crop_range, default=0) < 1:
            raise ValueError(f"--crop-range {min(self.crop_range, default='')}: must be at least 1, the share of "
                             "--image-size to crop from")  # fmt: skip


@dataclass
class ExtractCodes:
    extraction: Extraction
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
