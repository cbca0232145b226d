"""From options to vLLM's engine, in processes of its own, on this machine or on several."""

import os
import signal
from importlib.metadata import entry_points
from importlib.util import find_spec
from os import cpu_count

import torch

from autoregressive.models.generate import Sampling
from autoregressive.options import GPTOptions
from autoregressive.sample.pipeline import Pipeline, check_pair
from autoregressive.serve.convert import UNGUIDED, Converted, config_of, convert
from autoregressive.serve.options import EngineOptions
from autoregressive.serve.packing import Packing
from engine.distributed import pick_device, pick_precision
from tokenizer.tokenizer_image.vq_load import load_tokenizer
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

PLUGIN = "autoregressive.serve.plugin:register"
BLOCK = 128  # positions that vLLM keeps together, on CPUs
FEW = 4  # cores, of which vLLM shall compute on all; it would keep one back, and on two cores take twice as long
MISSING = "serving needs vLLM, in an environment of its own: bash scripts/serve.sh makes one (.venv-serve)"
NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def prepare(gpt: GPTOptions, tokenizer: TokenizerOptions, options: EngineOptions, sampling: Sampling | None,
            guided: bool):  # fmt: skip
    """Both models, the GPT's precision, and vLLM's arguments (AsyncEngineArgs). ValueError where anything does not fit.

    sampling: one that will be asked for, so that what cannot be served is said at once. guided: whether any picture
    will be; without, the second branch is not computed.
    """
    check_plugin()
    device = pick_device("auto")
    dtype = pick_precision(options.precision, device)
    vq = load_tokenizer(tokenizer, device, pick_precision(options.decode_precision, device, "--decode-precision"))
    converted = convert(gpt, vq.model.downsample, options.cache_dir)
    check_pair(converted.gpt, vq, gpt, tokenizer)
    args = converted.gpt.model.config
    Packing.of(args, args.model_type).carried(sampling or Sampling())
    check_shares(args, options.tensor_parallel_size)
    pipeline = Pipeline(converted.gpt, vq, runner=None)
    return pipeline, dtype, arguments_for(converted, options, dtype, device, guided)


def check_plugin() -> None:
    """ValueError where vLLM is missing or too different, or would not find our model."""
    if find_spec("vllm") is None:
        raise ValueError(MISSING)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it has much to say of what does not concern these models
    try:
        import autoregressive.serve.vllm_names  # noqa: F401
    except ImportError as error:
        raise ValueError(f"this vLLM lacks what serving takes from it ({error}); requirements-serve.txt has the "
                         "version that was tried") from error  # fmt: skip
    if not any(entry.value == PLUGIN for entry in entry_points(group="vllm.general_plugins")):
        raise ValueError("vLLM's processes find our model by the installed package: pip install --no-deps -e .")


def check_shares(args, ranks: int) -> None:
    """ValueError unless so many processes have the same share of every layer."""
    if args.n_head % ranks or args.ffn_width % ranks or (args.n_kv_head % ranks and ranks % args.n_kv_head):
        raise ValueError(f"--tensor-parallel-size {ranks}: must divide the GPT's {args.n_head} heads and the "
                         f"{args.ffn_width} columns of its feed-forward layers, and divide or be a multiple of its "
                         f"{args.n_kv_head} key heads")  # fmt: skip


def cache_bytes(converted: Converted, options: EngineOptions, dtype: torch.dtype, guided: bool) -> int:
    """What the keys and values of max_num_seqs whole pictures take in each process, in vLLM's blocks."""
    config = config_of(converted.gpt, streams=2 if guided else 1)
    blocks = -(-config["max_position_embeddings"] // BLOCK) * options.max_num_seqs + 1
    heads = config["cfg_streams"] * max(1, config["n_kv_head"] // options.tensor_parallel_size)
    return 2 * config["num_hidden_layers"] * heads * config["head_dim"] * dtype.itemsize * blocks * BLOCK


def arguments_for(converted: Converted, options: EngineOptions, dtype: torch.dtype, device: torch.device, guided: bool):
    """AsyncEngineArgs."""
    from autoregressive.serve.vllm_names import AsyncEngineArgs

    args = converted.gpt.model.config
    memory = {"gpu_memory_utilization": options.gpu_memory_utilization}
    if device.type == "cpu":  # just what is asked for; vLLM would take most of the machine
        if options.tensor_parallel_size * options.data_parallel_size > 1:  # else it wants a NUMA node for each process
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if (cpu_count() or 1) <= FEW:
            os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        memory = {"kv_cache_memory_bytes": cache_bytes(converted, options, dtype, guided)}
    return AsyncEngineArgs(
        model=str(converted.folder), hf_config_path=None if guided else str(converted.folder / UNGUIDED),
        dtype=NAMES[dtype], skip_tokenizer_init=True, enable_prompt_embeds=args.model_type == "t2i",
        enable_prefix_caching=False, max_model_len=args.cls_token_num + args.block_size,
        max_num_seqs=options.max_num_seqs, tensor_parallel_size=options.tensor_parallel_size,
        data_parallel_size=options.data_parallel_size, nnodes=options.nnodes, node_rank=options.node_rank,
        master_addr=options.master_addr, master_port=options.master_port, disable_log_stats=True,
        use_tqdm_on_load=False, enforce_eager=options.eager or (device.type == "cpu" and not options.compile), **memory,
    )  # fmt: skip


def leave(number: int, frame) -> None:
    """What SIGTERM does: by itself it would end this process alone, and leave the engine's behind."""
    raise SystemExit(128 + number)


def start(arguments):
    """The engine (AsyncLLM), which ends with this process. ValueError where it does not start."""
    from autoregressive.serve.vllm_names import AsyncLLM

    signal.signal(signal.SIGTERM, leave)
    try:
        return AsyncLLM.from_engine_args(arguments)
    except RuntimeError as error:
        raise ValueError(f"vLLM did not start: its own words stand above ({error}). Where memory is short: a smaller "
                         "--max-num-seqs, more --tensor-parallel-size, another --gpu-memory-utilization; where the "
                         f"converted weights may be damaged: remove {arguments.model}") from error  # fmt: skip


def lend(gpt: GPTOptions, tokenizer: TokenizerOptions, options: EngineOptions, guided: bool = True) -> None:
    """This machine's share of an engine that spans several, until it is told to leave."""
    _, _, arguments = prepare(gpt, tokenizer, options, None, guided)
    from autoregressive.serve.vllm_names import run_headless

    print(f"machine {options.node_rank} of {options.nnodes} works for {options.master_addr}", flush=True)
    run_headless(arguments)
