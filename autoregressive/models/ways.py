"""Which way a step is run: by name, or whatever is fastest where the model stands."""

from pathlib import Path
from sysconfig import get_path

from .captured import CapturedCompiledRunner, CapturedRunner
from .gpt import Transformer
from .packed import CompiledPackedRunner, HalfLinear, Int8Linear, PackedRunner, can_pack, pack
from .runners import CompiledRunner, EagerRunner

RUNNERS = {"eager": EagerRunner, "compiled": CompiledRunner, "captured": CapturedRunner, "packed": PackedRunner}


def make_runner(name: str, model: Transformer, compiled: bool = False, int8: bool = False) -> EagerRunner:
    """A runner of the model, whose matrices it may replace. name: one of RUNNERS, or auto; compiled: a captured step is
    compiled as well; int8: the matrices in eight bits, which packed steps alone have. Packed, a float16 model computes
    in float32 with float16 matrices."""
    gain = model.norm.weight
    packable = can_pack(gain.device, gain.dtype)
    if name == "auto":
        name = "captured" if gain.is_cuda else "packed" if packable else "eager"
    if name not in RUNNERS:
        raise ValueError(f"--runner {name}: choose auto or one of {', '.join(RUNNERS)}")
    if name == "captured" and not gain.is_cuda:
        raise ValueError(f"--runner captured: is for NVIDIA GPUs, and the GPT is on {gain.device.type}; choose auto")
    if name == "packed" and not packable:
        raise ValueError("--runner packed: is for CPUs that oneDNN has kernels for, in --precision bf16 or none, or "
                         f"FBGEMM, in fp16; this GPT is on {gain.device.type} in {precision_of(model)}. Choose auto"
                         )  # fmt: skip
    if int8 and not (packable and name in ("packed", "compiled")):
        raise ValueError("--int8: matrices of eight bits are for --runner packed or compiled, on CPUs, in a "
                         f"--precision that has kernels there (none, or leave it out); this is --runner {name} on "
                         f"{gain.device.type} in {precision_of(model)}")  # fmt: skip
    if name == "compiled" and gain.is_cpu:
        find_compiler()
    if int8:
        pack(model, int8=True)
    if name == "compiled" and packable:
        return CompiledPackedRunner(model)
    if name == "captured" and compiled:
        return CapturedCompiledRunner(model)
    return RUNNERS[name](model)


def find_compiler() -> None:
    """ValueError where torch.compile has nothing to compile with for a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ValueError(f"--runner compiled: needs a C++ compiler ({error}); install g++, or name yours in CXX"
                         ) from error  # fmt: skip
    header = Path(get_path("include")) / "Python.h"
    if not header.exists():
        raise ValueError(f"--runner compiled: needs Python's headers, {header}; install them (Debian: python3-dev)")


def precision_of(model: Transformer) -> str:
    """What it computes in, such as bfloat16, and which other bits its matrices have: "float32, fp16 matrices"."""
    dtype = str(model.norm.weight.dtype).removeprefix("torch.")
    bits = {Int8Linear: ", int8", HalfLinear: ", fp16 matrices"}
    return dtype + bits.get(type(model.output), "")
