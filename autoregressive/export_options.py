"""Options of the export of weights. Torch-free."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.config import Auto

ENDINGS = {"pt": (".pt", ".pth"), "bare": (".pt", ".pth"), "safetensors": (".safetensors",)}


@dataclass
class Export:
    ckpt: str
    """A GPT's or a tokenizer's weights: a training checkpoint of either kind, a published file or folder, .safetensors,
    a folder of the Hub."""
    output: str
    """The file or folder to write; one that is there is not overwritten."""
    format: Literal["auto", "pt", "bare", "safetensors", "hub"] = "auto"
    """pt: {"model": weights, "meta": what they are}, which published programs read; bare: the weights alone;
    safetensors: with the meta in its header; hub: a folder with model.safetensors, config.json and a model card; auto:
    by --output's ending."""
    use_ema: bool = False
    """Take the moving average (entry "ema")."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the weights, a tokenizer's codebook aside; auto: as they are."""
    round_codebook: bool = False
    """Round a tokenizer's codebook, too; a code may then become another where two are nearly as close."""
    image_size: int | Auto = "auto"
    """Side in pixels of the pictures that a GPT draws; auto: what the checkpoint, or a published file's name, says."""
    downsample_size: int | Auto = "auto"
    """Pixels per code of the GPT's tokenizer; auto: what the checkpoint says, 16 for published ones."""
    license: str = "mit"
    """The license that the model card names, as the Hub calls it."""
    push_to_hub: str | None = None
    """Upload the folder of --format hub into this repository, USER/NAME; it is made where there is none."""
    private: bool = False
    """Make it a private one."""

    def __post_init__(self) -> None:
        ending = Path(self.output).suffix
        if self.format == "auto":
            self.format = next((name for name, endings in ENDINGS.items() if ending in endings), "hub")
        if self.round_codebook and self.precision == "auto":
            raise ValueError("--round-codebook: to what? Give --precision")
        if ending not in ENDINGS.get(self.format, (ending,)):
            raise ValueError(f"--output {self.output}: --format {self.format} is a file that ends in "
                             f"{' or '.join(ENDINGS[self.format])}")  # fmt: skip
        if self.push_to_hub is not None and self.format != "hub":
            raise ValueError(f"--push-to-hub {self.push_to_hub}: goes with --format hub, not {self.format}")
        if self.push_to_hub is not None and self.push_to_hub.count("/") != 1:
            raise ValueError(f"--push-to-hub {self.push_to_hub}: give USER/NAME")
