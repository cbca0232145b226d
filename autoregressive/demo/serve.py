"""From options to a page that listens: weights, models, studios."""

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from autoregressive.demo.options import App
from autoregressive.demo.settings import Number, Settings, numbers, sizes_for
from autoregressive.demo.studio import Jobs, Studio
from autoregressive.demo.weights import class_pair, text_pair
from autoregressive.options import SamplingOptions
from autoregressive.sample.options import SampleT2I
from autoregressive.sample.pipeline import Pipeline, load_pipeline, load_text_pipeline

MISSING = "the page needs gradio: pip install 'llamagen[demo]'"
UPLOAD = "20mb"
MAX_PIXELS = 40_000_000  # of an upload: a picture takes three bytes each once it is opened
NO_TEXT = """**No text-conditional model is here.** It takes three things:

- its weights and its tokenizer: `python3 scripts/download.py t2i_XL_stage1_256.pt vq_ds16_t2i.pt`
- the text encoder flan-t5-xl, in `pretrained_models/t5-ckpt/flan-t5-xl` or from the Hub
- `pip install 'llamagen[t2i]'`

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
    no_text: str  # why there is none, for people
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
    pipeline = load_pipeline(gpt, tokenizer, options.machine)
    classes = model_of(pipeline, options, options.sampling, gpt.gpt_ckpt)
    text, no_text, pair = None, NO_TEXT, text_pair(options)
    if pair is None and options.gpt.gpt_type == "t2i":
        raise ValueError("--gpt-type t2i: no text-conditional weights are given or found; give --gpt-ckpt and "
                         "--vq-ckpt, or `python3 scripts/download.py t2i_XL_stage1_256.pt vq_ds16_t2i.pt` "
                         "fetches published ones")  # fmt: skip
    if pair is not None:
        try:
            pipeline = load_text_pipeline(*pair, options.encoder, options.machine)
            sampling = options.sampling if options.gpt.gpt_type == "t2i" else SampleT2I().sampling
            text = model_of(pipeline, options, sampling, pair[0].gpt_ckpt)
        except (ValueError, OSError) as error:
            if options.gpt.gpt_type == "t2i":  # it was asked for
                raise
            no_text = f"**The text-conditional model in {pair[0].gpt_ckpt} cannot be used:** {error}"
    return Shop(options, classes, text, no_text, Jobs())


def serve(options: App) -> None:
    """Load, build, and listen until Ctrl-C."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError(MISSING) from error
    listen(open_shop(options))


def listen(shop: Shop, wait: bool = True):
    """The page, as gradio's Blocks; without `wait` it listens beside what the caller goes on with."""
    from autoregressive.demo.page import STYLE, build, theme

    page = shop.options.page
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many, and warns from here on
    blocks = build(shop)
    blocks.queue(max_size=page.max_queue)
    port = None if page.port == "auto" else page.port
    blocks.launch(server_name=page.host, server_port=port, inbrowser=page.open_browser, max_file_size=UPLOAD,
                  show_error=True, share=False, state_session_capacity=200, theme=theme(), css=STYLE,
                  footer_links=["api"], ssr_mode=False, pwa=False, mcp_server=False,
                  prevent_thread_lock=not wait)  # fmt: skip
    return blocks
