"""CLIP (Radford et al. 2021): pictures and texts as vectors of one space, and how well they point the same way.

Axes: B pictures or texts of a batch, S side of a picture, E width of an embedding.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from evaluations.features import FeatureNet, ahead
from evaluations.squares import Squares

PREFIX = "A photo depicts "  # Hessel et al. 2021, section 3: captions are scored best after these words
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of both models' training
# Typographic quotes, which OpenAI's reader of text makes plain.
QUOTES = dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'") | dict.fromkeys(range(0x201C, 0x2020), '"')


@dataclass(frozen=True)
class Published:
    """A CLIP that scores are published by: its repository on the Hub, and the sizes by which it is told from others."""

    repository: str
    vision: tuple[int, int, int, int]  # width, layers, patch, side of the picture
    text: tuple[int, int, int]  # width, layers, tokens
    embedding: int
    activation: str


MODELS = {
    "ViT-B/32": Published("openai/clip-vit-base-patch32", (768, 12, 32, 224), (512, 12, 77), 512, "quick_gelu"),
    "ViT-G/14": Published("laion/CLIP-ViT-g-14-laion2B-s12B-b42K", (1408, 40, 14, 224), (1024, 24, 77), 1024, "gelu"),
}


class ImageEmbeddings(nn.Module):
    """As a FeatureNet's module: embeddings of pictures, and no spatial features."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, 3, S, S] from 0 to 255 -> [B, E], not normalised; [B, 0]."""
        pooled = self.model.vision_model(pixel_values=(images / 255 - self.mean) / self.std).pooler_output
        embedded = self.model.visual_projection(pooled)
        return embedded, embedded[:, :0]


@dataclass
class Clip:
    """A CLIP of transformers, in eval mode, float32."""

    pictures: FeatureNet  # bytes of `side` px -> embeddings
    model: nn.Module
    tokenizer: object

    @property
    def side(self) -> int:
        return self.pictures.side

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """[B, longest]: start, text, end, zeros. Too long a text is cut so that its end token stays."""
        longest = self.model.config.text_config.max_position_embeddings
        plain = [html.unescape(html.unescape(text.translate(QUOTES))).strip() for text in texts]
        rows = self.tokenizer(plain, truncation=True, max_length=longest)["input_ids"]
        return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[B, E], not normalised. What stands behind an end token has no say: attention is causal."""
        tokens = self.tokens(texts).to(self.pictures.device)
        return self.model.text_projection(self.model.text_model(input_ids=tokens).pooler_output)

    def similarities(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosines [B] of pictures uint8 [B, S, S, 3] and their captions."""
        return F.cosine_similarity(self.pictures(pictures)[0], self.texts([PREFIX + text for text in captions]))


def clip_score(clip: Clip, pictures: Squares, captions: Sequence[str], batch_size: int) -> float:
    """The mean cosine of pictures and captions, one by one (Hessel et al. 2021, without their factor 2.5)."""
    total, done = 0.0, 0
    with tqdm(total=len(pictures), desc="CLIP score", unit="picture", disable=None, leave=False) as bar:
        for batch in ahead(pictures.batches(batch_size)):
            texts = captions[done : done + len(batch)]
            total += float(clip.similarities(torch.from_numpy(batch), texts).cpu().double().sum())
            done += len(batch)
            bar.update(len(batch))
    return total / done


def read_clip(name: str, folder: str | None, flag: str) -> tuple[nn.Module, object, bool]:
    """Model and tokenizer of MODELS[name], and whether it has that one's sizes; from a folder or from the Hub."""
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise ValueError("CLIP needs transformers: pip install 'llamagen[t2i]'") from error
    published = MODELS[name]
    if folder and not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{flag} {folder}: {'holds no config.json' if Path(folder).is_dir() else 'no such folder'}; "
                         f"expected the files of {published.repository}, as transformers keeps them")  # fmt: skip
    options = {"local_files_only": bool(folder)}
    try:
        model, loaded = CLIPModel.from_pretrained(folder or published.repository, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder or published.repository, **options)
    except Exception as error:  # from OSError to SafetensorError, as the reader likes
        reason = str(error).partition("\n")[0]
        if folder:
            raise ValueError(f"{flag} {folder}: not a whole CLIP ({reason}); fetch {published.repository} "
                             "again") from error  # fmt: skip
        raise ValueError(f"{flag}: the weights of {name} are not there and could not be fetched ({reason}). Fetch "
                         f"{published.repository} from the Hub (config.json, model.safetensors or pytorch_model.bin, "
                         f"and the tokenizer's files), and name its folder by {flag}") from error  # fmt: skip
    text, vision, where = model.config.text_config, model.config.vision_config, f"{flag} {folder or ''}".strip()
    if loaded["missing_keys"] or loaded["mismatched_keys"]:
        absent = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
        raise ValueError(f"{where}: not the weights of a CLIP with these sizes: {len(absent)} are missing or of "
                         f"another shape ({', '.join(absent[:2])}, ...)")  # fmt: skip
    if len(tokenizer) != text.vocab_size or text.eos_token_id not in (2, tokenizer.eos_token_id):  # 2: in old files
        raise ValueError(f"{where}: the tokenizer is not this model's: {len(tokenizer)} words, {text.vocab_size} in "
                         f"the model; end token {tokenizer.eos_token_id}, and {text.eos_token_id} in the model; are "
                         "vocab.json and merges.txt (or tokenizer.json) there?")  # fmt: skip
    sizes = ((vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size),
             (text.hidden_size, text.num_hidden_layers, text.max_position_embeddings),
             model.config.projection_dim, vision.hidden_act)  # fmt: skip
    known = sizes == (published.vision, published.text, published.embedding, published.activation)
    return model.float().eval().requires_grad_(False), tokenizer, known


def clip_net(name: str, model: nn.Module, tokenizer: object, checksum: str, standard: bool) -> Clip:
    """`name`: as reports tell it. The model's device is where it computes."""
    device = next(model.parameters()).device
    module = ImageEmbeddings(model).to(device)
    head = torch.empty(0, model.config.projection_dim, device=device)  # no classes
    side = model.config.vision_config.image_size
    return Clip(FeatureNet(name, checksum, standard, module, head, side), model, tokenizer)
