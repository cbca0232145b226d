"""The image tokenizer: encoder, vector quantiser, decoder (LlamaGen, arXiv 2406.06525, section 2.1).

The architecture is VQGAN's (Esser et al. 2021), the l2-normalised, narrow codebook is ViT-VQGAN's (Yu et al. 2021).

Legend: B batch, H W the picture's height and width, h w the grid of codes (H / downsample, W / downsample),
        N = B * h * w codes, K codebook size, D codebook width. Pictures are float in [-1, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

USAGE_WINDOW = 65536  # codebook usage counts the distinct codes among this many last ones
DISTANCE_ELEMENTS = 2**25  # distances held at once while looking for the nearest codes: 128 MiB


@dataclass
class VQConfig:
    codebook_size: int = 16384
    codebook_embed_dim: int = 8
    codebook_l2_norm: bool = True
    commit_loss_beta: float = 0.25
    entropy_loss_ratio: float = 0.0
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    num_res_blocks: int = 2
    dropout_p: float = 0.0

    def __post_init__(self) -> None:
        self.channel_multipliers = tuple(self.channel_multipliers)  # a list where it was read from JSON
        if self.channels % 32:
            raise ValueError(f"channels={self.channels}: must be a multiple of 32, the number of norm groups")
        if self.codebook_size < 2:
            raise ValueError(f"--codebook-size {self.codebook_size}: a codebook needs at least 2 codes")
        if self.codebook_embed_dim < 1:
            raise ValueError(f"--codebook-embed-dim {self.codebook_embed_dim}: must be at least 1")


class QuantiserLosses(NamedTuple):
    """Scalars; the losses are None and the usage 0 in eval mode."""

    codebook: Tensor | None
    commitment: Tensor | None  # already times commit_loss_beta
    entropy: Tensor | None  # already times entropy_loss_ratio
    usage: Tensor | float  # share of the codebook among the last USAGE_WINDOW codes


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, dropout_p: float):
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout_p)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (conv(normed).flatten(2).mT.unsqueeze(1) for conv in (self.q, self.k, self.v))  # [B, 1, h*w, C]
        h = F.scaled_dot_product_attention(q, k, v)  # scores times C^-0.5
        return x + self.proj_out(h.squeeze(1).mT.reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only: the published weights were trained so


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, then the way to the next one: `downsample`, `upsample` or neither."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool, dropout_p: float):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.res = nn.ModuleList(ResnetBlock(i, o, dropout_p) for i, o in zip(widths, widths[1:]))
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


def middle(channels: int, dropout_p: float) -> nn.Sequential:
    return nn.Sequential(
        ResnetBlock(channels, channels, dropout_p), AttnBlock(channels), ResnetBlock(channels, channels, dropout_p)
    )


class Encoder(nn.Module):
    def __init__(self, config: VQConfig):
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, (in_channels, out_channels) in enumerate(zip([config.channels, *widths], widths)):
            level = Level(in_channels, out_channels, config.num_res_blocks, i == last, config.dropout_p)
            if i < last:
                level.downsample = Downsample(out_channels)
            self.conv_blocks.append(level)
        self.mid = middle(widths[-1], config.dropout_p)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)  # [B, channels, H, W]
        for level in self.conv_blocks:
            h = level(h)
        h = self.mid(h)  # [B, channels * last multiplier, h, w]
        return self.conv_out(F.silu(self.norm_out(h)))  # [B, z_channels, h, w]


class Decoder(nn.Module):
    """The encoder's mirror, with one more residual block a level."""

    def __init__(self, config: VQConfig):
        super().__init__()
        widths = [config.channels * m for m in reversed(config.channel_multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], config.dropout_p)
        self.conv_blocks = nn.ModuleList()
        for i, (in_channels, out_channels) in enumerate(zip([widths[0], *widths], widths)):
            level = Level(in_channels, out_channels, config.num_res_blocks + 1, i == 0, config.dropout_p)
            if i < last:
                level.upsample = Upsample(out_channels)
            self.conv_blocks.append(level)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        """Where the adaptive discriminator weight compares gradients."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))  # [B, channels * last multiplier, h, w]
        for level in self.conv_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))  # [B, 3, H, W]


class VectorQuantizer(nn.Module):
    """Replaces each latent vector by the nearest of K codes, always in float32: rounding would change codes."""

    codebook_used: Tensor

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)
        if config.codebook_l2_norm:
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=-1)
        # Integers, unlike the published floats (which load all the same): they survive a cast to bf16 and an EMA.
        self.register_buffer("codebook_used", torch.zeros(USAGE_WINDOW, dtype=torch.int32))

    def codebook(self) -> Tensor:
        """float32 [K, D], as it is compared with and fed to the decoder."""
        codes = self.embedding.weight.float()
        return F.normalize(codes, dim=-1) if self.config.codebook_l2_norm else codes

    def rows(self, latent: Tensor) -> Tensor:
        """[B, D, h, w] -> float32 [N, D], in raster order, normalised as the codebook is."""
        z = latent.float().permute(0, 2, 3, 1).flatten(0, 2)
        return F.normalize(z, dim=-1) if self.config.codebook_l2_norm else z

    @torch.no_grad()
    def nearest(self, z: Tensor, codebook: Tensor) -> Tensor:
        """z [N, D], codebook [K, D] -> int64 [N]: argmin of |z|^2 + |e|^2 - 2 z.e, some rows at a time."""
        squared = codebook.square().sum(1)  # |z|^2 is the same for every code of a row
        rows = max(1, DISTANCE_ELEMENTS // len(codebook))
        return torch.cat([torch.addmm(squared, part, codebook.T, alpha=-2).argmin(1) for part in z.split(rows)])

    def codes(self, latent: Tensor) -> Tensor:
        """[B, D, h, w] -> int64 [N]."""
        with torch.autocast(latent.device.type, enabled=False):
            return self.nearest(self.rows(latent), self.codebook())

    def lookup(self, codes: Tensor) -> Tensor:
        """int [...] -> float32 [..., D]."""
        return self.codebook()[codes.long()]

    def forward(self, latent: Tensor) -> tuple[Tensor, QuantiserLosses, tuple[None, None, Tensor]]:
        b, d, h, w = latent.shape
        with torch.autocast(latent.device.type, enabled=False):
            z, codebook = self.rows(latent), self.codebook()
            codes = self.nearest(z, codebook)  # [N]
            q = codebook[codes]  # [N, D]
            losses = QuantiserLosses(None, None, None, 0.0)
            if self.training:
                losses = QuantiserLosses(
                    codebook=F.mse_loss(q, z.detach()),
                    commitment=self.config.commit_loss_beta * F.mse_loss(z, q.detach()),
                    entropy=self.entropy_loss(z, codebook),
                    usage=self.update_usage(codes),
                )
            q = z + (q - z).detach()  # straight-through: the encoder gets the decoder's gradient
        return q.view(b, h, w, d).permute(0, 3, 1, 2).contiguous(), losses, (None, None, codes)

    def entropy_loss(self, z: Tensor, codebook: Tensor, temperature: float = 0.01) -> Tensor:
        """Mean entropy of the rows' soft choices minus the entropy of their mean: sure of each, even over all."""
        if self.config.entropy_loss_ratio == 0:
            return z.new_zeros(())
        distance = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T  # [N, K]
        log_p = F.log_softmax(-distance / temperature, dim=1)
        p = log_p.exp()
        mean_p = p.mean(0)
        sample_entropy = -(p * log_p).sum(1).mean()
        entropy_of_mean = -(mean_p * (mean_p + 1e-5).log()).sum()
        return self.config.entropy_loss_ratio * (sample_entropy - entropy_of_mean)

    @torch.no_grad()
    def update_usage(self, codes: Tensor) -> Tensor:
        """Push the codes into the window; the share of the codebook in it. No host synchronisation."""
        window = torch.cat([self.codebook_used, codes.to(self.codebook_used.dtype)])[-USAGE_WINDOW:]
        self.codebook_used.copy_(window)
        used = torch.zeros(self.config.codebook_size, device=codes.device)
        return used.index_fill(0, window.long(), 1.0).mean()


class VQModel(nn.Module):
    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.downsample = 2 ** (len(config.channel_multipliers) - 1)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_embed_dim, config.z_channels, 1)

    def latent(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w], before quantisation."""
        height, width = x.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(
                f"a picture of {height}x{width} (height x width): both must be multiples of {self.downsample}, "
                "this tokenizer's down-sampling factor; resize or crop it"
            )
        return self.quant_conv(self.encoder(x.to(self.quant_conv.weight.dtype)))

    def encode(self, x: Tensor) -> tuple[Tensor, QuantiserLosses, tuple[None, None, Tensor]]:
        """[B, 3, H, W] -> quantised float32 [B, D, h, w], losses, (perplexity, encodings, codes int64 [B*h*w]).

        Perplexity and encodings are None; programs that unpack them expect their places.
        """
        return self.quantize(self.latent(x))

    @torch.no_grad()
    def encode_codes(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> int64 [B, h, w], without losses or graph."""
        latent = self.latent(x)
        return self.quantize.codes(latent).view(latent.shape[0], *latent.shape[2:])

    def decode(self, quant: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, 3, H, W], about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(quant.to(self.post_quant_conv.weight.dtype)))

    def decode_code(self, codes: Tensor, shape: tuple[int, ...] | None = None, channel_first: bool = True) -> Tensor:
        """Codes -> [B, 3, H, W].

        `shape` is (B, D, h, w), or (B, h, w, D) where not channel_first, for codes of any shape with B*h*w elements;
        codes of shape [B, h, w] need none.
        """
        if shape is not None:
            b, h, w = (shape[0], shape[2], shape[3]) if channel_first else shape[:3]
            codes = codes.reshape(b, h, w)
        return self.decode(self.quantize.lookup(codes).permute(0, 3, 1, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, QuantiserLosses]:
        quant, losses, _ = self.encode(x)
        return self.decode(quant), losses


# VQ-N turns N x N pixels into a code. The small ones, for pictures of 32 (VQ-4) and 64 (VQ-8) pixels, are ours.
VQ_CONFIGS: dict[str, dict] = {
    "VQ-16": {"channel_multipliers": (1, 1, 2, 2, 4)},
    "VQ-8": {"channel_multipliers": (1, 2, 2, 4)},
    "VQ-4-tiny": {"channels": 32, "channel_multipliers": (1, 2, 2), "z_channels": 64, "codebook_size": 256},
    "VQ-8-tiny": {"channels": 32, "channel_multipliers": (1, 2, 2, 4), "z_channels": 64, "codebook_size": 512},
    "VQ-4-small": {"channels": 64, "channel_multipliers": (1, 1, 1), "z_channels": 128, "codebook_size": 1024},
    "VQ-8-small": {"channels": 64, "channel_multipliers": (1, 1, 2, 2), "z_channels": 128, "codebook_size": 1024},
}


def build_vq(name: str, **overrides) -> VQModel:
    """The preset `name`, with fields of VQConfig replaced by `overrides`."""
    return VQModel(VQConfig(**{**VQ_CONFIGS[name], **overrides}))


VQ_models: dict[str, Callable[..., VQModel]] = {name: partial(build_vq, name) for name in VQ_CONFIGS}
