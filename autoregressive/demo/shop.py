"""What the page stands on: the models, what can be set, who draws. Knows no page."""

from dataclasses import dataclass
from pathlib import Path

import torch

from autoregressive.demo.options import App
from autoregressive.demo.settings import Number, Settings, numbers, sizes_for
from autoregressive.demo.studio import Jobs, Studio
from autoregressive.demo.weights import Pair, class_pair, missing_text, text_pair
from autoregressive.options import SamplingOptions
from autoregressive.sample.options import SampleT2I
from autoregressive.sample.pipeline import Pipeline, load_pipeline, load_text_pipeline

NO_TEXT = """**No text-conditional model is here.** What is missing:

{}

Start the page again then, or give weights of your own by `--gpt-type t2i --gpt-ckpt ... --vq-ckpt ...`."""


@dataclass
class Model:
    """A pair of models on the page: who draws, what can be set, and how it begins."""

    studio: Studio
    bounds: dict[str, Number]
    sizes: list[int]
    begins: Settings
    checkpoint: str

    @property
    def pipeline(self) -> Pipeline:
        return self.studio.pipeline


@dataclass
class Shop:
    """All that the page stands on."""

    options: App
    classes: Model
    text: Model | None
    no_text: str  # why there is none, for people; Markdown
    jobs: Jobs


def model_of(pipeline: Pipeline, options: App, sampling: SamplingOptions, checkpoint: str) -> Model:
    page, config = options.page, pipeline.gpt.model.config
    bounds, sizes = numbers(config.block_size, config.vocab_size, page.max_images), sizes_for(pipeline.gpt.image_size)
    values = {name: getattr(sampling, name) for name in bounds if hasattr(sampling, name)}
    values |= {"top_k": min(sampling.top_k, config.vocab_size), "cfg_interval": max(sampling.cfg_interval, -1),
               "cfg_schedule": sampling.cfg_schedule, "seed": page.seed, "count": min(8, page.max_images)}  # fmt: skip
    for name, bound in bounds.items():  # in the words of the command line
        if not bound.low <= values[name] <= bound.high:
            flag = f"--{name.replace('_', '-')} {values[name]}"
            raise ValueError(f"{flag}: the page takes {bound.low:g} to {bound.high:g}")
    begins = Settings.checked(values, bounds, sizes)
    return Model(Studio(pipeline, page.at_once), bounds, sizes, begins, Path(checkpoint).name)


def open_shop(options: App) -> Shop:
    """Load the models. ValueError where weights that were given do not load; without a text-conditional model the page
    says what is missing."""
    gpt, tokenizer = class_pair(options)
    classes = model_of(load_pipeline(gpt, tokenizer, options.machine), options, options.sampling, gpt.gpt_ckpt)
    pair, asked = text_pair(options), options.gpt.gpt_type == "t2i"
    if pair is None and asked:
        raise ValueError("--gpt-type t2i: no text-conditional weights are given or found; give --gpt-ckpt and "
                         "--vq-ckpt, or `python3 scripts/download.py t2i_XL_stage1_256.pt vq_ds16_t2i.pt` "
                         "fetches published ones")  # fmt: skip
    if asked:
        return Shop(options, classes, text_model(options, pair, options.sampling), "", Jobs())
    try:
        missing = missing_text(options, pair)  # nothing large is fetched that nobody has asked for
        text = text_model(options, pair, SampleT2I().sampling) if not missing else None
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        why = f"**The text-conditional model in `{pair[0].gpt_ckpt}` cannot be used:** {error}" if pair else str(error)
        return Shop(options, classes, None, why, Jobs())
    return Shop(options, classes, text, NO_TEXT.format("\n".join(f"- {line}" for line in missing)), Jobs())


def text_model(options: App, pair: Pair, sampling: SamplingOptions) -> Model:
    pipeline = load_text_pipeline(*pair, options.encoder, options.machine)
    return model_of(pipeline, options, sampling, pair[0].gpt_ckpt)
