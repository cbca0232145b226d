"""Options of the samplers. Torch-free."""

from dataclasses import dataclass, field, replace

from autoregressive.options import EncoderOptions, GPTOptions, MachineOptions, SamplingOptions
from engine.config import Auto
from engine.options import at_least
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


@dataclass
class SheetOptions:
    """A grid of pictures."""

    num_images: int | None = None
    """How many pictures; what they are of is repeated in turn. Default: one of each."""
    per_row: int = 4
    """Pictures side by side in the grid."""
    seed: int = 0
    """Fixes the pictures, whatever the batch and the device."""
    output: str = "sample_c2i.png"
    """The grid, a .png file."""
    single_dir: str | None = None
    """Write each picture as a PNG of its own into this folder, too."""

    def __post_init__(self):
        at_least(self, 1, "num_images", "per_row")
        if not self.output.lower().endswith(".png"):
            raise ValueError(f"--output {self.output}: must end in .png")


@dataclass
class LabelOptions:
    labels: list[str] | None = None
    """Classes by number or name; default: the eight of the published demo, or the model's first eight."""


@dataclass
class PromptListOptions:
    prompts: list[str] | None = None
    """What the pictures show, each in quotes; an empty one: whatever the model makes of none. Default: four of the list
    that ships."""
    prompt_file: str | None = None
    """Instead: a list of prompts (csv, tsv, jsonl or txt), or - for a prompt a line on standard input."""

    def check_prompts(self) -> None:
        if self.prompts and self.prompt_file:
            raise ValueError("--prompts and --prompt-file: give one of them")


@dataclass
class SampledSheetOptions(SheetOptions):
    batch_size: int = 64
    """Pictures sampled at once."""
    prefix_image: str | None = None
    """Complete this picture: the codes of its top are kept, and the rest is sampled."""
    keep_rows: int | Auto = "auto"
    """Rows of codes of --prefix-image that are kept; auto: the upper half."""
    keep_columns: int = 0
    """Codes that are kept of the row after those."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "batch_size")
        at_least(self, 0, "keep_rows", "keep_columns")
        if self.prefix_image is None and (self.keep_rows != "auto" or self.keep_columns):
            raise ValueError("--keep-rows and --keep-columns: of which picture? Give --prefix-image")


@dataclass
class GridOptions(SampledSheetOptions, LabelOptions):
    pass


@dataclass
class PromptOptions:
    negative_prompt: str | None = None
    """What guidance leads away from, instead of from no caption."""
    left_padding: bool = True
    """Move captions to the right end of the condition, next to the codes; --no-left-padding leaves them at its left, as
    the encoder gives them."""


@dataclass
class PromptGridOptions(SampledSheetOptions, PromptListOptions):
    output: str = "sample_t2i.png"

    def __post_init__(self):
        super().__post_init__()
        self.check_prompts()


@dataclass
class SampleC2I:
    gpt: GPTOptions = field(default_factory=GPTOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    grid: GridOptions = field(default_factory=GridOptions)


def text_gpt() -> GPTOptions:
    return GPTOptions(gpt_type="t2i", cls_token_num=120)


def with_text_tokens(gpt: GPTOptions) -> GPTOptions:
    """With the condition tokens of a text-conditional model, where the flag has the other kind's default."""
    return replace(gpt, cls_token_num=text_gpt().cls_token_num) if gpt.cls_token_num == 1 else gpt


@dataclass
class FromPrompts:
    """What samplers of prompts share."""

    gpt: GPTOptions = field(default_factory=text_gpt)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(cfg_scale=7.5, top_k=1000))
    prompt: PromptOptions = field(default_factory=PromptOptions)


@dataclass
class SampleT2I(FromPrompts):
    grid: PromptGridOptions = field(default_factory=PromptGridOptions)


@dataclass
class BatchOptions:
    """How pictures are made by the thousand."""

    per_proc_batch_size: int | Auto = 32
    """Pictures sampled at once by each process, at most; auto: as many as its free memory takes and as gain anything,
    and fewer where they do not fit after all."""
    global_seed: int = 0
    """Fixes labels and pictures, whatever the batch and the number of processes."""
    decode_batch_size: int = 16
    """Pictures decoded at once."""

    def __post_init__(self):
        at_least(self, 1, "per_proc_batch_size", "decode_batch_size")


@dataclass
class BulkOptions(BatchOptions):
    balance: bool = False
    """Equally many pictures of each class: as many pictures in a row as there are classes hold each class once, in
    shuffled order. Otherwise labels are independent and uniform, as published."""


@dataclass
class ManyOptions(BulkOptions):
    image_size_eval: int = 256
    """Resize pictures to this side (bicubic) before they are written; evaluators of 256-px models want 256."""
    sample_dir: str = "samples"
    """Folder of the PNGs' folder and of the npz."""
    num_fid_samples: int = 50_000
    """How many pictures."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "image_size_eval", "num_fid_samples")


@dataclass
class SampleC2IMany:
    gpt: GPTOptions = field(default_factory=GPTOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    machine: MachineOptions = field(default_factory=lambda: MachineOptions(compile=True))
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(cfg_scale=1.5, top_k=0))
    many: ManyOptions = field(default_factory=ManyOptions)


@dataclass
class TextManyOptions(BatchOptions):
    prompt_csv: str = "evaluations/t2i/prompts.tsv"
    """The list of prompts: a csv, tsv, jsonl or txt file."""
    sample_dir: str = "samples_parti"
    """Folder of the samples' folder, with images/, captions.txt and result.jsonl."""
    num_fid_samples: int = 30_000
    """The first so many prompts, at most."""

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_fid_samples")


@dataclass
class SampleT2IMany(FromPrompts):
    many: TextManyOptions = field(default_factory=TextManyOptions)
