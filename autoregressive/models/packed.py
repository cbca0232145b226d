"""The step on CPUs: matrices that lie in memory as the processor's kernels read them, and a cache without gaps.

oneDNN, PyTorch's library for these processors, lays a matrix out for its kernels at each call of F.linear. Here that is
done once, what is laid out replaces the plain matrix, and what follows a product is computed with it where oneDNN can.
HalfLinear does the same with float16 weights for states in float32, Int8Linear with eight bits a weight.

Axes: B batch, T positions, R = B * T rows, D width, H query heads, G key/value heads, K head width, S cached positions.
"""

from collections.abc import Callable
from functools import cache, partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attend import attention as attend
from .attend import has_kernels
from .cache import KVCache
from .draw import choose
from .gpt import ModelArgs, RMSNorm, Transformer, TransformerBlock, rotate
from .runners import BucketRunner, CompiledRunner, drawn


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this processor has kernels for packed matrices of that type."""
    return device.type == "cpu" and (has_half_kernels() if dtype == torch.float16 else has_kernels(dtype))


def has_half_kernels() -> bool:
    """Whether FBGEMM, PyTorch's library for products of few bits, multiplies float16 weights with float32 here: it was
    written for x86 with AVX2."""
    return torch.backends.quantized.engine in ("x86", "fbgemm") and torch.cpu._is_avx2_supported()


class LaidOut(nn.Module):
    """x W^T, x [R, in] -> [R, out], and what is computed with it. Saved as its `weight`."""

    weight: Tensor  # W [out, in], made anew at each call

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(self(x), inplace=True)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x).mul_(other)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x).add_(other)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight


class PackedLinear(LaidOut):
    """All of it in one pass, in the precision of W."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    def silu(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "swish", [], "")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, None, "mul")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, None, "add")

    @property
    def weight(self) -> Tensor:
        return self.packed.to_dense()


class HalfLinear(LaidOut):
    """W in float16 for x in float32: half as much to read, and nothing else is rounded."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)

    @property
    def weight(self) -> Tensor:
        return torch.ops.quantized.linear_unpack_fp16(self.packed)[0].half()


class Int8Linear(LaidOut):
    """W in int8, a scale for each of its rows, and each row of x rounded to as many steps of its own range, so that no
    row depends on its batch. Saved as the integers and their scales."""

    STEPS = 127  # to either side of 0

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()  # [out, in]
        self.scales = (weight.abs().amax(1) / self.STEPS).clamp(min=torch.finfo(torch.float32).tiny)
        self.packed = torch.ops.onednn.qlinear_prepack((weight / self.scales[:, None]).round().to(torch.int8), None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        steps = steps_of_inputs()
        largest = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True, dtype=torch.float32)
        scales = largest.div_(steps).clamp_(min=torch.finfo(torch.float32).tiny)
        middle = steps + 1  # the kernels take x unsigned
        rounded = (x / scales).add_(middle + 0.5).to(torch.uint8)
        return int8_product(rounded, middle, self.packed, self.scales, self.zeros).mul_(scales).type_as(x)

    @property
    def weight(self) -> Tensor:
        """W [out, in] as it computes, float32."""
        return self.rounded * self.scales[:, None]

    @property
    def rounded(self) -> Tensor:
        """The integers, int8 [out, in]."""
        return self.packed.to_dense().t()

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"], destination[f"{prefix}scales"] = self.rounded, self.scales


def int8_product(x: Tensor, middle: int, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """(x - middle) W^T * scales, float32 [R, out], of x uint8 [R, in] and W int8 [out, in] as qlinear_prepack lays it
    out; scales float32 and zeros int32 [out]."""
    return torch.ops.onednn.qlinear_pointwise(x, 1.0, middle, packed, scales, zeros, None,
                                              1.0, 0, torch.float32, "none", [], "")  # fmt: skip


@cache
def steps_of_inputs() -> int:
    """Into how many steps to either side of 0 the inputs of Int8Linear are rounded. Where a processor has no
    instructions for them (VNNI), oneDNN adds two products in 16 bits, which only those of half the range always fit."""
    steps, width, full = Int8Linear.STEPS, 1024, partial(torch.full, device="cpu")
    packed = torch.ops.onednn.qlinear_prepack(full((8, width), steps, dtype=torch.int8), None)
    scales, zeros = full((8,), 1.0, dtype=torch.float32), full((8,), 0, dtype=torch.int32)
    highest = int8_product(full((1, width), 255, dtype=torch.uint8), 0, packed, scales, zeros)
    return steps if (highest == width * 255 * steps).all() else steps // 2


def attend_cached(heads: Tensor, rotary: Tensor, keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor | None,
                  causal: bool) -> Tensor:  # fmt: skip
    """Turn the queries and keys of heads [B, T, H + 2G, K], write to the cache, attend to it: [B, T, H, K]."""
    groups, length = keys.shape[1], heads.shape[1]
    turned, v = heads.split([heads.shape[2] - groups, groups], dim=2)
    turned = torch.view_as_complex(turned.float().unflatten(-1, (-1, 2))) * torch.view_as_complex(rotary)[:, None]
    turned = torch.view_as_real(turned).flatten(-2)  # float32 [B, T, H + G, K]
    q, k = turned.split([turned.shape[2] - groups, groups], dim=2)
    first = int(slots[0])
    keys[:, :, first : first + length].copy_(k.transpose(1, 2))
    values[:, :, first : first + length].copy_(v.transpose(1, 2))
    return attend(q.transpose(1, 2), keys, values, mask, causal).transpose(1, 2).type_as(heads).contiguous()


def attend_one(heads: Tensor, rotary: Tensor, keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
    """The same of one query a key, heads [B, 1, 3H, K], for torch.compile: it knows no complex numbers, must not know
    the slot, and makes a loop of each sum that converts what it reads to float32. mask: added to the scores."""
    q, k, v = heads.chunk(3, dim=2)
    keys.index_copy_(2, slots, rotate(k, rotary).transpose(1, 2))
    values.index_copy_(2, slots, v.transpose(1, 2))
    q = rotate(q, rotary).transpose(1, 2).float() * q.shape[-1] ** -0.5
    scores = q @ keys.float().mT + mask  # [B, H, 1, S]
    return (scores.softmax(-1) @ values.float()).transpose(1, 2).type_as(heads).contiguous()


class PackedBlock(nn.Module):
    """A block of the GPT that samples with packed matrices, and does nothing else; they are saved as the block's."""

    def __init__(self, block: TransformerBlock, kind: type[nn.Module]):
        super().__init__()
        self.attention, self.feed_forward = block.attention, block.feed_forward
        self.attention_norm, self.ffn_norm = block.attention_norm, block.ffn_norm
        for owner in (self.attention, self.feed_forward):
            for name, child in owner.named_children():
                if isinstance(child, nn.Linear):
                    setattr(owner, name, kind(child))

    def forward(self, *given) -> Tensor:
        raise RuntimeError("packed blocks only sample, step by step; load the GPT with --runner eager to do more")

    def cached(self, x: Tensor, rotary: Tensor, keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor | None,
               causal: bool, attended: Callable[..., Tensor] = attend_cached) -> Tensor:  # fmt: skip
        """As TransformerBlock.cached, on x [B, T, D] and keys and values [B, G, S, K]; slots follow one another.
        attended: what attends, in attend_cached's stead."""
        attention, feed_forward, (batch, length, _) = self.attention, self.feed_forward, x.shape
        x = x.flatten(0, 1)  # [R, D]
        heads = attention.wqkv(norm(x, self.attention_norm)).view(batch, length, -1, attention.head_width)
        out = attended(heads, rotary, keys, values, slots, mask, causal)
        x = attention.wo.plus(out.view(x.shape), x)
        h = norm(x, self.ffn_norm)
        return feed_forward.w2.plus(feed_forward.w3.times(h, feed_forward.w1.silu(h)), x).unflatten(0, (batch, length))


def norm(x: Tensor, module: RMSNorm) -> Tensor:
    """What the module computes, x [R, D], in three quarters of the time."""
    wide = x.to(torch.float32, copy=True)
    squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()  # [R, 1]
    return wide.mul_(squares.div_(x.shape[-1]).add_(module.eps).rsqrt_()).type_as(x) * module.weight


def pack(model: Transformer, int8: bool = False) -> None:
    """Replace the plain matrices of the blocks and of the head, one by one; a model that is packed stays as it is. What
    is no matrix of these is float32 afterwards where it was float16."""
    half = model.norm.weight.dtype == torch.float16
    kind = Int8Linear if int8 else HalfLinear if half else PackedLinear
    if int8 and isinstance(model.output, (PackedLinear, HalfLinear)):
        raise ValueError("--int8: this model is packed already, in more bits; load it anew")
    for i, block in enumerate(model.layers):
        if not isinstance(block, PackedBlock):
            model.layers[i] = PackedBlock(block, kind)
    if isinstance(model.output, nn.Linear):
        model.output = kind(model.output)
    if half:
        model.float()


class GrowingCache:
    """Keys and values of each layer, [B, G, S, K] without a gap, for S grows with what is filled: a CPU reads a part of
    a longer cache at half the speed. The memory for `length` positions is reserved at once."""

    def __init__(self, args: ModelArgs, batch: int, length: int, dtype: torch.dtype):
        self.batch, self.heads, self.width, self.length = batch, args.n_kv_head, args.head_width, 0
        size = batch * args.n_kv_head * length * args.head_width
        self.memory = [torch.zeros(size, dtype=dtype) for _ in range(2 * args.n_layer)]

    def layers(self) -> list[Tensor]:
        """Keys of the first layer, values of the first layer, keys of the second, ..."""
        return [self.laid_out(memory) for memory in self.memory]

    def laid_out(self, memory: Tensor) -> Tensor:
        shape = (self.batch, self.heads, self.length, self.width)
        return memory[: prod(shape)].view(shape)

    def view(self, batch: int | None = None, length: int | None = None) -> "GrowingCache | KVCache":
        """It goes on with the first `batch` rows; or the first `length` positions, which it grows to."""
        if batch is not None:
            self.batch = batch
            return self
        if length > self.length:
            before, self.length = self.layers(), length
            for old, memory in zip(before, self.memory):
                self.laid_out(memory)[:, :, : old.shape[2]] = old.clone()
        layers = [layer[:, :, :length] for layer in self.layers()]
        return KVCache(layers[::2], layers[1::2])


class PackedRunner(BucketRunner):
    """A model with packed matrices on the CPU."""

    BUCKET = 32  # a step reads half as many positions in vain, and one in so many moves the cache

    def __init__(self, model: Transformer):
        super().__init__(model)
        pack(model)

    def allocate(self, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> GrowingCache:
        return GrowingCache(self.model.config, rows, length, dtype)


class CompiledPackedRunner(PackedRunner, CompiledRunner):
    """The same with attention between two products compiled, once for all lengths of the cache, and the choice of a
    code. oneDNN's products stay calls: torch.compile takes only those whose matrices are constants."""

    def compile(self) -> None:
        compiled = partial(torch.compile, fullgraph=True)
        one = compiled(attend_one)

        def attended(heads: Tensor, rotary: Tensor, keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor,
                     causal: bool) -> Tensor:  # fmt: skip
            if heads.shape[1] > 1 or heads.shape[2] > 3 * keys.shape[1]:
                return attend_cached(heads, rotary, keys, values, slots, mask, causal)
            for x, axis in ((keys, 2), (values, 2), (mask, 3)):
                torch._dynamo.maybe_mark_dynamic(x, axis)
            return one(heads, rotary, keys, values, slots, mask)

        self.block = partial(run_packed, attended)
        self.drawn = partial(drawn, choose=compiled(choose, dynamic=True))


def run_packed(attended: Callable[..., Tensor], layer: PackedBlock, *given) -> Tensor:
    """Its cached(), with what attends."""
    return layer.cached(*given, attended)
