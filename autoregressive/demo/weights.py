"""Which weights the page opens on: those that are given, published ones that are there, or the pair that ships."""

from dataclasses import replace
from pathlib import Path

from autoregressive.bundled import SIZE, or_bundled
from autoregressive.demo.options import App
from autoregressive.options import GPTOptions
from autoregressive.sample.options import text_gpt, with_text_tokens
from engine.hub import PUBLISHED
from language.t5 import at_hand, lacking
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

FOLDER = Path("pretrained_models")
Pair = tuple[GPTOptions, TokenizerOptions]


def named(model: str, kind: str) -> list[str]:
    """The published files of a GPT of this size and kind; of all sizes with auto."""
    files = [name for name in PUBLISHED if name.startswith(f"{kind}_")]
    size = model.removeprefix("GPT-")
    return files if model == "auto" else [name for name in files if f"_{size}_" in name]


def class_pair(options: App, folder: Path = FOLDER) -> Pair:
    """The class-conditional GPT and its tokenizer. What is given is taken, whether it is there or not."""
    gpt, tokenizer = options.gpt, options.tokenizer
    if gpt.gpt_type != "c2i":  # the flags speak of the other model
        gpt, tokenizer = GPTOptions(), TokenizerOptions()
    if gpt.gpt_ckpt or tokenizer.vq_ckpt:
        return gpt, tokenizer
    names = named(gpt.gpt_model, "c2i")
    if found := published_pair(gpt, tokenizer, names, folder / "vq_ds16_c2i.pt"):
        return found
    if gpt.gpt_model not in ("auto", SIZE):
        fetch = f"`python3 scripts/download.py {names[0]} vq_ds16_c2i.pt` fetches them, or " if names else ""
        raise ValueError(f"--gpt-model {gpt.gpt_model}: {folder} has no published weights of it; {fetch}give yours by "
                         "--gpt-ckpt and --vq-ckpt")  # fmt: skip
    return or_bundled(gpt, tokenizer)


def text_pair(options: App, folder: Path = FOLDER) -> Pair | None:
    """The text-conditional ones; None where none are given or found."""
    gpt, tokenizer = options.gpt, options.tokenizer
    if gpt.gpt_type != "t2i":
        gpt, tokenizer = text_gpt(), TokenizerOptions()
    gpt = with_text_tokens(gpt)
    if gpt.gpt_ckpt or tokenizer.vq_ckpt:
        return gpt, tokenizer
    return published_pair(gpt, tokenizer, named(gpt.gpt_model, "t2i"), folder / "vq_ds16_t2i.pt")


def missing_text(options: App, pair: Pair | None, folder: Path = FOLDER) -> list[str]:
    """What a text-conditional model lacks here, and where it comes from; in Markdown, a line each. `pair`: what
    text_pair() has found. Nothing is fetched or loaded."""
    lines, encoder = [], options.encoder
    if pair is None:
        names = named("auto", "t2i")
        gpt = [] if any((folder / name).is_file() for name in names) else names[:1]
        vq = [] if (folder / "vq_ds16_t2i.pt").is_file() else ["vq_ds16_t2i.pt"]
        what = " and ".join(["weights"] * len(gpt) + ["a tokenizer"] * len(vq))
        lines.append(f"{what}: `python3 scripts/download.py {' '.join(gpt + vq)}`")
    if packages := lacking():
        lines.append(f"{', '.join(packages)}: `pip install 'llamagen[t2i]'`")
    try:
        there = at_hand(encoder.t5_model_type, encoder.t5_path)
    except ValueError as error:
        lines.append(f"the text encoder: {error}")
        there = True
    if not there:
        lines.append(f"the text encoder: the files of `{encoder.t5_model_type}` in `{encoder.t5_path}`; or start the "
                     "page with `--gpt-type t2i`, which fetches them")  # fmt: skip
    return lines


def published_pair(gpt: GPTOptions, tokenizer: TokenizerOptions, names: list[str], vq: Path) -> Pair | None:
    """With the first of these files that lies beside the tokenizer's."""
    found = next((vq.parent / name for name in names if (vq.parent / name).is_file()), None)
    if found is None or not vq.is_file():
        return None
    return replace(gpt, gpt_ckpt=str(found)), replace(tokenizer, vq_ckpt=str(vq))
