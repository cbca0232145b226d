"""The memory of a sharded training step on the GPU that holds the first part, worked out.

Weights, gradients and moments are kept in float32, a part on each GPU (Rajbhandari et al. 2020); what computes is bf16,
gathered a block at a time, and gradients are summed in float32: FSDP2 as engine/sharding.py puts it on. Not compiled.
"""

from dataclasses import dataclass
from math import prod

from torch import nn

from autoregressive.models.gpt import Transformer
from autoregressive.models.loss import PART
from benchmarks.training_contenders import shape_of

NODE = 8  # GPUs
Moment = dict[str, float]  # what takes memory -> bytes


@dataclass(frozen=True)
class Setting:
    gpt_model: str
    gpus: int
    data_parallel: str  # fsdp or hsdp
    pictures: int  # of a GPU, at once
    codes: int  # of a picture
    activation_checkpointing: bool = False
    ema: bool = False
    parts: int = 1  # that a GPU's share of a step is cut into (--gradient-accumulation-steps)
    reduce_every_part: bool = False

    @property
    def shards(self) -> int:
        return min(self.gpus, NODE) if self.data_parallel == "hsdp" else self.gpus

    @property
    def tokens(self) -> int:
        """Positions that a GPU computes."""
        return self.pictures * self.codes


def part(module: nn.Module, shards: int) -> int:
    """Numbers that the first of `shards` holds: of each weight its share of rows, rounded up."""
    return sum(-(-len(p) // shards) * prod(p.shape[1:]) for p in module.parameters())


def saved_by_block(model: Transformer) -> float:
    """Bytes a token that a block keeps for its backward pass."""
    args = model.config
    keys = args.n_kv_head * args.head_width
    norms = 2 * (4 + 2 + 2) * args.dim  # what comes in, in float32; without and with the gain
    attention = 2 * (args.dim + 2 * keys) + 2 * args.dim + 4 * args.n_head  # queries, keys, values, what comes out
    feed_forward = 4 * 2 * args.ffn_width  # of w1, of silu, of w3, and their product
    masks = 2 * 2 * args.dim  # of dropout; bf16 on a CPU, where this is checked, half of it on a GPU
    return norms + attention + feed_forward + masks


def loss_head(model: Transformer, tokens: int, whole_logits: bool) -> float:
    """Bytes at the most, the gradient of the output matrix included."""
    args = model.config
    logits = args.vocab_size * tokens
    if whole_logits:
        return 12 * logits  # float32: log-probabilities, their gradient, and that of the logits
    # Of a part, logits and log-probabilities in float32. Later the gradients once more, scaled by the loss's own, and
    # that of the matrix in bf16.
    matrix, given = args.vocab_size * args.dim, args.dim * tokens
    return 4 * matrix + 2 * given + max(8 * min(logits, PART), (4 + 2) * matrix + 2 * given)


def moments(setting: Setting, whole_logits: bool = False) -> list[Moment]:
    """The moments of a step that may be its peak: the loss head, each block's backward pass, the last gradients."""
    model = shape_of(setting.gpt_model, setting.codes)
    args, shards, tokens = model.config, setting.shards, setting.tokens
    block = sum(p.numel() for p in model.layers[0].parameters())
    rest = sum(p.numel() for p in model.parameters()) - args.n_layer * block
    own, own_block = part(model, shards), part(model.layers[0], shards)
    always = {"weights": 4 * own, "moments": 8 * own, "ema": 4 * own * setting.ema}
    # What the parts before have left: gradients that are not summed over processes yet are whole.
    left = 4 * (own if setting.reduce_every_part else args.n_layer * block + rest) * (setting.parts > 1)
    saved = saved_by_block(model) * tokens
    kept, recomputed = (2 * args.dim * tokens, saved) if setting.activation_checkpointing else (saved, 0)
    mask = 2 * args.dim * tokens  # of dropout on the embedded codes
    head = (2 + 4 + 2 + 2) * args.dim * tokens + loss_head(model, tokens, whole_logits)  # from the last block on
    found = [{**always, "gradients": left, "gathered": 2 * rest, "activations": args.n_layer * kept + mask + head}]
    # Of a block's backward pass, where the feed-forward begins: gradients of its inner values and of w2; or where all
    # of the block's are there, and nothing that it kept.
    inside = max((2 * 2 * tokens + 2 * args.dim) * args.ffn_width, 2 * block - saved)
    for after in range(args.n_layer):  # blocks that are done: the last ones
        last = after == args.n_layer - 1
        gathered = 2 * rest + 2 * block * (1 if last else 2)  # the next one comes while this one computes
        summed = 2 * args.vocab_size * args.dim + (4 * block if after else 0)  # the output matrix's, the last block's
        activations = (args.n_layer - after) * kept + recomputed + inside + mask
        found.append({**always, "gradients": max(left, 4 * own_block * after), "gathered": gathered + summed,
                      "activations": activations})  # fmt: skip
    # At last all that is in no block: its gradients in bf16, and in float32 to be summed.
    return [*found, {**always, "gradients": max(left, 4 * own_block * args.n_layer), "gathered": (2 + 4) * rest}]


def peak(setting: Setting, whole_logits: bool = False) -> Moment:
    """The moment of the most memory."""
    return max(moments(setting, whole_logits), key=lambda moment: sum(moment.values()))
