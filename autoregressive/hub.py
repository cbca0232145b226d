"""GPTs on the Hub, or in a folder as it lies there: fetched, written with a model card, pushed."""

from math import isqrt
from pathlib import Path

from autoregressive.load import GPT, downsample_of, gpt_from, options_for
from autoregressive.models.gpt import gpt_config
from autoregressive.models.ways import precision_of
from engine.checkpoint import read_average, state_of
from engine.distributed import pick_device, pick_precision
from engine.hub import fetch, model_card, told, upload, write_folder

NOT_TRAINED = ("cls_embedding.uncond_embedding",)  # saved, but no parameter


def from_pretrained(name: str | Path, device: str = "auto", precision: str = "auto", use_ema: bool = False,
                    image_size: int | str = "auto") -> GPT:  # fmt: skip
    """A GPT in eval mode, from a file or folder, a published file's name such as c2i_B_256.pt, or a repository
    USER/NAME. The other arguments are the flags of these names."""
    place = pick_device(device)
    weights = read_average(fetch(name), use_ema, "from_pretrained")
    options = options_for(weights, image_size=image_size)
    return gpt_from(weights, options, downsample_of(weights), place, pick_precision(precision, place))


def push_to_hub(gpt: GPT, repo: str, private: bool = False, license: str = "mit") -> str:
    """Upload it with a model card into the repository USER/NAME, which is made where there is none; its page."""
    return upload(lambda folder: save_pretrained(gpt, folder, repo, license), repo, private)


def save_pretrained(gpt: GPT, folder: str | Path, repo: str | None = None, license: str = "mit") -> None:
    """Write a folder that from_pretrained() and --gpt-ckpt take. repo: how its model card calls it."""
    if "," in precision_of(gpt.model):
        raise ValueError(f"save_pretrained: it is in {precision_of(gpt.model)} in order to sample; load the GPT by "
                         "from_pretrained(), or with --precision none and without --int8, and save that")  # fmt: skip
    card = card_of(gpt, repo or f"USER/{Path(folder).name}", license)
    write_folder(folder, state_of(gpt.model), meta_of(gpt), card, "--output")


def meta_of(gpt: GPT) -> dict:
    """What a file of its weights says of them: all that is needed to rebuild the model and to sample from it."""
    papers = {"class_names": gpt.class_names, "tokenizer": gpt.tokenizer, "encoder": gpt.encoder,
              "trained": gpt.trained}  # fmt: skip
    return {"format": 1, "kind": "gpt", "model": gpt.name, "config": gpt_config(gpt.model),
            "image_size": gpt.image_size, "downsample_size": gpt.downsample,
            **{name: value for name, value in papers.items() if value}}  # fmt: skip


def card_of(gpt: GPT, repo: str, license: str) -> str:
    config, size, text = gpt.model.config, gpt.image_size, gpt.model.config.model_type == "t2i"
    side = isqrt(config.block_size)
    count = sum(weight.numel() for name, weight in gpt.model.state_dict().items() if name not in NOT_TRAINED)
    names = ", ".join((gpt.class_names or [])[:20]) + ", ..." * (len(gpt.class_names or []) > 20)
    name = repo.rpartition("/")[2]
    facts = {
        "model": f"{gpt.name}, {'text' if text else 'class'}-conditional",
        "size": f"{count / 1e6:,.1f}M parameters, {precision_of(gpt.model)}",
        "shape": f"{config.n_layer} layers, {config.n_head} heads, width {config.dim}",
        "pictures": f"{size} x {size} px: {side} x {side} codes out of {config.vocab_size}",
        "classes": None if text else f"{config.num_classes}{names and ': ' + names}",
        "captions": f"at most {config.cls_token_num} tokens, features {config.caption_dim} wide" if text else None,
        "text encoder": named(gpt.encoder),
        "tokenizer": named(gpt.tokenizer) or f"one of {gpt.downsample} x {gpt.downsample} pixels per code",
        "trained": told(gpt.trained),
    }
    about = ("A plain Llama-shaped decoder that draws a picture code by code, given "
             f"{'a caption' if text else 'a class'}; a VQ tokenizer turns the codes into pixels.")  # fmt: skip
    usage = (TEXT_USAGE if text else CLASS_USAGE).format(
        repo=repo, name=name, size=size, tokens=config.cls_token_num,
        encoder=(gpt.encoder or {}).get("name", "flan-t5-xl"))  # fmt: skip
    task, tag = ("text-to-image",) * 2 if text else ("unconditional-image-generation", "class-conditional")
    return model_card(name, about, facts, usage, gpt_config(gpt.model), license, task,
                      ["image-generation", "autoregressive", tag])  # fmt: skip


def named(papers: dict | None) -> str | None:
    """The model that a GPT was trained with."""
    return f"{papers.get('name')}, checksum {papers.get('checksum')}" if papers else None


# TOKENIZER stands for the weights of the tokenizer that the card names: a file, a folder or a repository.
CLASS_USAGE = """With LlamaGen installed and the tokenizer's weights in TOKENIZER:

```bash
hf download {repo} --local-dir {name}
python3 autoregressive/sample/sample_c2i.py --gpt-ckpt {name} --vq-ckpt TOKENIZER --labels 0 1 2 3
```

```python
from autoregressive.models.generate import Sampling
from autoregressive.options import GPTOptions
from autoregressive.sample.pipeline import load_pipeline
from engine.hub import fetch
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

pipeline = load_pipeline(GPTOptions(gpt_ckpt=fetch("{repo}")), TokenizerOptions(vq_ckpt=fetch("TOKENIZER")))
pictures = pipeline.sample([0, 1], Sampling(cfg_scale=2.0), seed=0)  # uint8 [2, {size}, {size}, 3]
```"""
TEXT_USAGE = """With LlamaGen installed and the tokenizer's weights in TOKENIZER:

```bash
hf download {repo} --local-dir {name}
python3 autoregressive/sample/sample_t2i.py --gpt-ckpt {name} --vq-ckpt TOKENIZER --t5-model-type {encoder} \\
    --cls-token-num {tokens} --prompts "a red fox asleep in the snow"
```

```python
from autoregressive.models.generate import Sampling
from autoregressive.options import EncoderOptions, GPTOptions
from autoregressive.sample.pipeline import load_text_pipeline
from engine.hub import fetch
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

gpt = GPTOptions(gpt_ckpt=fetch("{repo}"), gpt_type="t2i", cls_token_num={tokens})
tokenizer, encoder = TokenizerOptions(vq_ckpt=fetch("TOKENIZER")), EncoderOptions(t5_model_type="{encoder}")
pipeline = load_text_pipeline(gpt, tokenizer, encoder)
captions = pipeline.captions(["a red fox asleep in the snow"])
codes = pipeline.codes(**captions, sampling=Sampling(cfg_scale=7.5, top_k=1000))
pictures = pipeline.to_pictures(codes)  # uint8 [1, {size}, {size}, 3]
```"""
