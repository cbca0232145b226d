"""The autoregressive decoder of LlamaGen (Sun et al. 2024, arXiv 2406.06525, section 2.2).

A Llama-shaped Transformer reads [condition, code 0, code 1, ...] and predicts each next VQ code. The condition is one
class token (c2i) or a row of projected caption features (t2i); the codes stand in raster order on a square grid.

Axes: B batch, P condition (prefix) positions, N codes, T = P + N positions, D width, H query heads, G key/value heads,
K head width, C codes in the vocabulary, L layers.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import isqrt
from operator import attrgetter
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.attend import attention, widened
from autoregressive.models.cache import KVCache
from autoregressive.models.loss import code_loss, head_loss


@dataclass
class ModelArgs:
    """Everything that shapes a GPT; the names are the published ones."""

    dim: int = 4096
    n_layer: int = 32
    n_head: int = 32
    n_kv_head: int | None = None  # None: as many as query heads
    multiple_of: int = 256  # the feed-forward width is rounded up to a multiple of this
    ffn_dim_multiplier: float | None = None
    rope_base: float = 10000
    norm_eps: float = 1e-5
    initializer_range: float = 0.02

    token_dropout_p: float = 0.1  # on the embedded sequence
    attn_dropout_p: float = 0.0  # on the attention weights
    resid_dropout_p: float = 0.1  # after wo
    ffn_dropout_p: float = 0.1  # after w2
    drop_path_rate: float = 0.0  # of the last block; rises linearly with depth from 0

    model_type: str = "c2i"  # "c2i": class label, "t2i": caption features
    num_classes: int = 1000
    caption_dim: int = 2048
    class_dropout_prob: float = 0.1  # how often training replaces a condition by 'none'
    cls_token_num: int = 1  # P
    vocab_size: int = 16384
    block_size: int = 256  # N, a square number

    def __post_init__(self):
        if self.n_kv_head is None:
            self.n_kv_head = self.n_head
        if self.model_type not in ("c2i", "t2i"):
            raise ValueError(f"model_type {self.model_type!r}: choose 'c2i' or 't2i'")
        if self.model_type == "c2i" and self.cls_token_num != 1:
            raise ValueError(f"cls_token_num {self.cls_token_num}: a class-conditional GPT has 1 condition token")
        if self.dim % self.n_head or (self.dim // self.n_head) % 4:
            raise ValueError(f"dim {self.dim}: must be a multiple of 4 * n_head ({self.n_head}), for 2-D positions")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_kv_head {self.n_kv_head}: must divide n_head ({self.n_head})")
        if isqrt(self.block_size) ** 2 != self.block_size:
            raise ValueError(f"block_size {self.block_size}: must be a square number of codes, such as 256 for 16 x 16")

    @property
    def head_width(self) -> int:
        return self.dim // self.n_head

    @property
    def ffn_width(self) -> int:
        width = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return -(-width // self.multiple_of) * self.multiple_of


def rotary_2d(grid: int, head_width: int, base: float, prefix: int) -> Tensor:
    """Cosine and sine of the angle of every position and pair: float32 [prefix + grid * grid, K/2, 2].

    Half of a head's pairs turn with the code's row, half with its column. Condition positions get cosine AND sine 0,
    which turns their queries and keys into zero vectors: the published weights were trained so.
    """
    half = head_width // 2
    frequencies = base ** (-torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half)  # [K/4]
    angles = torch.outer(torch.arange(grid, dtype=torch.float32, device="cpu"), frequencies)  # [grid, K/4]
    rows = angles[:, None].expand(grid, grid, -1)
    columns = angles[None, :].expand(grid, grid, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)  # [grid * grid, K/2]
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([table.new_zeros(prefix, half, 2), table])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn the adjacent pairs (2i, 2i+1) of x [B, T, H, K] by the angles of rotary [T, K/2, 2], in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # [B, T, H, K/2]
    cos, sin = rotary[:, None].unbind(-1)  # [T, 1, K/2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).type_as(x) * self.weight


class DropPath(nn.Module):
    """Drop a residual branch of whole samples (stochastic depth, Huang et al. 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep


class Attention(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_width = args.n_head, args.n_kv_head, args.head_width
        self.wqkv = nn.Linear(args.dim, (args.n_head + 2 * args.n_kv_head) * args.head_width, bias=False)
        self.wo = nn.Linear(args.dim, args.dim, bias=False)
        self.attn_dropout_p = args.attn_dropout_p
        self.resid_dropout = nn.Dropout(args.resid_dropout_p)

    def project(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, K], keys and values [B, G, T, K]."""
        heads = self.wqkv(x).unflatten(-1, (-1, self.head_width))  # [B, T, H + 2G, K]
        turned, v = heads.split([self.n_head + self.n_kv_head, self.n_kv_head], dim=2)
        q, k = rotate(turned, rotary).split([self.n_head, self.n_kv_head], dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        dropout = self.attn_dropout_p if self.training else 0.0
        out = attention(q, k, v, mask, causal, dropout)  # [B, H, T, K]
        return self.resid_dropout(self.wo(out.transpose(1, 2).flatten(2)))  # [B, T, D]

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
        return self.attend(*self.project(x, rotary), mask, causal=mask is None)

    def cached(self, x, rotary, keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor | None, causal: bool):
        """Write the keys and values of x into `slots` of the cache [B, G, T, K], then attend to all of it."""
        q, k, v = self.project(x, rotary)
        keys.index_copy_(2, slots, widened(k, keys.shape[-1]))
        values.index_copy_(2, slots, widened(v, keys.shape[-1]))
        return self.attend(q, keys, values, mask, causal)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.w1 = nn.Linear(args.dim, args.ffn_width, bias=False)
        self.w3 = nn.Linear(args.dim, args.ffn_width, bias=False)
        self.w2 = nn.Linear(args.ffn_width, args.dim, bias=False)
        self.ffn_dropout = nn.Dropout(args.ffn_dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class TransformerBlock(nn.Module):
    def __init__(self, args: ModelArgs, drop_path_rate: float):
        super().__init__()
        self.attention = Attention(args)
        self.feed_forward = FeedForward(args)
        self.attention_norm = RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, args.norm_eps)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
        h = x + self.drop_path(self.attention(self.attention_norm(x), rotary, mask))
        return h + self.drop_path(self.feed_forward(self.ffn_norm(h)))

    def cached(self, x, rotary, keys, values, slots, mask, causal) -> Tensor:
        h = x + self.attention.cached(self.attention_norm(x), rotary, keys, values, slots, mask, causal)
        return h + self.feed_forward(self.ffn_norm(h))


def run_block(layer: TransformerBlock, *given) -> Tensor:
    """Its cached()."""
    return layer.cached(*given)


def unchanged(states: Tensor) -> Tensor:
    return states


class LabelEmbedder(nn.Module):
    """Class label -> one token. Row `num_classes` stands for 'no class' (classifier-free guidance)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.num_classes = args.num_classes
        self.embedding_table = nn.Embedding(args.num_classes + 1, args.dim)

    def null(self, labels: Tensor) -> Tensor:
        return torch.full_like(labels, self.num_classes)

    def forward(self, labels: Tensor, drop: Tensor | None) -> Tensor:
        if drop is not None:
            labels = torch.where(drop, self.null(labels), labels)
        return self.embedding_table(labels)[:, None]  # [B, 1, D]


class CaptionProjection(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.fc1 = nn.Linear(args.caption_dim, args.dim, bias=False)
        self.fc2 = nn.Linear(args.dim, args.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Caption features [B, P, caption_dim] -> P tokens. 'No caption' is a stored tensor, saved but not trained."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.cap_proj = CaptionProjection(args)
        self.register_buffer("uncond_embedding", torch.empty(args.cls_token_num, args.caption_dim))

    def null(self, captions: Tensor) -> Tensor:
        # Captions stand at the right: where fewer rows are given, the first ones are missing.
        return self.uncond_embedding[-captions.shape[1] :].to(captions.dtype).expand_as(captions)

    def forward(self, captions: Tensor, drop: Tensor | None) -> Tensor:
        if drop is not None:
            captions = torch.where(drop[:, None, None], self.null(captions), captions)
        return self.cap_proj(captions.to(self.cap_proj.fc1.weight.dtype))  # [B, P, D]


class Transformer(nn.Module):
    """The GPT. `forward` trains; `prefill` and `decode` sample with a cache that the caller owns."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.config = args
        self._seed = int(torch.randint(2**62, (), device="cpu"))  # of initial(); before the layers draw anything
        self.cls_embedding = LabelEmbedder(args) if args.model_type == "c2i" else CaptionEmbedder(args)
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        self.tok_dropout = nn.Dropout(args.token_dropout_p)
        rates = torch.linspace(0, args.drop_path_rate, args.n_layer, device="cpu").tolist()
        self.layers = nn.ModuleList(TransformerBlock(args, rate) for rate in rates)
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)
        # Neither parameter nor buffer: it follows from the configuration and stays float32 whatever the weights become.
        self._rotary = rotary_2d(isqrt(args.block_size), args.head_width, args.rope_base, args.cls_token_num)
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        for name, value in self.state_dict().items():
            if not value.is_meta:
                value.copy_(self.initial(name))

    def initial(self, name: str) -> Tensor:
        """The value that a weight starts with, float32 on the CPU: a function of its name and of the seed that torch's
        generator gave this model, so that one can be drawn without the others."""
        shape = attrgetter(name)(self).shape
        if name.endswith("norm.weight"):
            return torch.ones(shape, device="cpu")
        if name == "output.weight":
            return torch.zeros(shape, device="cpu")
        std = self.config.caption_dim**-0.5 if name.endswith("uncond_embedding") else self.config.initializer_range
        generator = torch.Generator("cpu").manual_seed(Random(f"{self._seed} {name}").getrandbits(62))
        return torch.randn(shape, generator=generator, device="cpu") * std

    def rotary(self, device: torch.device) -> Tensor:
        """The table of positions, float32 [T, K/2, 2], on `device`."""
        if self._rotary.device != device:
            self._rotary = self._rotary.to(device)
        return self._rotary

    def null_condition(self, cond_idx: Tensor) -> Tensor:
        """'No class' or 'no caption', shaped like cond_idx: the other branch of classifier-free guidance."""
        return self.cls_embedding.null(cond_idx)

    def forward(
        self,
        idx: Tensor,
        cond_idx: Tensor,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        drop: Tensor | None = None,
        with_logits: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Teacher-forced logits of codes 0..n-1, and their mean cross-entropy if `targets` are given.

        idx [B, n-1]: codes 0..n-2. cond_idx [B] labels, or [B, P, caption_dim] features: cls_token_num rows, or fewer
        where the first ones hold no token (trimmed() in mask.py). targets [B, n]: codes 0..n-1.
        mask bool [B, 1, P+n-1, P+n-1], true = may attend; None: causal. valid [B] of 0 and 1: pictures that count.
        drop bool [B]: conditions to replace by 'none'; None: drawn at class_dropout_prob while training.
        Returns logits [B, n, C] and a scalar float32 loss (None without targets). with_logits=False: None for logits,
        which then never stand in memory for the whole batch.
        """
        if drop is None and self.training and self.config.class_dropout_prob > 0:
            drop = torch.rand(len(cond_idx), device=cond_idx.device) < self.config.class_dropout_prob
        cond = self.cls_embedding(cond_idx, drop)[:, : self.config.cls_token_num]  # [B, P, D]
        prefix = cond.shape[1]
        h = self.tok_dropout(torch.cat([cond, self.tok_embeddings(idx)], dim=1))  # [B, T, D]
        rotary = self.rotary(h.device)[self.config.cls_token_num - prefix :][: h.shape[1]]
        for layer in self.layers:
            h = layer(h, rotary, mask)
        h = self.norm(h[:, prefix - 1 :])  # [B, n, D]
        if not with_logits:
            return None, head_loss(h, self.output.weight, targets, valid)
        logits = self.output(h)  # [B, n, C]
        return logits, None if targets is None else code_loss(logits, targets, valid)

    def prefill(self, cond_idx: Tensor, cache: KVCache, mask: Tensor | None = None, idx: Tensor | None = None,
                for_head: Callable[[Tensor], Tensor] = unchanged) -> Tensor:  # fmt: skip
        """Fill the cache with the condition and the codes that are known, idx [B, k] (None: none); logits [B, 1, C] of
        code k. mask bool [B, 1, P + k, P + k]; None: causal. for_head: as in `decode`."""
        h = self.cls_embedding(cond_idx, drop=None)  # [B, P, D]
        left_out = self.config.cls_token_num - h.shape[1]
        if idx is not None:
            h = torch.cat([h, self.tok_embeddings(idx)], dim=1)  # [B, P + k, D]
        slots = torch.arange(h.shape[1], device=h.device)
        h = self._cached(h, cache.view(length=h.shape[1]), slots + left_out, slots, mask, causal=mask is None)
        return self.output(for_head(h[:, -1:]))

    def decode(
        self, codes: Tensor, positions: Tensor, slots: Tensor, cache: KVCache, mask: Tensor | None = None,
        block: Callable[..., Tensor] = run_block, for_head: Callable[[Tensor], Tensor] = unchanged,
    ) -> Tensor:  # fmt: skip
        """Codes [B, W] stand at `positions` (int64 [W]: cls_token_num for the first code); logits [B, W, C] of what
        follows each. W is 1, or more where some of the codes are guesses.

        `slots` int64 [W]: where the cache keeps them, earlier than `positions` by the condition rows that were left
        out. Attends to all slots of `cache` that mask ([B or 1, 1, W, T]; bool: true = may attend, or added to the
        scores) allows; None: to all of them, so the caller passes a view that ends at a single slot. block: what
        runs a block, in run_block's stead. for_head: makes what the head reads of the last states, [B, W, D], perhaps
        in fewer rows.
        """
        h = self._cached(self.tok_embeddings(codes), cache, positions, slots, mask, False, block)
        return self.output(for_head(h))

    def _cached(self, h: Tensor, cache: KVCache, positions: Tensor, slots: Tensor, mask: Tensor | None, causal: bool,
                block: Callable[..., Tensor] = run_block) -> Tensor:  # fmt: skip
        rotary = self.rotary(h.device)[positions]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values):
            h = block(layer, h, rotary, keys, values, slots, mask, causal)
        return self.norm(h)


GPT_CONFIGS: dict[str, dict] = {
    # The published sizes (table 1 of the paper, and the larger ones of its code).
    "GPT-B": dict(n_layer=12, n_head=12, dim=768),  # 111M
    "GPT-L": dict(n_layer=24, n_head=16, dim=1024),  # 343M
    "GPT-XL": dict(n_layer=36, n_head=20, dim=1280),  # 775M
    "GPT-XXL": dict(n_layer=48, n_head=24, dim=1536),  # 1.4B
    "GPT-XXXL": dict(n_layer=48, n_head=40, dim=2560),  # 3.9B
    "GPT-1B": dict(n_layer=22, n_head=32, dim=2048),  # 1.2B
    "GPT-3B": dict(n_layer=24, n_head=32, dim=3200),  # 3.1B
    "GPT-7B": dict(n_layer=32, n_head=32, dim=4096),  # 6.6B
    # Small ones to try things with; their vocabulary comes with the codes (256 to 1024).
    "GPT-1M": dict(n_layer=4, n_head=4, dim=128, vocab_size=256, num_classes=10, block_size=64),
    "GPT-5M": dict(n_layer=6, n_head=8, dim=256, vocab_size=1024, num_classes=10, block_size=64),
    "GPT-25M": dict(n_layer=7, n_head=8, dim=512, vocab_size=1024, num_classes=10, block_size=64),
}


def build_gpt(name: str, **overrides) -> Transformer:
    """A GPT of a named size; `overrides` are fields of ModelArgs (block_size=, vocab_size=, num_classes=, ...)."""
    if name not in GPT_CONFIGS:
        raise ValueError(f"--gpt-model {name}: unknown size; choose one of {', '.join(GPT_CONFIGS)}")
    return Transformer(ModelArgs(**{**GPT_CONFIGS[name], **overrides}))


def gpt_config(model: Transformer) -> dict:
    """The arguments that rebuild this model, as plain data for a checkpoint."""
    return asdict(model.config)


GPT_models = {name: partial(build_gpt, name) for name in GPT_CONFIGS}
