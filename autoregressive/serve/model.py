"""The GPT as vLLM runs it: one request is one picture, and both branches of its guidance live inside the request.

Each token has S = 2 rows, with and without condition, that stand side by side as further heads: attention keeps them
apart as it does heads. After the last norm they are joined, which equals guidance on the logits, since the output
matrix has no bias: h = c + (scale - 1) (c - u). So vLLM's own scheduling, logits and sampling are all that there is.

Axes: T tokens of all requests, S streams (1: nothing is guided), D width, H query heads and G key/value heads of this
process, K head width as the cache has it (the weights' own may be narrower), P condition positions, C codes in the
vocabulary.
"""

from collections.abc import Iterable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.gpt import CaptionProjection, RMSNorm, rotary_2d, rotate
from autoregressive.serve.packing import Packing
from autoregressive.serve.vllm_names import (
    Attention,
    IntermediateTensors,
    LogitsProcessor,
    MergedColumnParallelLinear,
    ParallelLMHead,
    QKVParallelLinear,
    RowParallelLinear,
    VllmConfig,
    get_tensor_model_parallel_world_size,
    support_torch_compile,
)


class SelfAttention(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config, ranks = vllm_config.model_config.hf_config, get_tensor_model_parallel_world_size()
        self.streams, self.width = config.cfg_streams, config.head_dim
        self.heads, self.kv_heads = config.n_head // ranks, max(1, config.n_kv_head // ranks)
        quant = vllm_config.quant_config
        self.wqkv = QKVParallelLinear(config.hidden_size, self.width, config.n_head, config.n_kv_head, bias=False,
                                      quant_config=quant, prefix=f"{prefix}.wqkv")  # fmt: skip
        self.wo = RowParallelLinear(config.n_head * self.width, config.hidden_size, bias=False, quant_config=quant,
                                    prefix=f"{prefix}.wo")  # fmt: skip
        self.attn = Attention(self.streams * self.heads, self.width, config.head_width**-0.5,
                              num_kv_heads=self.streams * self.kv_heads, cache_config=vllm_config.cache_config,
                              quant_config=quant, prefix=f"{prefix}.attn")  # fmt: skip

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """x [T * S, D]; rotary float32 [T, K/2, 2]."""
        heads, _ = self.wqkv(x)
        heads = heads.view(-1, self.streams, self.heads + 2 * self.kv_heads, self.width)  # [T, S, H + 2G, K]
        turned, v = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        turned = rotate(turned.transpose(0, 1), rotary).transpose(0, 1)
        q, k = turned.split([self.heads, self.kv_heads], dim=2)
        out = self.attn(*(part.flatten(1) for part in (q, k, v)))  # [T, S * H * K]
        return self.wo(out.view(-1, self.heads * self.width))[0]  # [T * S, D]


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config, quant = vllm_config.model_config.hf_config, vllm_config.quant_config
        self.w13 = MergedColumnParallelLinear(config.hidden_size, [config.intermediate_size] * 2, bias=False,
                                              quant_config=quant, prefix=f"{prefix}.w13")  # fmt: skip
        self.w2 = RowParallelLinear(config.intermediate_size, config.hidden_size, bias=False, quant_config=quant,
                                    prefix=f"{prefix}.w2")  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x)[0].chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)[0]


class Block(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.attention = SelfAttention(vllm_config, f"{prefix}.attention")
        self.feed_forward = FeedForward(vllm_config, f"{prefix}.feed_forward")
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x), rotary)
        return h + self.feed_forward(self.ffn_norm(h))


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": -1, "intermediate_tensors": 0, "inputs_embeds": 0}
)
class Decoder(nn.Module):
    """From tokens to the hidden state [T, D] that the output matrix reads."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.streams, self.packing = config.cfg_streams, Packing.of(config, config.gpt_type)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        # c2i: the classes and 'none'. t2i: 'no caption', a row a position; captions come as they are.
        rows = config.num_classes + 1 if self.packing.classes else config.cls_token_num
        self.conditions = nn.Embedding(rows, config.hidden_size)
        self.layers = nn.ModuleList(Block(vllm_config, f"{prefix}.layers.{i}") for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        table = rotary_2d(int(config.block_size**0.5), config.head_width, config.rope_base, config.cls_token_num)
        table = F.pad(table, (0, 0, 0, (config.head_dim - config.head_width) // 2))  # [P + N, K/2, 2]
        self.register_buffer("rotary", table.to(torch.float32), persistent=False)

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, places: Tensor) -> Tensor:
        """Rows [T, S, D] of tokens at `places` [T] of their pictures. Rows that pad a batch may hold anything."""
        packing, in_prefix = self.packing, (places < self.packing.prefix)[:, None]
        if packing.classes:
            codes = self.tok_embeddings(input_ids.clamp(0, self.tok_embeddings.num_embeddings - 1))
            known = torch.where(in_prefix, self.conditions(input_ids.clamp(min=0) % packing.classes), codes)
            none = self.conditions(torch.full_like(places, packing.classes))
        else:
            known = codes = inputs_embeds
            none = self.conditions(places.clamp(max=packing.prefix - 1))
        streams = [known, torch.where(in_prefix, none, codes)]
        return torch.stack(streams[: self.streams], dim=1)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        packed = positions[0].clamp(min=0)  # [T]; M-RoPE's three rows are equal
        guidance, places = packed // self.packing.span, packed % self.packing.span
        rotary = self.rotary[places]
        h = self.embed(input_ids, inputs_embeds, places).flatten(0, 1)  # [T * S, D]
        for layer in self.layers:
            h = layer(h, rotary)
        h = self.norm(h).view(len(places), self.streams, -1)  # [T, S, D]
        if self.streams == 1:
            return h[:, 0]
        with_, without = h.float().unbind(1)
        strength = self.packing.strength(guidance, places - self.packing.prefix + 1)[:, None]
        return (with_ + strength * (with_ - without)).type_as(h)


class LlamaGenForImageCodes(nn.Module):
    """The model that the architecture names. Its requests are made by painter.py."""

    supports_mrope = True  # positions are ours to say

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config, self.packing = config, Packing.of(config, config.gpt_type)
        self.decoder = Decoder(vllm_config=vllm_config, prefix=f"{prefix}decoder")
        self.output = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=f"{prefix}output")
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features) -> tuple[Tensor, int]:
        """Positions int64 [3, tokens], and what later tokens' places are shifted by. After a preemption the tokens hold
        codes as well."""
        shift = self.packing.shift(input_tokens[0])
        return (torch.arange(len(input_tokens)) + shift).expand(3, -1), shift

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Codes among captions [T, D]."""
        return self.decoder.tok_embeddings(input_ids.clamp(0, self.config.vocab_size - 1))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        return self.decoder(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        return self.logits_processor(self.output, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """From the GPT's own names and shapes."""
        parameters, loaded, caption = dict(self.named_parameters()), set(), {}
        for name, value in weights:
            if name.startswith("cls_embedding.") and not self.packing.classes:
                caption[name.removeprefix("cls_embedding.")] = value
                continue
            name, shard = self._place(name)
            parameter = parameters[name]
            loader = getattr(parameter, "weight_loader", None)
            if loader is None:
                parameter.data.copy_(value)
            else:
                loader(parameter, self._widened(name, value), *shard)
            loaded.add(name)
        if caption:
            none = projected(caption)
            parameters["decoder.conditions.weight"].data.copy_(none)
            loaded.add("decoder.conditions.weight")
        return loaded

    @staticmethod
    def _place(name: str) -> tuple[str, tuple]:
        """Our parameter, and the part of it."""
        if name == "output.weight":
            return name, ()
        name = f"decoder.{name}".replace("cls_embedding.embedding_table", "conditions")
        for i, part in enumerate((".w1.", ".w3.")):
            if part in name:
                return name.replace(part, ".w13."), (i,)
        return name, ()

    def _widened(self, name: str, value: Tensor) -> Tensor:
        """Heads as wide as the cache has them: zeros behind the weights' own."""
        own, width = self.config.head_width, self.config.head_dim
        if ".wqkv." in name:
            return F.pad(value.unflatten(0, (-1, own)), (0, 0, 0, width - own)).flatten(0, 1)
        if ".wo." in name:
            return F.pad(value.unflatten(1, (-1, own)), (0, width - own)).flatten(1, 2)
        return value


def projected(weights: dict[str, Tensor]) -> Tensor:
    """'No caption' as rows of the decoder [P, D], by the weights of a CaptionEmbedder."""
    none = weights["uncond_embedding"]
    layers = {name.removeprefix("cap_proj."): value for name, value in weights.items() if name != "uncond_embedding"}
    dim, caption_dim = layers["fc1.weight"].shape
    with torch.device("meta"):
        layer = CaptionProjection(SimpleNamespace(caption_dim=caption_dim, dim=dim))
    return torch.func.functional_call(layer, layers, none.to(layers["fc1.weight"]))
