"""What vLLM calls in each of its processes, by the entry point vllm.general_plugins: it makes our GPT known."""


def register() -> None:
    from transformers import AutoConfig

    from autoregressive.serve.config import LlamaGenConfig
    from autoregressive.serve.convert import ARCHITECTURE, MODEL_TYPE
    from autoregressive.serve.vllm_names import ModelRegistry

    AutoConfig.register(MODEL_TYPE, LlamaGenConfig, exist_ok=True)
    # By name: vLLM looks at the model in a process of its own, and imports it where it runs.
    ModelRegistry.register_model(ARCHITECTURE, "autoregressive.serve.model:LlamaGenForImageCodes")
