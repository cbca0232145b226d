"""Options of the page. Torch-free."""

from dataclasses import dataclass, field

from autoregressive.options import EncoderOptions, GPTOptions, MachineOptions, SamplingOptions
from engine.config import Auto
from engine.options import at_least
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


@dataclass
class PageOptions:
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: int | Auto = "auto"
    """The port; auto: the first free one from 7860 on."""
    seed: int = 0
    """The seed that the page begins with."""
    max_images: int = 16
    """Pictures that one visitor can ask for at once."""
    at_once: int = 2
    """Visitors that are served at the same time."""
    max_queue: int = 20
    """Visitors that may wait; more are told to come back."""
    open_browser: bool = False
    """Open the page in this machine's browser."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_images", "at_once", "max_queue")
        at_least(self, 1, "port")
        at_least(self, 0, "seed")


@dataclass
class App:
    gpt: GPTOptions = field(default_factory=GPTOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    page: PageOptions = field(default_factory=PageOptions)
