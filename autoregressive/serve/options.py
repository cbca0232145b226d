"""Options of samplers and server on vLLM. Torch-free."""

from dataclasses import dataclass, field

from autoregressive.options import EncoderOptions, GPTOptions, PrecisionOptions, SamplingOptions
from autoregressive.sample.options import LabelOptions, PromptListOptions, SheetOptions, text_gpt
from engine.options import at_least
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


@dataclass
class EngineOptions(PrecisionOptions):
    """How vLLM runs the GPT."""

    compile: bool = False
    """torch.compile the step on a CPU, too; on GPUs vLLM compiles it, and captures CUDA graphs, unless --eager."""
    eager: bool = False
    """Neither compile nor capture: starts sooner, runs slower."""
    max_num_seqs: int = 64
    """Pictures drawn at once; more wait for their turn."""
    decode_batch_size: int = 8
    """Pictures decoded at once."""
    gpu_memory_utilization: float = 0.8
    """The share of a GPU's memory that vLLM takes for weights and cache; the tokenizer needs some of the rest."""
    tensor_parallel_size: int = 1
    """GPUs (on CPUs: processes) that share each layer; must divide the GPT's heads."""
    data_parallel_size: int = 1
    """Copies of the GPT, each on GPUs (processes) of its own."""
    nnodes: int = 1
    """Machines that the engine spans: the same command on each, with its --node-rank; the first one answers."""
    node_rank: int = 0
    """Of this machine, 0 to --nnodes - 1."""
    master_addr: str = "127.0.0.1"
    """The first machine's address, as the others reach it."""
    master_port: int = 29501
    """A free port there."""
    cache_dir: str | None = None
    """Where converted weights are kept; default: $XDG_CACHE_HOME or ~/.cache, in llamagen/vllm."""

    def __post_init__(self):
        at_least(self, 1, "max_num_seqs", "decode_batch_size", "tensor_parallel_size", "data_parallel_size",
                 "nnodes", "master_port")  # fmt: skip
        if not 0 <= self.node_rank < self.nnodes:
            raise ValueError(f"--node-rank {self.node_rank}: must be 0 to {self.nnodes - 1}, with --nnodes "
                             f"{self.nnodes}")  # fmt: skip
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"--gpu-memory-utilization {self.gpu_memory_utilization}: must be above 0 and at most 1")


@dataclass
class ServedSheetOptions(SheetOptions):
    seed: int = 0
    """Fixes the pictures, but for codes that are closer than rounding: other ones than without vLLM."""
    greedy: bool = False
    """Take the most likely code each time: one picture a class, the same as without vLLM."""


@dataclass
class ServedGridOptions(ServedSheetOptions, LabelOptions):
    output: str = "sample_c2i_vllm.png"


@dataclass
class ServedPromptOptions(ServedSheetOptions, PromptListOptions):
    output: str = "sample_t2i_vllm.png"

    def __post_init__(self):
        super().__post_init__()
        self.check_prompts()


@dataclass
class ServedC2I:
    gpt: GPTOptions = field(default_factory=GPTOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    grid: ServedGridOptions = field(default_factory=ServedGridOptions)


@dataclass
class ServedT2I:
    gpt: GPTOptions = field(default_factory=text_gpt)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(cfg_scale=7.5, top_k=1000))
    grid: ServedPromptOptions = field(default_factory=ServedPromptOptions)


@dataclass
class ServerOptions:
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    api_key: str | None = None
    """Clients must send it as "Authorization: Bearer ..."; default: $LLAMAGEN_API_KEY, or nothing is asked for."""
    model_name: str | None = None
    """What clients call the model; default: the checkpoint's name."""
    max_n: int = 10
    """Pictures that one request can ask for."""
    max_queue: int = 256
    """Pictures that may wait beside the --max-num-seqs that are drawn; more are refused with 429."""
    timeout: float = 600
    """Seconds that a request may take."""
    max_body: int = 65_536
    """Bytes of a request's body."""
    public_url: str | None = None
    """The server's address as clients see it behind a proxy, for response_format url; default: as they asked."""

    def __post_init__(self):
        at_least(self, 1, "port", "max_n", "max_queue", "timeout", "max_body")
        if not self.host:
            raise ValueError("--host: is empty; 0.0.0.0 listens on every address")
        if self.api_key == "":
            raise ValueError("--api-key (or $LLAMAGEN_API_KEY): is empty; leave it out where none is asked for")
        if self.public_url is not None and not self.public_url.startswith(("http://", "https://")):
            raise ValueError(f"--public-url {self.public_url}: must start with http:// or https://")


@dataclass
class Serve:
    gpt: GPTOptions = field(default_factory=GPTOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    server: ServerOptions = field(default_factory=ServerOptions)

    def __post_init__(self):
        room = self.engine.max_num_seqs * self.engine.data_parallel_size + self.server.max_queue
        if self.server.max_n > room:
            raise ValueError(f"--max-n {self.server.max_n}: a request must fit into the {room} places of "
                             "--max-num-seqs and --max-queue")  # fmt: skip
