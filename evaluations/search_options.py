"""Options of the search for the guidance scale. Torch-free."""

from dataclasses import dataclass, field
from math import isfinite

from autoregressive.options import GPTOptions, GuidanceOptions, MachineOptions
from autoregressive.sample.options import BulkOptions
from engine.config import Auto
from engine.options import at_least
from evaluations.options import CachedNetOptions
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


@dataclass
class SearchOptions:
    reference: str
    """What the samples are scored against: a file of statistics (VIRTUAL_imagenet256_labeled.npz, or one of
    evaluations/c2i/reference.py), or a folder of pictures."""
    cfg_scales: tuple[float, ...] = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
    """Guidance scales to try; 1 samples without guidance."""
    top_ks: tuple[int, ...] = (0,)
    """Try each scale with each of these: draw from the so many most likely codes (0: from all)."""
    top_ps: tuple[float, ...] = (1.0,)
    """The same for the nucleus: draw from the most likely codes that hold this much probability (1: from all)."""
    temperatures: tuple[float, ...] = (1.0,)
    """The same for what divides the logits."""
    num_samples: int = 5000
    """Pictures of each setting. FID of few pictures is too high; it compares settings of one search, and no others."""
    image_size_eval: int | Auto = "auto"
    """Resize pictures to this side (bicubic) before they are scored; auto: the reference's."""
    output: str = "search"
    """Folder of search.txt, search.json and search.png. The same command goes on where it was stopped; further
    scales, top-ks, top-ps and temperatures are added to what is there."""
    keep_samples: bool = False
    """Keep each setting's pictures (PNGs, npz and features, in OUTPUT/samples) when they are scored."""
    force: bool = False
    """Score a pairing that does not fit, too; the report says what is wrong with it."""

    def __post_init__(self) -> None:
        at_least(self, 4, "num_samples")  # precision and recall ask for a third nearest other one
        at_least(self, 1, "image_size_eval")
        allowed = {
            "cfg_scales": (lambda value: value >= 1 and isfinite(value), "must be at least 1 (no guidance)"),
            "top_ks": (lambda value: value >= 0, "must be at least 0 (all codes)"),
            "top_ps": (lambda value: 0 < value <= 1, "must be above 0, and 1 (all codes) at most"),
            "temperatures": (lambda value: value > 0 and isfinite(value), "must be above 0"),
        }
        for name, (fits, words) in allowed.items():
            flag, values = f"--{name.replace('_', '-')}", getattr(self, name)
            if not values:
                raise ValueError(f"{flag}: give at least one")
            for value in values:
                if not fits(value):
                    raise ValueError(f"{flag} {value}: {words}")


@dataclass
class Search:
    search: SearchOptions
    gpt: GPTOptions = field(default_factory=GPTOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    machine: MachineOptions = field(default_factory=lambda: MachineOptions(compile=True))
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    bulk: BulkOptions = field(default_factory=BulkOptions)
    features: CachedNetOptions = field(default_factory=CachedNetOptions)
