"""Options of the text-to-image evaluation. Torch-free."""

from dataclasses import dataclass, field
from typing import Literal

from engine.options import at_least
from evaluations.options import FeatureOptions


@dataclass
class T2IOptions:
    fake_dir: str
    """The samples: this folder holds images/ with the pictures, and captions.txt with a line for each in their natural
    order. The report, score.txt and score.json, is written into it."""
    ref_dir: str | None = None
    """Real pictures for FID: with --ref-data coco2014 the folder with val2014/ in it, else that with --ref-type in it.
    Without it the CLIP score alone is computed."""
    ref_data: str = "coco2014"
    """coco2014, or a name of your own."""
    ref_type: str = "train/valid/test"
    """The folder of --ref-dir that holds the pictures, of any sizes, where --ref-data is not coco2014."""
    how_many: int = 30000
    """The CLIP score is the mean over the first so many pictures. (FID always takes all.)"""
    clip_model4eval: str = "ViT-B/32"
    """The CLIP of the CLIP score: ViT-B/32 (OpenAI's), ViT-G/14 (OpenCLIP's ViT-g-14, laion2b_s12b_b42k), or WO: no
    CLIP score."""
    eval_res: int = 256
    """Side in pixels that centre squares of all pictures are brought to, real and sampled."""
    clip_path: str | None = None
    """Folder with the weights and the tokenizer of --clip-model4eval, as transformers keeps them. Default: fetched once
    from the Hub."""
    prompts: str | None = None
    """Take the captions from this list (csv, tsv, jsonl or txt) instead of captions.txt."""
    fid_features: Literal["inception", "clip"] = "inception"
    """Compare real and sampled pictures by Inception's features, or by the embeddings of CLIP ViT-B/32 (then
    --feature-net is its folder; default: --clip-path, or from the Hub)."""
    force: bool = False
    """Where pictures and captions differ in number, pair the first with the first as far as both go."""

    def __post_init__(self) -> None:
        at_least(self, 1, "how_many", "eval_res")


@dataclass
class EvaluateT2I:
    t2i: T2IOptions
    features: FeatureOptions = field(default_factory=lambda: FeatureOptions(batch_size=8))
