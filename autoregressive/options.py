"""Which GPT, and how it is sampled: shared by samplers, trainers' previews, the app and the benchmarks. Torch-free."""

from dataclasses import dataclass

from engine.config import Auto
from engine.options import at_least


@dataclass
class GPTOptions:
    gpt_model: str = "auto"
    """GPT-B, -L, -XL, -XXL, -XXXL, -1B, -3B, -7B (published), GPT-1M, -5M, -25M; auto: what --gpt-ckpt holds."""
    gpt_ckpt: str | None = None
    """Weights: a published file or one of ours (.pt, .pth, .safetensors, the folder of a sharded run or one
    from the Hub). Without weights and tokenizer, class-conditional samplers and the page take the small pair that
    ships."""
    gpt_type: str = "c2i"
    """c2i (class-conditional) or t2i (text-conditional)."""
    from_fsdp: bool = False
    """The file is a bare state dict (found out anyway); outputs are then named by the checkpoint's folder, as
    published."""
    use_ema: bool = False
    """Take the moving average (entry "ema") where the checkpoint has one."""
    cls_token_num: int = 1
    """Condition tokens: 1 for c2i, 120 for t2i."""
    num_classes: int | Auto = "auto"
    """Classes of a c2i model; auto: the checkpoint's."""
    image_size: int | Auto = "auto"
    """Side of the pictures in pixels; auto: the checkpoint's, or the number in a published file's name, else 384."""
    downsample_size: int | Auto = "auto"
    """Pixels per code; auto: the tokenizer's."""


@dataclass
class EncoderOptions:
    """The text encoder of t2i models."""

    t5_path: str = "pretrained_models/t5-ckpt"
    """The folder that --t5-model-type is looked for in."""
    t5_model_type: str = "flan-t5-xl"
    """flan-t5-xl (published), t5-v1_1-xl, t5-v1_1-xxl, or any T5 encoder: a folder in --t5-path or its name on the
    Hub."""
    t5_feature_max_len: int | Auto = "auto"
    """Tokens of a caption at most, the rest is cut off; auto: 120, in sampling as the GPT was trained."""
    t5_feature_dim: int | Auto = "auto"
    """Width of its features; auto: the encoder's (flan-t5-xl: 2048)."""
    t5_precision: str = "auto"
    """bf16, fp16 or none (float32); auto: bf16 where the device computes in it."""
    t5_offload: bool = False
    """Keep the encoder in the main memory while the GPT works, for small GPUs."""

    def __post_init__(self) -> None:
        at_least(self, 1, "t5_feature_max_len", "t5_feature_dim")


@dataclass
class PrecisionOptions:
    precision: str = "auto"
    """bf16, fp16 or none (float32) for the GPT; auto: bf16 where the device computes in it. On x86 processors that do
    not, packed steps have float16 matrices for auto and bf16, too, and compute in float32."""
    decode_precision: str = "none"
    """bf16, fp16 or none for the tokenizer's decoder; auto: bf16 where the device computes in it. FID runs
    are published with none (float32); bf16 is faster."""


@dataclass
class MachineOptions(PrecisionOptions):
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""
    runner: str = "auto"
    """How a step is run: packed (CPUs: matrices laid out once for the processor's kernels), captured (NVIDIA GPUs: one
    CUDA graph a step), compiled (by torch.compile; on a CPU between packed matrices, and with a C++ compiler) or eager;
    auto: the first of them that works here, but for compiled."""
    compile: bool = False
    """On a GPU, torch.compile what is captured; elsewhere it changes nothing."""
    int8: bool = False
    """On a CPU, the GPT's matrices in eight bits: half of bf16's size once they are loaded, up to a tenth faster where
    there are instructions for them (VNNI), and other pictures, of the same kind."""
    look_ahead: int = 1
    """Codes that are looked at together: all but the first are guesses, and what contradicts them is drawn again, so
    that the pictures stay the same but for rounding. On CPUs, 8 to 16 pay for one picture; not for 8 at once."""

    def __post_init__(self) -> None:
        at_least(self, 1, "look_ahead")


@dataclass
class GuidanceOptions:
    """How guidance goes along a picture's codes, whatever its scale."""

    cfg_interval: float = -1
    """Guide codes 0 to this number + 1 only, and save the second branch after them (-1: all codes)."""
    cfg_schedule: str = "constant"
    """constant, linear (scale grows from 1 to --cfg-scale) or power-cosine (the same, along a cosine)."""
    cfg_power: float = 2.75
    """Exponent of the power-cosine schedule."""


@dataclass
class SamplingOptions(GuidanceOptions):
    cfg_scale: float = 4.0
    """Scale of classifier-free guidance; 1 samples without."""
    top_k: int = 2000
    """Draw from the so many most likely codes (0: from all)."""
    temperature: float = 1.0
    """Divides the logits."""
    top_p: float = 1.0
    """Draw from the most likely codes that hold this much probability together (1: from all)."""
