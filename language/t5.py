"""The text encoder: any T5 encoder of transformers, from a local folder or from the Hub.

A caption's features are those of its own tokens, </s> included, whatever stood beside it in the batch.

Axes: B captions of a batch, L tokens of its longest, n tokens of one caption, D width of a feature.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from language.clean import clean_caption
from language.padding import pad_left, pad_right

HUB = {name: f"google/{name}" for name in ("flan-t5-xl", "t5-v1_1-xl", "t5-v1_1-xxl")}
# Packages by what they are imported as, those that clean captions among them.
NEEDED = {"transformers": "transformers", "sentencepiece": "sentencepiece", "protobuf": "google.protobuf",
          "ftfy": "ftfy", "beautifulsoup4": "bs4"}  # fmt: skip
MAX_LENGTH = 120  # tokens of a caption, its end token included, as published models were trained
# What a folder must hold: one file of each.
PARTS = {
    "config": ("config.json",),
    "weights": ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
    "tokenizer": ("tokenizer.json", "spiece.model"),
}


class Tokenize:
    """Caption -> its tokens, at most max_length with the end token. It goes to a worker without the encoder."""

    def __init__(self, tokenizer, max_length: int = MAX_LENGTH, clean: bool = True):
        self.tokenizer, self.max_length, self.clean = tokenizer, max_length, clean
        self.cut = 0  # captions that had too many tokens

    def __call__(self, text: str) -> list[int]:
        return self.all([text])[0]

    def cleaned(self, text: str) -> str:
        """What is read of a text."""
        text = clean_caption(text) if self.clean else text.strip()
        return text.encode(errors="replace").decode()  # half a surrogate pair, which JSON may hold, is no text

    def all(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each caption; says once if some were cut."""
        rows = self._whole(texts)
        long = [row for row in rows if len(row) > self.max_length]
        if long and not self.cut:
            warnings.warn(f"{len(long)} of {len(rows)} captions have more than {self.max_length} tokens (the longest "
                          f"{max(map(len, long))}): what comes after them is not read", stacklevel=2)  # fmt: skip
        self.cut += len(long)
        # Cut by hand, as the tokenizer does it, but counted.
        return [row if len(row) <= self.max_length else [*row[: self.max_length - 1], row[-1]] for row in rows]

    def long(self, texts: Sequence[str]) -> list[str]:
        """Those of the captions that are cut."""
        return [text for text, row in zip(texts, self._whole(texts)) if len(row) > self.max_length]

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        """All tokens of each caption."""
        if not texts:
            return []
        texts = [self.cleaned(text) for text in texts]
        return self.tokenizer(texts, truncation=False, padding=False, return_attention_mask=False)["input_ids"]


class TextEncoder:
    """A frozen T5 encoder and its tokenizer.

    `name`: what stores and checkpoints call it. `clean`: captions are cleaned first (language/clean.py), as published
    models want them.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        name: str,
        device: torch.device | str = "cpu",
        max_length: int = MAX_LENGTH,
        clean: bool = True,
    ):
        self.model, self.name = model.eval().requires_grad_(False).to(device), name
        self.tokenize = Tokenize(tokenizer, max_length, clean)
        self.width: int = model.config.d_model

    @classmethod
    def load(
        cls,
        name: str = "flan-t5-xl",
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_length: int = MAX_LENGTH,
        clean: bool = True,
        flag: str = "--t5-model-type",
    ) -> "TextEncoder":
        """`name`: a folder below `folder`, a folder, a name of HUB, or an id of the Hub; the first that is there.

        `flag`: by which the name was given. In float16 the weights that would overflow stay float32.
        """
        model, tokenizer = read_encoder(find_encoder(name, folder, flag), dtype, flag)
        return cls(model, tokenizer, Path(name).name, device, max_length, clean)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "TextEncoder":
        self.model.to(device)
        return self

    def offload(self) -> "TextEncoder":
        """Moves the weights to the CPU, which leaves a small GPU to the other models; `to` brings them back."""
        gpu = self.device.type
        self.to("cpu")
        if gpu == "cuda":
            torch.cuda.empty_cache()
        return self

    @torch.no_grad()  # not inference_mode(): what is made there cannot be trained on
    def features(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Tokens int64 [B, L], padded on either side (T5's positions are relative), and valid bool [B, L] -> [B, L, D],
        zeros where it is padded."""
        tokens, valid = tokens.to(self.device), valid.to(self.device)
        with torch.autocast(self.device.type, enabled=False):  # a trainer's would change the encoder's precision
            found = self.model(input_ids=tokens, attention_mask=valid.long()).last_hidden_state
        return found.masked_fill(~valid[..., None], 0)

    def encode(
        self, texts: Sequence[str], batch_size: int = 64, device: torch.device | str | None = None
    ) -> list[Tensor]:
        """Features [n, D] of each caption, on the encoder's device or on `device`."""
        rows = self.tokenize.all(texts)
        by_length = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # so that little is padded
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for start in range(0, len(rows), batch_size):
            places = by_length[start : start + batch_size]
            tokens, valid = pad_left([torch.tensor(rows[place]) for place in places])
            features = self.features(tokens, valid)
            packed = features[valid.to(features.device)].to(device or features.device)  # [all tokens, D]
            for place, each in zip(places, packed.split(valid.sum(1).tolist())):
                found[place] = each
        return found

    @cached_property
    def checksum(self) -> str | None:
        """A short hash of some values of every weight, as bf16 holds them: the same in float32 and in bf16, and at
        once. None in float16, which rounds them otherwise."""
        if self.model.dtype == torch.float16:
            return None
        digest = hashlib.sha256()
        for name, value in sorted(self.model.named_parameters()):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            some = value.detach().flatten()[:: max(1, value.numel() // 4096)]
            digest.update(some.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def papers(self) -> dict:
        """What a checkpoint says of the encoder that it was trained with."""
        return {"name": self.name, "checksum": self.checksum, "width": self.width,
                "max_length": self.tokenize.max_length, "cleaned": self.tokenize.clean}  # fmt: skip


class T5Embedder:
    """The published face of the encoder: captions -> features and mask, padded on the right.

    `local_cache`: the encoder is the folder {cache_dir}/{dir_or_name}; otherwise a name or an id of the Hub is fetched
    where that folder is not.
    """

    def __init__(
        self,
        device: torch.device | str,
        local_cache: bool = True,
        cache_dir: str | None = None,
        dir_or_name: str = "flan-t5-xl",
        torch_dtype: torch.dtype | None = None,
        model_max_length: int = MAX_LENGTH,
    ):
        if local_cache:
            check_folder(Path(cache_dir or "") / dir_or_name, HUB.get(dir_or_name, "a T5"), "T5Embedder")
        self.encoder = TextEncoder.load(dir_or_name, cache_dir, device, torch_dtype or torch.bfloat16,
                                        model_max_length, flag="T5Embedder")  # fmt: skip
        self.device, self.model_max_length = self.encoder.device, model_max_length

    def get_text_embeddings(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """[B, model_max_length, D] with zeros after the caption, and mask int64 [B, model_max_length]."""
        features, valid = pad_right(self.encoder.encode(texts), self.model_max_length)
        return features, valid.long()


def find_encoder(name: str, folder: str | Path | None, flag: str) -> str:
    """The folder {folder}/{name} or {name}, where one is there and whole; else an id of the Hub."""
    below = Path(folder or "") / name
    for place in (below, Path(name)):
        if place.is_dir():
            check_folder(place, HUB.get(place.name, "a T5"), flag)
            return str(place)
    if name in HUB:
        return HUB[name]
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise ValueError(f"{flag} {name}: neither a folder (nor is {below}) nor the name of a T5 encoder; give a folder, "
                     f"one of {', '.join(HUB)}, or an id of the Hub such as google/flan-t5-small")  # fmt: skip


def at_hand(name: str, folder: str | Path | None, flag: str = "--t5-model-type") -> bool:
    """Whether the encoder would be read from this machine: from a folder, or from what was fetched from the Hub."""
    place = find_encoder(name, folder, flag)
    if Path(place).is_dir():
        return True
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # which transformers needs
        return False

    def held(file: str) -> str | None:
        found = try_to_load_from_cache(place, file)
        return found if isinstance(found, str) else None

    def shards(index: str | None) -> bool:
        return index is not None and all(map(held, set(json.loads(Path(index).read_text())["weight_map"].values())))

    files = ("model.safetensors", "pytorch_model.bin")
    weights = any(held(file) or shards(held(f"{file}.index.json")) for file in files)
    return weights and held("config.json") is not None and any(map(held, PARTS["tokenizer"]))


def lacking() -> list[str]:
    """Packages that the encoder needs and that are not installed."""
    return [package for package, module in NEEDED.items() if not installed(module)]


def installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # the package around it is missing
        return False


def check_folder(folder: Path, what: str, flag: str) -> None:
    """ValueError, naming what is missing, where the folder does not hold an encoder."""
    if not folder.is_dir():
        raise ValueError(f"{flag} {folder}: no such folder; fetch the files of {what} from the Hub into it")
    missing = [f"the {part} ({' or '.join(names)})" for part, names in PARTS.items()
               if not any(next(folder.glob(name), None) for name in names)]  # fmt: skip
    if missing:
        raise ValueError(f"{flag} {folder}: lacks {', '.join(missing)}; fetch the files of {what} from the Hub again")


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' bars for weights that are read or written within a second or two."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_encoder(source: str, dtype: torch.dtype, flag: str) -> tuple[nn.Module, object]:
    """Model and tokenizer of a folder or of a repository on the Hub."""
    try:
        import google.protobuf  # noqa: F401 - the tokenizer needs both where there is no tokenizer.json
        import sentencepiece  # noqa: F401
        from transformers import AutoConfig, AutoTokenizer, T5EncoderModel
    except ImportError as error:
        raise ValueError(f"the text encoder needs transformers, sentencepiece and protobuf ({error}): "
                         "pip install 'llamagen[t2i]'") from error  # fmt: skip
    local = Path(source).is_dir()
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        if config.model_type != "t5":
            raise ValueError(f"is a {config.model_type}, not a T5")
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        with without_bars():
            model, loaded = T5EncoderModel.from_pretrained(  # what does not fit is refused below, by its name
                source, dtype=dtype, local_files_only=local, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # from OSError to SafetensorError, as the reader likes
        reason = str(error).strip().partition("\n")[0]
        if local:
            raise ValueError(f"{flag} {source}: not a whole T5 encoder ({reason}); fetch its files again") from error
        raise ValueError(f"{flag}: {source} is not on this machine and could not be fetched ({reason}). Fetch its "
                         "files from the Hub elsewhere (config.json, the weights, tokenizer.json or spiece.model), "
                         f"and give their folder by {flag}") from error  # fmt: skip
    absent = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if absent:
        raise ValueError(f"{flag} {source}: not the weights of a T5 encoder of its config.json: {len(absent)} are "
                         f"missing or of another shape ({', '.join(absent[:2])}, ...)")  # fmt: skip
    if len(tokenizer) > config.vocab_size or tokenizer.eos_token_id != config.eos_token_id:
        raise ValueError(f"{flag} {source}: the tokenizer is not this model's: {len(tokenizer)} words, "
                         f"{config.vocab_size} in the model; end token {tokenizer.eos_token_id}, and "
                         f"{config.eos_token_id} in the model")  # fmt: skip
    tokenizer.model_max_length = int(1e9)  # we cut by ourselves; otherwise it warns beyond 512
    return model.eval().requires_grad_(False), tokenizer
