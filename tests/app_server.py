"""The page on tiny models, listening for a test; how fast they draw can be set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import sleep

from tiny_pipeline import ENCODER, MACHINE, options, write_files, write_text_files

from autoregressive.demo.options import App, PageOptions
from autoregressive.demo.serve import listen
from autoregressive.demo.shop import Shop, model_of, open_shop
from autoregressive.models.runners import EagerRunner
from autoregressive.options import SamplingOptions
from autoregressive.sample.pipeline import load_text_pipeline

PAGE = PageOptions(max_images=6)


def tiny_shop(folder: Path, text: bool = False, page: PageOptions = PAGE) -> Shop:
    """Of tiny models that are written into `folder`, in float32 on the CPU."""
    (folder / "classes").mkdir()
    gpt, vq = options(write_files(folder / "classes"))
    shop = open_shop(App(gpt, vq, machine=MACHINE, page=page))
    if text:
        (folder / "text").mkdir()
        files = write_text_files(folder / "text")
        pair = options(files, {"gpt_type": "t2i", "cls_token_num": 120})
        pipeline = load_text_pipeline(*pair, replace(ENCODER, t5_path=str(files / "t5")), MACHINE)
        shop.text = model_of(pipeline, shop.options, SamplingOptions(cfg_scale=7.5, top_k=1000), "text.pt")
    return shop


@contextmanager
def listening(shop: Shop) -> Iterator[str]:
    """The address of the page."""
    blocks = listen(shop, wait=False)
    try:
        yield blocks.local_url
    finally:
        blocks.close(verbose=False)


@contextmanager
def slowly(seconds: float, on_step: Callable[[int], None] = lambda rows: None) -> Iterator[None]:
    """Each step of a model takes so long; on_step hears of its rows."""
    step = EagerRunner.step

    def slow(self, codes):
        sleep(seconds)
        on_step(len(codes))
        return step(self, codes)

    EagerRunner.step = slow
    try:
        yield
    finally:
        EagerRunner.step = step
