"""The page: its tabs, and what is particular to each."""

from collections.abc import Callable, Iterator
from reprlib import repr as short

import gradio as gr
import numpy as np
import torch
from PIL import Image

from autoregressive.demo.desk import LIGHT, OPENING, Controls, Desk, Drawn, Plan, raw, said, uploaded, visitor
from autoregressive.demo.pictures import code_map, dimmed, fitted, opened, table_of
from autoregressive.demo.settings import Number
from autoregressive.demo.shop import Model, Shop
from autoregressive.sample.drawn import own_codes, resized
from autoregressive.sample.grid import SHIPPED_PROMPTS, default_classes, repeated
from autoregressive.sample.pipeline import Pipeline
from dataset.classes import find_label
from dataset.text import read_prompts
from evaluations.reconstruct import psnr

STYLE = """
.bar { min-height: 3rem; }
.bar progress { width: 100%; height: .5rem; appearance: none; border: 0; border-radius: .25rem; overflow: hidden; }
.bar progress, .bar ::-webkit-progress-bar { background: var(--border-color-primary); }
.bar ::-webkit-progress-value { background: var(--color-accent); }
.bar ::-moz-progress-bar { background: var(--color-accent); }
.drawn .grid-wrap { max-height: none; min-height: 0; }
.drawn .grid-container { grid-template-columns: repeat(auto-fill, minmax(min(9rem, 40%), 1fr)) !important; }
.preview img { image-rendering: pixelated; }
.codes { font: .75rem/1.25 ui-monospace, monospace; overflow-x: auto; white-space: pre; }
"""
MOST = 64  # classes or prompts in one drawing
TEXT_LIMIT = 1000  # characters of a prompt
SHOWN = 256  # pixels: smaller pictures are enlarged to it where they are only looked at
LIMITS = """The model draws codes in raster order, row by row from the top left, each from those before it. So it can
go on from the **top** of a picture, or from a top part that ends within a row. It cannot fill a hole, nor draw upwards
or to the left of what is kept. What is kept are codes: the tokenizer redraws that part, too, and its lower edge may
change a little with what comes below."""


def theme() -> gr.themes.Base:
    """With the system's own fonts: nothing is fetched from elsewhere."""
    return gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def upload(label: str) -> gr.Image:
    """A picture from the browser, which comes as the path of Gradio's copy. The page opens it itself: Gradio's own
    opening fails in words that are not for people."""
    image = uploaded(gr.Image(label=label, sources=["upload", "clipboard"], format="png", height=SHOWN + 60))
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def build(shop: Shop) -> gr.Blocks:
    pipeline = shop.classes.pipeline
    gpt = pipeline.gpt
    with gr.Blocks(title="LlamaGen", analytics_enabled=False, delete_cache=(3600, 6 * 3600)) as page:
        gr.Markdown(f"# LlamaGen\n{gpt.name} (`{shop.classes.checkpoint}`) draws pictures of {gpt.image_size} x "
                    f"{gpt.image_size} pixels as {pipeline.grid} x {pipeline.grid} codes out of "
                    f"{gpt.model.config.vocab_size:,}, on {pipeline.device.type}.")  # fmt: skip
        with gr.Tab("Classes"):
            desk = class_tab(shop)
        with gr.Tab("Prompts"):
            if shop.text is None:
                gr.Markdown(shop.no_text)
            else:
                text_tab(shop, shop.text)
        with gr.Tab("Completion"):
            completion_tab(shop, desk)
        with gr.Tab("Tokenizer"):
            tokenizer_tab(shop.classes)

        def leave(request: gr.Request) -> None:
            shop.jobs.leave(f"{visitor(request)}/")

        page.unload(leave)
    return page


# ---- classes


def entries(model: Model) -> list[tuple[str, int]]:
    """What stands in the menu of classes; the number tells those of the same name apart."""
    return [(name if name == str(i) else f"{name} · {i}", i) for i, name in enumerate(model.pipeline.class_names)]


def labels_of(classes, model: Model) -> list[int]:
    """The numbers of classes that a browser or a file names by number or name, whatever it holds."""
    if classes is None or classes == []:
        raise ValueError("Choose at least one class.")
    if not isinstance(classes, list) or not all(type(each) in (int, str) for each in classes):
        raise ValueError(f"Classes {short(classes)}: must be a list of numbers or names")
    if len(classes) > MOST:
        raise ValueError(f"{len(classes)} classes were chosen: {MOST} are the most.")
    return [find_label(each, model.pipeline.class_names) for each in classes]


def class_plan(model: Model, classes, count: int) -> Plan:
    chosen, every = labels_of(classes, model), model.pipeline.class_names
    labels = repeated(chosen, count)

    def conditions(pipeline: Pipeline) -> dict:
        return {"cond": pipeline.labels(labels)}

    return Plan([every[label] for label in labels], conditions,
                {"classes": [every[label] for label in chosen], "labels": chosen})  # fmt: skip


def known_classes(papers: dict, model: Model) -> list[int]:
    """The classes that a picture's papers name. Those of the command line have names alone."""
    held = papers.get("labels", papers.get("classes", papers.get("class")))
    if not held:
        raise ValueError("This picture's settings name no classes.")
    held, names = [held] if isinstance(held, str) else held, papers.get("classes")
    if isinstance(names, list) and isinstance(held, list) and len(names) == len(held):  # numbers are of one model alone
        every = dict(enumerate(model.pipeline.class_names))
        held = [number if type(number) is int and every.get(number) == name else name
                for number, name in zip(held, names)]  # fmt: skip
    distinct = [each for i, each in enumerate(held) if each not in held[:i]] if isinstance(held, list) else held
    return labels_of(distinct, model)


def class_menu(model: Model, value: list[int]) -> gr.Dropdown:
    return raw(gr.Dropdown(entries(model), value=value, multiselect=True, max_choices=MOST, label="Classes",
                           info="Type to search; pictures show them in turn"))  # fmt: skip


def class_tab(shop: Shop) -> Desk:
    model = shop.classes
    desk, first = Desk("classes", shop.jobs, model), default_classes(model.pipeline)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            classes = class_menu(model, first)
            desk.buttons("Draw")
            controls = Controls(model)
            some = [[part] for part in (first[:1], first[1:3], first[3:7]) if part]
            gr.Examples(some, [classes], label="Examples", api_visibility="private")
        with gr.Column(scale=3, min_width=320):
            desk.results()
    desk.wire(controls, [classes], lambda data, count: class_plan(model, data[classes], count),
              lambda papers, picture: [known_classes(papers, model)])  # fmt: skip
    return desk


# ---- prompts


def text_plan(model: Model, prompts: str | None, negative: str | None, count: int) -> Plan:
    lines = [line.strip() for line in str(prompts or "").splitlines() if line.strip()]
    if not lines:
        raise ValueError("Write a prompt first.")
    if len(lines) > MOST:
        raise ValueError(f"{len(lines)} prompts were written: {MOST} are the most.")
    for text in (*lines, str(negative or "")):
        if len(text) > TEXT_LIMIT:
            raise ValueError(f"A prompt has {len(text)} characters: {TEXT_LIMIT} are the most.")
    names, tokenize = repeated(lines, count), model.pipeline.encoder.tokenize
    cut = len(tokenize.long([*lines, negative or ""]))

    def conditions(pipeline: Pipeline) -> dict:
        return pipeline.captions(names, negative or None)

    return Plan(names, conditions, {"prompts": lines, "negative_prompt": negative or None},
                note=f"Of {cut} prompts only the first {tokenize.max_length} tokens were read." if cut else "")


def known_prompts(papers: dict, picture: Callable) -> list[str]:
    held = papers.get("prompts", papers.get("prompt"))
    held = [held] if isinstance(held, str) else held
    if not isinstance(held, list) or not all(isinstance(each, str) for each in held):
        raise ValueError("This picture's settings name no prompts.")
    return ["\n".join(dict.fromkeys(held)), str(papers.get("negative_prompt") or "")]


def text_tab(shop: Shop, model: Model) -> None:
    desk = Desk("prompts", shop.jobs, model)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompts = gr.Textbox(label="Prompts", info="One a line; pictures show them in turn", lines=3,
                                 max_length=16 * TEXT_LIMIT)  # fmt: skip
            negative = gr.Textbox(label="Negative prompt", info="What guidance leads away from",
                                  max_length=TEXT_LIMIT)  # fmt: skip
            desk.buttons("Draw")
            controls = Controls(model)
            gr.Examples(read_prompts(SHIPPED_PROMPTS)[:4], [prompts], label="Examples", api_visibility="private")
        with gr.Column(scale=3, min_width=320):
            desk.results()
    desk.wire(controls, [prompts, negative],
              lambda data, count: text_plan(model, data[prompts], data[negative], count), known_prompts)  # fmt: skip


# ---- completion


def completion_tab(shop: Shop, others: Desk) -> None:
    model, grid = shop.classes, shop.classes.pipeline.grid
    side, desk = model.pipeline.gpt.image_size, Desk("completion", shop.jobs, model)
    bounds = Number("Rows kept", 0, grid - 1, 1), Number("Codes kept of the next row", 0, grid - 1, 1)
    gr.Markdown(LIMITS)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            source = upload("A picture to complete")
            pick = gr.Button("Take the picture chosen under Classes")
            rows, columns = (raw(gr.Slider(bound.low, bound.high, value, step=1, label=bound.label))
                             for bound, value in zip(bounds, (grid // 2, 0)))  # fmt: skip
            classes = class_menu(model, default_classes(model.pipeline)[:1])
            desk.buttons("Complete")
            controls = Controls(model)
        with gr.Column(scale=3, min_width=320):
            kept = gr.Image(label="What is kept", interactive=False, format="png", buttons=[], height=SHOWN + 60,
                            elem_classes="kept")  # fmt: skip
            desk.results()
    fit = gr.State()  # the picture at the model's size, uint8 [S, S, 3]

    def measures(*values) -> tuple[int, int]:
        found = tuple(bound.checked(value) for bound, value in zip(bounds, values))
        if not any(found):
            raise ValueError("Keep at least one code: the whole picture is drawn under Classes.")
        return found

    def load(path: str | None, *values) -> Iterator[tuple]:
        yield None, None  # whatever follows, it is not the last picture
        with said():
            if path is not None:
                picture = fitted(opened(path)[0], side)[0]
                yield picture, show(picture, *values)

    def show(picture: np.ndarray | None, *values) -> np.ndarray | None:
        with said():
            if picture is None:
                return None
            above, left = (bound.checked(value) for bound, value in zip(bounds, values))
            return dimmed(resized(picture[None], max(side, SHOWN // grid * grid))[0], above * grid + left, grid)

    def plan(data: dict, count: int) -> Plan:
        above, left = measures(data[rows], data[columns])
        picture, opening = opened(data[source])
        own = own_codes(data[source], picture, model.pipeline)
        codes = model.pipeline.encode(picture) if own is None else own
        planned = class_plan(model, data[classes], count)
        planned.known = lambda pipeline: pipeline.first_codes(codes, above, left)
        planned.papers |= {"kept_codes": above * grid + left, "keep_rows": above, "keep_columns": left}
        planned.note = opening + fitted(picture, side)[1] if own is None else "From its own codes."
        return planned

    def restore(papers: dict, picture: Callable[[], Image.Image | str]) -> list:
        given = papers.get("keep_rows", grid // 2), papers.get("keep_columns", 0)
        held = [bound.checked(value) for bound, value in zip(bounds, given)]
        one = "picture" in papers  # not a sheet of them
        return [picture() if one else gr.skip(), *held, known_classes(papers, model)]

    def take(drawn: list[Drawn], chosen: int) -> Image.Image:
        with said():
            if not drawn:
                raise ValueError("Draw some pictures under Classes first.")
            return others.picked(drawn, chosen).png(model.pipeline, others.shown)

    pick.click(take, [others.drawn, others.chosen], source, **OPENING)
    source.change(load, [source, rows, columns], [fit, kept], **OPENING)
    for changed in (rows.change, columns.change):
        changed(show, [fit, rows, columns], kept, **LIGHT)
    desk.wire(controls, [source, rows, columns, classes], plan, restore)


# ---- tokenizer


def tokenizer_tab(model: Model) -> None:
    pipeline, side = model.pipeline, model.pipeline.gpt.image_size
    gr.Markdown(f"{pipeline.tokenizer.name} turns {pipeline.tokenizer.model.downsample} x "
                f"{pipeline.tokenizer.model.downsample} pixels into one code out of "
                f"{pipeline.tokenizer.model.config.codebook_size:,}, and codes into pixels again.")  # fmt: skip
    source = upload("A picture")
    go = gr.Button("Encode and decode", variant="primary")
    with gr.Row():
        shown = [gr.Image(label=label, interactive=False, format="png", buttons=["download"], height=SHOWN + 60)
                 for label in ("Original", "Codes, a colour each", "Reconstruction")]  # fmt: skip
    told, numbers = gr.Markdown(), gr.HTML()

    def through(path: str | None) -> tuple:
        with said():
            picture, opening = opened(path)
            original, fitting = fitted(picture, side)
            codes = pipeline.encode(Image.fromarray(original))
            again = pipeline.to_pictures(codes[None])
        distance = float(psnr(*map(torch.tensor, (original[None], again))))
        codes = codes.reshape(pipeline.grid, pipeline.grid).cpu().numpy()
        looks = max(side, SHOWN)
        words = (f"{opening}{fitting}{codes.size} codes, {len(np.unique(codes))} of them different · "
                 f"PSNR {distance:.2f} dB")  # fmt: skip
        pictures = [resized(original[None], looks)[0], code_map(codes, pipeline.gpt.model.config.vocab_size, looks),
                    resized(again, looks)[0]]  # fmt: skip
        return *pictures, words, f'<div class="codes">{table_of(codes)}</div>'

    go.click(through, source, [*shown, told, numbers], **{**OPENING, "show_progress": "full"}, api_name="tokenize")
