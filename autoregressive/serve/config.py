"""The configuration of a served GPT as transformers knows it, by which vLLM finds its model."""

from transformers import PretrainedConfig

from autoregressive.serve.convert import MODEL_TYPE


class LlamaGenConfig(PretrainedConfig):
    """What convert.py has written into config.json."""

    model_type = MODEL_TYPE
