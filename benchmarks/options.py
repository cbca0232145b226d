"""Options of the benchmarks. Torch-free."""

from dataclasses import dataclass
from math import isqrt

from engine.config import Auto
from engine.options import at_least


@dataclass
class SamplingBenchmark:
    output: str | Auto = "auto"
    """Where the table is written; auto: benchmarks/results/sampling_DEVICE.md."""
    gpt_model: tuple[str, ...] | Auto = "auto"
    """The sizes, with random weights; auto: GPT-B on a CPU, the published B, L, XL, XXL and 3B on a GPU."""
    image_size: int | Auto = "auto"
    """Side of the pictures in pixels; VQ-16 makes a code of 16 x 16 of them. auto: 256 on a CPU, 384 on a GPU."""
    pictures: tuple[int, ...] | Auto = "auto"
    """Pictures sampled at once; guidance doubles the rows. auto: 1, 8 and 64 on a CPU, 1, 8 and 256 on a GPU."""
    many: int | Auto = "auto"
    """Pictures of the whole path, from codes to PNGs (32 times as many of the pair that ships); auto: 32 on a CPU, 2048
    on a GPU."""
    cfg_scale: float = 4.0
    """Guidance scale."""
    top_k: int = 2000
    """Draw from the so many most likely codes."""
    precision: str = "auto"
    """bf16, fp16 or none (float32) for the GPT; auto: bf16 where the device computes in it, else none."""
    held_out: str | None = None
    """Pictures that the pair that ships was not trained on, a folder a class (CIFAR-10's test/), for its loss in fewer
    bits."""
    classifier: str | None = None
    """A classifier of the same classes (evaluations/classifier.py) that reads its samples in fewer bits."""
    only: tuple[str, ...] = ()
    """Contenders to measure, by their names in the table; default: all."""
    repeats: int = 2
    """Rounds; in each every contender runs once, in a process of its own. The best time counts."""
    device: str = "auto"
    """cuda or cpu; auto takes the first that is there."""

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size", "many", "repeats")
        if self.pictures != "auto" and (not self.pictures or min(self.pictures) < 1):
            raise ValueError("--pictures: give numbers of at least 1")
        if self.cfg_scale <= 1:
            raise ValueError(f"--cfg-scale {self.cfg_scale}: the benchmark is of guided sampling; give more than 1")


@dataclass
class CodesBenchmark:
    output: str = "benchmarks/results/codes_cpu.md"
    """Where the table is written."""
    pictures: int = 20000
    """Pictures whose codes are generated and read."""
    crops: int = 10
    """Crops of a picture, of 256 codes each."""
    batch_size: int = 256
    """Samples in a batch."""
    num_workers: int = 2
    """Processes that read, for both ways; 0 is measured besides."""
    encoded: int = 8
    """Pictures that are encoded by VQ-16 at 256 px, with random weights."""
    repeats: int = 3
    """Rounds; the best time of each way counts."""


@dataclass
class EvaluationBenchmark:
    output: str | Auto = "auto"
    """Where the table is written; auto: benchmarks/results/evaluation_DEVICE.md."""
    pictures: int = 128
    """Generated pictures that go through each network."""
    image_size: int = 256
    """Side of the pictures in pixels."""
    batch_size: int = 32
    """Pictures that go through a network at once."""
    real: int = 10_000
    """Vectors of the reference, for precision and recall."""
    sampled: tuple[int, ...] = (10_000, 50_000)
    """Vectors of the samples, for precision and recall."""
    archive: int = 50_000
    """Pictures of the archive that the evaluator reads with a network that costs nothing, for its memory (0: none)."""
    repeats: int = 3
    """Rounds; in each every contender runs once, in a process of its own. The best time counts."""
    device: str = "cpu"
    """cuda, mps or cpu."""


@dataclass
class KillsTrial:
    output: str = "benchmarks/results/kills.md"
    """Where the table is written."""
    kills: int = 200
    """How often something is killed."""
    steps: int = 2000
    """Steps of the run."""
    ckpt_every: int = 5
    """Steps between checkpoints."""
    async_ckpt: bool = True
    """Checkpoints are written while training goes on."""
    processes: int = 2
    """Processes that the weights are sharded over, on the CPU."""
    seed: int = 0
    """Decides what is killed, and when."""


def check_square(options) -> None:
    """ValueError unless a picture can have as many codes."""
    if options.codes != "auto" and isqrt(options.codes) ** 2 != options.codes:
        raise ValueError(f"--codes {options.codes}: must be a square number, such as 576 for 24 x 24")


@dataclass
class TrainingBenchmark:
    output: str | Auto = "auto"
    """Where the table is written; auto: benchmarks/results/training_DEVICE.md."""
    gpt_model: tuple[str, ...] | Auto = "auto"
    """The sizes, with random weights; auto: GPT-25M on a CPU, GPT-B, -L, -XL and -XXL on a GPU."""
    codes: int | Auto = "auto"
    """Codes of a picture, a square number; auto: 64 on a CPU, 576 (384 px) on a GPU."""
    batch_size: int | Auto = "auto"
    """Pictures of a step; auto: 32 on a CPU, 16 on a GPU."""
    steps: int = 20
    """Steps that are timed."""
    warmup: int = 5
    """Steps before them; the first compiles."""
    precision: str = "auto"
    """bf16, fp16, tf32 or none (float32); auto: bf16 where the device computes in it."""
    only: tuple[str, ...] = ()
    """Contenders to measure, by their names in the table; default: all."""
    repeats: int = 2
    """Rounds; in each every contender runs once, in a process of its own. The best time counts."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""

    def __post_init__(self) -> None:
        at_least(self, 1, "codes", "batch_size", "steps", "warmup", "repeats")
        check_square(self)


@dataclass
class TrainingMemory:
    output: str = "benchmarks/results/training_memory.md"
    """Where the table is written."""
    gpt_model: tuple[str, ...] = ("GPT-3B", "GPT-7B")
    """The sizes."""
    gpus: tuple[int, ...] = (8, 64)
    """How many GPUs share a step; more than 8 stand in nodes of 8."""
    codes: int = 576
    """Codes of a picture, a square number (576: 384 px)."""
    global_batch_size: int = 256
    """Pictures of a step, over all GPUs."""
    ema: bool = False
    """With a moving average of the weights."""

    def __post_init__(self) -> None:
        at_least(self, 1, "codes", "global_batch_size")
        check_square(self)
        for gpus in self.gpus:
            if gpus < 2 or gpus > 8 and gpus % 8:
                raise ValueError(f"--gpus {gpus}: must be from 2 to 8, or a multiple of 8")
            if self.global_batch_size % gpus:
                raise ValueError(f"--global-batch-size {self.global_batch_size}: must be a multiple of --gpus {gpus}")


@dataclass
class ServingBenchmark:
    output: str | Auto = "auto"
    """Where the table is written; auto: benchmarks/results/serving_DEVICE.md."""
    gpt_model: tuple[str, ...] | Auto = "auto"
    """The sizes, with random weights; auto: GPT-B on a CPU, the published five on a GPU."""
    image_size: int | Auto = "auto"
    """Side of the pictures in pixels; VQ-16 makes a code of 16 x 16 of them. auto: 256 on a CPU, 384 on a GPU."""
    pictures: tuple[int, ...] | Auto = "auto"
    """Pictures drawn at once; auto: 1, 8 and 64 on a CPU, 8 on a GPU."""
    clients: tuple[int, ...] = (1, 8, 32)
    """Clients of the server at once, each of whom waits for a picture before the next one; of the first size."""
    requests: int = 3
    """Pictures that each client asks for, and 8 in all at least."""
    cfg_scale: float = 4.0
    """Guidance scale."""
    top_k: int = 2000
    """Draw from the so many most likely codes."""
    precision: str = "auto"
    """bf16, fp16 or none (float32) for the GPT; auto: bf16 where the device computes in it, else none,
    but for the plain sampler, which then keeps matrices in float16."""
    decode_precision: str = "auto"
    """The same for the tokenizer's decoder."""
    repeats: int = 2
    """Rounds; in each every contender runs once, in a process of its own. The best time counts."""

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size", "requests", "repeats")
        for name in ("pictures", "clients"):
            given = getattr(self, name)
            if given != "auto" and (not given or min(given) < 1):
                raise ValueError(f"--{name}: give numbers of at least 1")
