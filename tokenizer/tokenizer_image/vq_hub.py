"""Tokenizers on the Hub, or in a folder as it lies there: fetched, written with a model card, pushed."""

from dataclasses import asdict
from pathlib import Path

from engine.checkpoint import read_average, state_of
from engine.distributed import pick_device, pick_precision
from engine.hub import fetch, model_card, told, upload, write_folder
from tokenizer.tokenizer_image.vq_load import Tokenizer, identity, tokenizer_from, without_usage
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


def from_pretrained(name: str | Path, device: str = "auto", precision: str = "none",
                    use_ema: bool = False) -> Tokenizer:  # fmt: skip
    """A tokenizer in eval mode, from a file or folder, a published file's name such as vq_ds16_c2i.pt, or a repository
    USER/NAME. precision: none (float32), bf16, fp16 or auto; the codebook stays float32."""
    place = pick_device(device)
    weights = read_average(fetch(name), use_ema, "from_pretrained")
    options = TokenizerOptions(vq_ckpt=str(weights.path))
    return tokenizer_from(weights, options, place, pick_precision(precision, place))


def push_to_hub(tokenizer: Tokenizer, repo: str, private: bool = False, license: str = "mit") -> str:
    """Upload it with a model card into the repository USER/NAME, which is made where there is none; its page."""
    return upload(lambda folder: save_pretrained(tokenizer, folder, repo, license), repo, private)


def save_pretrained(tokenizer: Tokenizer, folder: str | Path, repo: str | None = None, license: str = "mit") -> None:
    """Write a folder that from_pretrained() and --vq-ckpt take. repo: how its model card calls it."""
    card = card_of(tokenizer, repo or f"USER/{Path(folder).name}", license)
    write_folder(folder, without_usage(state_of(tokenizer.model)), meta_of(tokenizer), card, "--output")


def meta_of(tokenizer: Tokenizer) -> dict:
    """What a file of its weights says of them."""
    rounded = identity(tokenizer.model.state_dict()) != tokenizer.checksum
    papers = {"image_size": tokenizer.image_size, "class_names": tokenizer.class_names, "trained": tokenizer.trained,
              "rounded_from": tokenizer.checksum if rounded else None}  # fmt: skip
    return {"format": 1, "kind": "tokenizer", "model": tokenizer.name, "config": asdict(tokenizer.model.config),
            **{name: value for name, value in papers.items() if value}}  # fmt: skip


def card_of(tokenizer: Tokenizer, repo: str, license: str) -> str:
    model, config, size = tokenizer.model, tokenizer.model.config, tokenizer.image_size
    count, dtype = sum(weight.numel() for weight in model.parameters()), model.quant_conv.weight.dtype
    facts = {
        "model": f"{tokenizer.name}, checksum {tokenizer.checksum}",
        "size": f"{count / 1e6:.1f}M parameters, {str(dtype).removeprefix('torch.')}",
        "codes": f"one for {model.downsample} x {model.downsample} pixels, out of {config.codebook_size}, "
        f"{config.codebook_embed_dim} wide",
        "trained on": size and f"pictures of {size} x {size} px",
        "trained": told(tokenizer.trained),
    }
    about = "A VQ tokenizer: turns a picture into a grid of discrete codes, and codes into a picture."
    name, shown = repo.rpartition("/")[2], size or 256
    usage = USAGE.format(repo=repo, name=name, size=shown, side=shown // model.downsample)
    return model_card(name, about, facts, usage, asdict(config), license, "image-feature-extraction",
                      ["image-tokenizer", "vq"])  # fmt: skip


USAGE = """With LlamaGen installed:

```bash
hf download {repo} --local-dir {name}
python3 tokenizer/tokenizer_image/vq_demo.py --vq-ckpt {name} --image-path PICTURE.jpg --image-size {size}
```

```python
import torch
from tokenizer.tokenizer_image.vq_hub import from_pretrained

tokenizer = from_pretrained("{repo}", device="cpu")
pictures = torch.zeros(1, 3, {size}, {size})  # yours, from -1 to 1
codes = tokenizer.model.encode_codes(pictures)  # int64 [1, {side}, {side}]
again = tokenizer.model.decode_code(codes)  # float32 [1, 3, {size}, {size}]
```"""
