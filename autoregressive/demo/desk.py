"""A place on the page where something is drawn: its settings, its buttons, its pictures, and what a click does.

Nothing that comes from a browser is trusted: numbers are checked against their bounds, whatever the controls allow.
What is wrong is said on the page, and the server goes on.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoregressive.demo.pictures import lay_out
from autoregressive.demo.settings import SEEDS, Settings
from autoregressive.demo.shop import Model
from autoregressive.demo.studio import Frame, Jobs
from autoregressive.models.draw import SCHEDULES
from autoregressive.sample.drawn import metadata, read_settings, resized, save_drawn
from autoregressive.sample.pipeline import Pipeline

# What is done at once does not wait for those that draw. But it goes through the queue, and is refused where that is
# full, since Gradio's page shows no errors of what does not.
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
LIGHT = {**QUIET, "concurrency_limit": None}
# An upload of a few kilobytes may take hundreds of megabytes while it is opened.
OPENING = {**QUIET, "concurrency_id": "opening", "concurrency_limit": 2}


@dataclass
class Plan:
    """What one click draws: picture i shows names[i]."""

    names: list[str]
    conditions: Callable[[Pipeline], dict]
    papers: dict  # of all pictures, for their metadata
    known: Callable[[Pipeline], Tensor] | None = None
    note: str = ""


@dataclass(frozen=True)
class Drawn:
    """A picture that was drawn in this session: a few kilobytes, since many are held for many visitors."""

    codes: np.ndarray  # int32 [N]
    papers: dict

    def png(self, pipeline: Pipeline, side: int) -> Image.Image:
        """With what save_drawn() writes beside the pixels."""
        picture = pipeline.to_pictures(torch.from_numpy(self.codes).long()[None])
        image = Image.fromarray(resized(picture, side)[0])
        image.info = metadata(self.papers, self.codes, pipeline)
        return image


@contextmanager
def said() -> Iterator[None]:
    """A ValueError becomes a message on the page."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(escape(str(error), quote=False), print_exception=False, title="That does not work") from error


def raw(component: gr.components.Component) -> gr.components.Component:
    """Its value as a browser sends it, anything that JSON can hold: what is wrong with it is said in our words."""
    component.preprocess = lambda payload: payload
    return component


def uploaded(component: gr.components.Component) -> gr.components.Component:
    """It takes files that were uploaded to this page, and fetches none from an address that a browser names."""
    move = component.async_move_resource_to_block_cache

    async def local(path):
        if "://" in str(path):
            raise gr.Error("Choose a file of yours: the page fetches none.", print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = local
    return component


def visitor(request: gr.Request) -> str:
    return request.session_hash or f"anonymous-{secrets.token_hex(8)}"


class Controls:
    """The settings of a model, as sliders and menus; `named` has them by the name of their field."""

    def __init__(self, model: Model):
        self.model, begins = model, asdict(model.begins)
        self.named: dict[str, gr.components.Component] = {}
        self._number("count", begins)
        with gr.Row(equal_height=True):
            self.named["seed"] = raw(gr.Number(begins["seed"], label="Seed", precision=0, minimum=0, maximum=SEEDS,
                                               min_width=140))  # fmt: skip
            dice = gr.Button("⚄ New seed", min_width=140)
        with gr.Accordion("Sampling settings", open=False):
            for name in ("cfg_scale", "temperature", "top_k", "top_p"):
                self._number(name, begins)
            self.named["cfg_schedule"] = raw(gr.Dropdown(list(SCHEDULES), value=begins["cfg_schedule"],
                                                         label="Guidance schedule"))  # fmt: skip
            for name in ("cfg_power", "cfg_interval"):
                self._number(name, begins)
            sizes = [(f"{size} px" + " (the model's)" * (size == model.pipeline.gpt.image_size), size)
                     for size in sorted(model.sizes)]  # fmt: skip
            self.named["size"] = raw(gr.Dropdown(sizes, value=begins["size"], label="Size",
                                                 info="Larger ones are enlarged, not drawn finer"))  # fmt: skip
        dice.click(lambda: secrets.randbelow(2**31), outputs=self.named["seed"], queue=False,
                   api_visibility="private")  # fmt: skip

    def _number(self, name: str, begins: dict) -> None:
        bound = self.model.bounds[name]
        self.named[name] = raw(gr.Slider(bound.low, bound.high, begins[name], step=bound.step, label=bound.label,
                                         info=bound.info or None))  # fmt: skip

    def settings(self, data: dict) -> Settings:
        return self.checked({name: data[control] for name, control in self.named.items()})

    def checked(self, values: dict) -> Settings:
        return Settings.checked(values, self.model.bounds, self.model.sizes)

    def restored(self, papers: dict) -> Settings:
        """From a picture's papers; what they do not say is as the page begins."""
        values, top_k = {**asdict(self.model.begins), **papers}, self.model.bounds["top_k"].high
        if isinstance(values["top_k"], int) and values["top_k"] > top_k:  # all codes, of a smaller vocabulary
            values["top_k"] = int(top_k)
        count, number = values["count"], papers.get("picture", 0)
        if type(count) is type(number) is int:  # so many that the picture is among them, if the page allows it
            values["count"] = min(max(count, number + 1), int(self.model.bounds["count"].high))
        return self.checked(values)


@dataclass
class Desk:
    """Call inside the tab: first `controls`, then what is particular to it, then wire()."""

    place: str  # its name among the visitor's jobs
    jobs: Jobs
    model: Model
    drawn: gr.State = field(default_factory=lambda: gr.State([]))
    chosen: gr.State = field(default_factory=lambda: gr.State(0))

    def buttons(self, draw: str) -> None:
        with gr.Row():
            self.draw_button = gr.Button(draw, variant="primary", min_width=100)
            self.stop_button = gr.Button("Stop", variant="stop", min_width=100)

    def results(self) -> None:
        self.bar = gr.HTML(elem_classes="bar")
        self.preview = gr.Image(label="While it is drawn", visible=False, interactive=False, format="png",
                                buttons=[], elem_classes="preview")  # fmt: skip
        self.gallery = gr.Gallery(label="Pictures", show_label=False, columns=4, object_fit="contain", format="png",
                                  interactive=False, height="auto", buttons=["download", "fullscreen"],
                                  elem_classes="drawn")  # fmt: skip
        with gr.Row():
            self.again = gr.Button("Again with these settings", min_width=160)
            self.from_file = uploaded(gr.UploadButton("Settings of a PNG …", file_types=[".png"], min_width=160))

    def wire(self, controls: Controls, inputs: list, plan: Callable[[dict, int], Plan],
             restore: Callable[[dict, Callable[[], Image.Image | str]], list]) -> None:  # fmt: skip
        """plan(data, count): what is drawn, from the values of `inputs`; restore(papers, picture): their values from a
        picture's papers and, if it is asked for, the picture. Both may raise ValueError."""

        def announce(request: gr.Request) -> str:
            self.jobs.announce(f"{visitor(request)}/{self.place}")
            return bar_of(Frame("waiting"))

        def draw(data: dict, request: gr.Request) -> Iterator[tuple]:
            with said(), self.jobs.begin(f"{visitor(request)}/{self.place}") as stop:
                settings = controls.settings(data)
                planned = plan(data, settings.count)
                frames = self.model.studio.draw(stop, planned.conditions, settings, settings.seed, planned.known)
                for frame in frames:
                    if frame.state == "done":
                        yield from self._done(frame, planned, settings)
                    else:
                        yield bar_of(frame), self._shown(frame, settings), gr.skip(), gr.skip()

        def refuse() -> tuple:
            return bar_of(Frame("refused")), gr.update(visible=False)

        def stop(request: gr.Request) -> None:
            self.jobs.stop(f"{visitor(request)}/{self.place}")

        def values_of(papers: dict, picture: Callable[[], Image.Image | str]) -> list:
            settings = asdict(controls.restored(papers))
            return [*(settings[name] for name in controls.named), *restore(papers, picture)]

        def repeat(drawn: list[Drawn], chosen: int) -> list:
            with said():
                if not drawn:
                    raise ValueError("There is no picture yet whose settings could be taken.")
                one = self.picked(drawn, chosen)
                return values_of(one.papers, lambda: one.png(self.model.pipeline, self.shown))

        def load(path: str) -> list:
            with said():
                return values_of(read_settings(path), lambda: path)

        click = self.draw_button.click(announce, outputs=self.bar, queue=False, api_visibility="private")
        drawing = click.then(draw, {*controls.named.values(), *inputs},
                             [self.bar, self.preview, self.gallery, self.drawn], show_progress="hidden",
                             concurrency_id="draw", concurrency_limit=self.model.studio.at_once,
                             api_name=f"draw_{self.place}")  # fmt: skip
        # Also where the queue is full, and draw() is not called at all.
        drawing.failure(refuse, outputs=[self.bar, self.preview], queue=False, api_visibility="private")
        self.stop_button.click(stop, queue=False, api_visibility="private")
        self.gallery.select(chosen_index, outputs=self.chosen, queue=False, api_visibility="private")
        restored = [*controls.named.values(), *inputs]
        self.again.click(repeat, [self.drawn, self.chosen], restored, **OPENING)
        self.from_file.upload(load, self.from_file, restored, **OPENING)

    @property
    def shown(self) -> int:
        """The side in pixels at which a picture is looked at."""
        return self.model.sizes[0]

    @staticmethod
    def picked(drawn: list[Drawn], chosen: int) -> Drawn:
        return drawn[max(0, min(chosen, len(drawn) - 1))]

    def _shown(self, frame: Frame, settings: Settings):
        """An update of the preview."""
        if frame.pictures is None:
            return gr.skip()
        return gr.update(value=lay_out(frame.pictures, settings.size), visible=True)

    def _done(self, frame: Frame, plan: Plan, settings: Settings) -> Iterator[tuple]:
        common = {**asdict(settings), "model": self.model.pipeline.gpt.name, "checkpoint": self.model.checkpoint,
                  **plan.papers}  # fmt: skip
        drawn = [Drawn(codes, {"picture": i, "shows": name, **common})
                 for i, (codes, name) in enumerate(zip(frame.codes, plan.names))]  # fmt: skip
        with TemporaryDirectory() as folder:  # until Gradio has taken its own copy
            shown = []
            for i, picture in enumerate(resized(frame.pictures, settings.size)):
                path = Path(folder) / f"seed-{settings.seed}-picture-{i}.png"
                save_drawn(path, picture, drawn[i].papers, drawn[i].codes, self.model.pipeline)
                shown.append((str(path), plan.names[i]))
            yield bar_of(frame, plan.note), gr.update(visible=False), shown, drawn


def chosen_index(event: gr.SelectData) -> int:
    return int(event.index)


def bar_of(frame: Frame, note: str = "") -> str:
    """How far it is, as HTML."""
    words = {
        "waiting": "Waiting for a place …",
        "sampling": f"Code {frame.done} of {frame.total} · {frame.rate:,.0f} codes/s",
        "decoding": f"Codes to pixels … · {frame.rate:,.0f} codes/s",
        "done": f"Done · {frame.rate:,.0f} codes/s",
        "refused": "Nothing was drawn: see the message",
        "stopped": f"Stopped after {frame.done} of {frame.total} codes" if frame.total else "Stopped before it began",
    }[frame.state]
    full = frame.state in ("decoding", "done")
    value = "" if frame.state == "waiting" else f' value="{1 if full else frame.done / max(frame.total, 1):.3f}"'
    line = f'<div role="status">{words}{escape(f" · {note}" if note else "")}</div>'
    return f'<progress max="1"{value} aria-label="Progress"></progress>{line}'
