"""Options of the benchmarks. Torch-free."""

from dataclasses import dataclass

from engine.config import Auto


@dataclass
class SamplingBenchmark:
    output: str = "benchmarks/results/sampling_cpu.md"
    """Where the table is written."""
    gpt_model: str = "GPT-B"
    """The size, with random weights."""
    image_size: int = 256
    """Side of the pictures in pixels; VQ-16 makes a code of 16 x 16 of them."""
    pictures: int = 8
    """Pictures sampled at once; guidance doubles the rows."""
    cfg_scale: float = 4.0
    """Guidance scale."""
    top_k: int = 2000
    """Draw from the so many most likely codes."""
    precision: str = "auto"
    """bf16, fp16 or none (float32) for the GPT; auto: bf16 where the processor computes in it."""
    repeats: int = 3
    """Rounds; in each every contender runs once, in a process of its own. The best time counts."""


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
