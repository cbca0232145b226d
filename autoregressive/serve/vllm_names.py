"""All that this project takes from vLLM; nothing of it is patched. Tried with 0.32.0, its CPU build."""

from argparse import Namespace

from vllm import AsyncEngineArgs, ModelRegistry, SamplingParams  # noqa: F401
from vllm.compilation.decorators import support_torch_compile  # noqa: F401
from vllm.config import VllmConfig  # noqa: F401
from vllm.distributed import get_tensor_model_parallel_world_size  # noqa: F401
from vllm.model_executor.layers.attention import Attention  # noqa: F401
from vllm.model_executor.layers.linear import (  # noqa: F401
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor  # noqa: F401
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead  # noqa: F401
from vllm.sampling_params import RequestOutputKind  # noqa: F401
from vllm.sequence import IntermediateTensors  # noqa: F401
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: F401
from vllm.v1.engine.exceptions import EngineDeadError  # noqa: F401


def run_headless(arguments: AsyncEngineArgs) -> None:
    """This machine's share of an engine that spans several."""
    from vllm.entrypoints.cli.serve import run_headless  # brings much that no other process needs

    run_headless(Namespace(**{**vars(arguments), "api_server_count": 0, "reasoning_parser_plugin": ""}))
