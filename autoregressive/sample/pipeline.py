"""Condition -> codes -> pictures: what samplers, app, benchmarks and server all stand on.

    pipeline = load_pipeline(GPTOptions(gpt_ckpt="c2i_B_256.pt"), TokenizerOptions(vq_ckpt="vq_ds16_c2i.pt"))
    pictures = pipeline.sample(["goldfish", 207], Sampling(cfg_scale=4.0, top_k=2000), seed=0)  # uint8 [2, 256, 256, 3]

Axes: B pictures, N = h * w codes of a picture, H = W side in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isqrt
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from autoregressive.encoder import load_encoder
from autoregressive.load import GPT, load_gpt
from autoregressive.models.attend import multiplies_bf16
from autoregressive.models.generate import Sampling, decode_codes
from autoregressive.models.packed import can_pack
from autoregressive.models.runners import EagerRunner
from autoregressive.models.ways import make_runner
from autoregressive.options import EncoderOptions, GPTOptions, MachineOptions, SamplingOptions
from dataset.augmentation import center_crop_arr, to_tensor
from dataset.classes import class_names_for, find_label
from engine.config import Auto
from engine.distributed import pick_device, pick_precision
from evaluations.images import to_bytes
from language.padding import pad_left, pad_right
from language.t5 import MAX_LENGTH, TextEncoder
from tokenizer.tokenizer_image.vq_load import Tokenizer, load_tokenizer
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

OnCode = Callable[[int, Tensor], None]


@dataclass
class Pipeline:
    """A GPT and a tokenizer that belong together, and the runner of the GPT's steps."""

    gpt: GPT
    tokenizer: Tokenizer
    runner: EagerRunner
    encoder: TextEncoder | None = None  # of t2i models
    offload: bool = False  # whether the encoder leaves the device when it is not needed
    window: int = 1  # codes that are looked at together
    reading: Lock = field(default_factory=Lock, repr=False, compare=False)  # held by whoever uses the encoder

    @property
    def device(self) -> torch.device:
        return self.tokenizer.model.quantize.embedding.weight.device

    @property
    def grid(self) -> int:
        """Rows, and columns, of codes in a picture."""
        return isqrt(self.gpt.model.config.block_size)

    @property
    def class_names(self) -> list[str]:
        return class_names_for(self.gpt.class_names, self.gpt.model.config.num_classes)

    def labels(self, classes: Sequence[int | str]) -> Tensor:
        """int64 [B] from class numbers and names; an unknown one is a ValueError that says which are near."""
        return torch.tensor([find_label(c, self.class_names) for c in classes], dtype=torch.int64, device=self.device)

    def captions(self, prompts: Sequence[str], negative: str | None = None, left: bool = True) -> dict:
        """Arguments of codes() for prompts: "cond" [B, P, caption_dim], "valid" bool [B, P] and, with a negative
        prompt that is not empty, "negative". A prompt of which cleaning leaves nothing is 'no caption', in the place of
        its one token.

        left: pad at the left, so that captions stand next to the codes; else at the right, up to cls_token_num rows.
        """
        if self.encoder is None:
            raise ValueError("this pipeline has no text encoder; load_text_pipeline() loads one")
        if not self.encoder.tokenize.cleaned(negative or ""):
            negative = None  # guidance leads from 'none' anyway
        rows = self.caption_rows([*prompts, *([negative] * (negative is not None))])
        captions, valid = pad_left(rows) if left else pad_right(rows, self.gpt.model.config.cls_token_num)
        found = {"cond": captions[: len(prompts)], "valid": valid[: len(prompts)]}
        if negative is not None:
            found["negative"] = tuple(part[-1:].expand_as(part[: len(prompts)]) for part in (captions, valid))
        return found

    def caption_rows(self, prompts: Sequence[str]) -> list[Tensor]:
        """The features of each prompt's tokens, [n, caption_dim]."""
        null = self.gpt.model.cls_embedding.uncond_embedding[-1:]  # [1, caption_dim]
        said = [text for text in dict.fromkeys(prompts) if self.encoder.tokenize.cleaned(text)]
        with self.reading:  # nobody takes it off the device while another needs it there
            if self.offload and said:
                self.encoder.to(self.device)
            features = dict(zip(said, self.encoder.encode(said)))
            if self.offload and said:
                self.encoder.offload()
        return [features[text].to(null) if text in features else null for text in prompts]

    def codes(
        self,
        cond: Tensor,
        sampling: Sampling,
        seed: int = 0,
        pictures: Tensor | None = None,
        valid: Tensor | None = None,
        on_code: OnCode | None = None,
        progress: bool = False,
        negative: tuple[Tensor, Tensor] | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Sample codes int64 [B, N] for labels int64 [B] or caption features [B, P, caption_dim] and valid bool [B, P].

        pictures int64 [B]: the pictures' numbers in the run (default 0..B-1); with `seed` they fix the noise, so that a
        picture does not depend on its batch. on_code(i, codes) is called when code i of all pictures is there; it may
        raise to stop. negative: features and valid, shaped like those, that guidance leads away from. known int64 [k]:
        the first codes of all pictures, as top_codes() gives them, which are kept.
        """
        n = self.grid**2
        pictures = torch.arange(len(cond)) if pictures is None else pictures
        given = 0 if known is None else len(known)
        known = None if known is None else known.to(self.device).expand(len(cond), -1)
        with tqdm(total=n - given, unit="code", disable=None if progress else True, leave=False) as bar:

            def each(i: int, out: Tensor) -> None:
                bar.update()
                if on_code is not None:
                    on_code(i, out)

            return decode_codes(self.runner, cond, n, sampling, seed, pictures, valid, each, negative, known,
                                self.window)  # fmt: skip

    @torch.inference_mode()
    def encode(self, picture: Image.Image) -> Tensor:
        """Codes int64 [N] of an RGB picture, cropped at its centre and scaled to the side that the GPT draws."""
        pixels = torch.from_numpy(to_tensor(center_crop_arr(picture, self.gpt.image_size)))[None]  # [1, 3, H, W]
        return self.tokenizer.model.encode_codes(pixels.to(self.device)).flatten()

    def top_codes(self, picture: Image.Image, rows: int | Auto = "auto", columns: int = 0) -> Tensor:
        """The codes of a picture that its completion keeps, int64 [k]."""
        return self.first_codes(self.encode(picture), rows, columns)

    def first_codes(self, codes: Tensor, rows: int | Auto = "auto", columns: int = 0) -> Tensor:
        """Of a picture's codes [N], those of its first `rows` rows (auto: half of them) and of the first `columns`
        columns of the next row. Codes stand in raster order, so what is kept always ends there, and the rest is sampled
        to the right and below."""
        grid = self.grid
        rows = grid // 2 if rows == "auto" else rows
        if not 0 <= rows < grid:
            raise ValueError(f"--keep-rows {rows}: a picture has {grid} rows of codes; keep 0 to {grid - 1}")
        if not 0 <= columns < grid or rows + columns == 0:
            raise ValueError(f"--keep-columns {columns}: of the row that follows the {rows} kept ones, "
                             f"{'0' if rows else '1'} to {grid - 1} of its {grid} codes can be kept")  # fmt: skip
        return codes[: rows * grid + columns]

    @torch.inference_mode()
    def decode(self, codes: Tensor, batch: int = 8) -> Tensor:
        """Codes [B, N] -> pictures, float32 [B, 3, H, W] about in [-1, 1], `batch` at a time."""
        quantizer = self.tokenizer.model.config.codebook_embed_dim
        side = isqrt(codes.shape[1])
        parts = [self.tokenizer.model.decode_code(part, (len(part), quantizer, side, side)).float()
                 for part in codes.to(self.device).split(batch)]  # fmt: skip
        return torch.cat(parts)

    def sample(
        self, classes: Sequence[int | str], sampling: Sampling, seed: int = 0, size: int | None = None, **options
    ) -> np.ndarray:
        """Pictures uint8 [B, H, W, 3] of classes given by number or name; `size`: resized to, as FID runs do."""
        return self.to_pictures(self.codes(self.labels(classes), sampling, seed, **options), size)

    def to_pictures(self, codes: Tensor, size: int | None = None, batch: int = 8) -> np.ndarray:
        """Codes [B, N] -> uint8 [B, H, W, 3], `batch` at a time; another size is reached by bicubic interpolation, not
        anti-aliased."""
        parts = []
        for part in codes.split(batch):
            images = self.decode(part, batch)
            if size is not None and size != images.shape[-1]:
                images = F.interpolate(images, size=(size, size), mode="bicubic")
            parts.append(to_bytes(images))
        return np.concatenate(parts)


def load_text_pipeline(
    gpt: GPTOptions,
    tokenizer: TokenizerOptions,
    encoder: EncoderOptions,
    machine: MachineOptions | None = None,
    device: torch.device | None = None,
) -> Pipeline:
    """load_pipeline() with the text encoder."""
    pipeline = load_pipeline(gpt, tokenizer, machine, device)
    add_encoder(pipeline, gpt, encoder)
    return pipeline


def add_encoder(pipeline: Pipeline, gpt: GPTOptions, encoder: EncoderOptions) -> None:
    """Load the text encoder, whose features must be those that the GPT was trained on."""
    loaded, config = pipeline.gpt, pipeline.gpt.model.config
    trained = loaded.encoder or {}  # what captions were in training, they are now
    pipeline.encoder = load_encoder(encoder, pipeline.device, config.cls_token_num, trained.get("cleaned") is not False,
                                    trained.get("max_length") or MAX_LENGTH)  # fmt: skip
    pipeline.offload = encoder.t5_offload
    width, name = config.caption_dim, f"--t5-model-type {encoder.t5_model_type}"
    if pipeline.encoder.width != width:
        raise ValueError(f"{name}: its features are {pipeline.encoder.width} wide, {gpt.gpt_ckpt} was trained on "
                         f"features {width} wide; give the encoder that it was trained with")  # fmt: skip
    known = trained.get("checksum")
    if None not in (known, pipeline.encoder.checksum) and known != pipeline.encoder.checksum:
        raise ValueError(f"{name}: is another encoder than the one that {gpt.gpt_ckpt} was trained with "
                         f"({trained.get('name')}, checksum {known}; this one's is "
                         f"{pipeline.encoder.checksum})")  # fmt: skip


def sampling_from(options: SamplingOptions) -> Sampling:
    return Sampling(options.cfg_scale, options.cfg_interval, options.cfg_schedule, options.cfg_power,
                    options.temperature, options.top_k, options.top_p)  # fmt: skip


def load_pipeline(gpt: GPTOptions, tokenizer: TokenizerOptions, machine: MachineOptions | None = None,
                  device: torch.device | None = None) -> Pipeline:  # fmt: skip
    """Load both models and see that they fit each other. `device` overrides what `machine` says (one GPU of many)."""
    machine = machine or MachineOptions()
    device = device or pick_device(machine.device)
    vq = load_tokenizer(tokenizer, device, pick_precision(machine.decode_precision, device, "--decode-precision"))
    loaded = load_gpt(gpt, vq.model.downsample, device, gpt_precision(machine, device))
    check_pair(loaded, vq, gpt, tokenizer)
    runner = make_runner(machine.runner, loaded.model, machine.compile, machine.int8)
    return Pipeline(loaded, vq, runner, window=machine.look_ahead)


def gpt_precision(machine: MachineOptions, device: torch.device) -> torch.dtype:
    """What the GPT is loaded in. auto and bf16, where a CPU only plays bf16: float16, if its matrices are packed. A
    code takes as few bytes, and only weights are rounded, eight times as finely."""
    played = machine.precision in ("auto", "bf16") and not multiplies_bf16()
    packs = machine.runner != "eager" and can_pack(device, torch.float16)
    return torch.float16 if played and packs else pick_precision(machine.precision, device)


def check_pair(loaded: GPT, vq: Tokenizer, gpt: GPTOptions, tokenizer: TokenizerOptions) -> None:
    """ValueError where the GPT was not trained on this tokenizer's codes."""
    vocabulary, codebook = loaded.model.config.vocab_size, vq.model.config.codebook_size
    if vocabulary != codebook:
        raise ValueError(f"--vq-ckpt {tokenizer.vq_ckpt}: has {codebook} codes, the GPT in {gpt.gpt_ckpt} draws "
                         f"from {vocabulary}")  # fmt: skip
    if loaded.tokenizer and loaded.tokenizer.get("checksum") not in (None, vq.checksum):
        raise ValueError(f"--vq-ckpt {tokenizer.vq_ckpt}: is another tokenizer than the one whose codes {gpt.gpt_ckpt} "
                         f"was trained on ({loaded.tokenizer.get('name')}, checksum {loaded.tokenizer['checksum']}; "
                         f"this one's is {vq.checksum})")  # fmt: skip
