"""The page over HTTP: what a browser may send, and what it gets. No browser is needed here."""

import io
import json
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from app_server import PAGE, listening, slowly, tiny_shop
from PIL import Image
from tiny_pipeline import MACHINE, options, write_files

from autoregressive.demo.options import App, PageOptions
from autoregressive.demo.shop import Shop, open_shop
from autoregressive.demo.studio import Sitting
from autoregressive.models.generate import Sampling
from autoregressive.options import GPTOptions, SamplingOptions
from autoregressive.sample.drawn import read_settings
from autoregressive.sample.grid import sample_grid
from autoregressive.sample.options import GridOptions, SampleC2I
from engine.config import parse
from golden.fill import uniform

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'llamagen[demo]'")

# What the page sends for "Draw": the classes, then the settings in their order on the page.
DRAW = {"classes": [3], "count": 2, "seed": 1, "cfg_scale": 2, "temperature": 1, "top_k": 100, "top_p": 1,
        "cfg_schedule": "constant", "cfg_power": 2.75, "cfg_interval": -1, "size": 16}  # fmt: skip
FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    return tiny_shop(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def url(shop):
    with listening(shop) as address:
        yield address


def post(address: str, body: bytes, kind: str = "application/json") -> dict | list:
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def call(url: str, name: str, values: list) -> tuple[str, list | dict]:
    """The last event of a call, and its data."""
    event = post(f"{url}gradio_api/call/{name}", json.dumps({"data": values}).encode())["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call/{name}/{event}", timeout=60) as answer:
        last = answer.read().decode().strip().split("event: ")[-1]
    kind, _, data = last.partition("\ndata: ")
    return kind, json.loads(data)


def draw(url: str, **values) -> tuple[str, list | dict]:
    return call(url, "draw_classes", list({**DRAW, **values}.values()))


def pictures(url: str, data: list) -> list[Image.Image]:
    """Those of the gallery that a call has given back."""
    found = []
    for each in data[2]:
        with urllib.request.urlopen(each["image"]["url"]) as answer:
            found.append(Image.open(io.BytesIO(answer.read())))
    return found


def uploaded(url: str, content: bytes, name: str) -> dict:
    body = (b'--edge\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() +
            b'"\r\nContent-Type: application/octet-stream\r\n\r\n' + content + b"\r\n--edge--\r\n")  # fmt: skip
    (path,) = post(f"{url}gradio_api/upload", body, "multipart/form-data; boundary=edge")
    return {"path": path, "orig_name": name, **FILE}


def png(*shape: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray((uniform("upload", shape) * 100 + 128).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def expected(shop: Shop, classes=(3, 3), seed=1) -> np.ndarray:
    return shop.classes.pipeline.sample(classes, Sampling(cfg_scale=2, top_k=100), seed)


def same(found: list[Image.Image], wanted: np.ndarray) -> bool:
    return np.array_equal(np.stack([np.asarray(each) for each in found]), wanted)


def test_pictures_are_the_pipeline_s_and_say_how_they_were_made(url, shop):
    kind, data = draw(url, classes=[3, 9])
    found = pictures(url, data)
    assert kind == "complete" and same(found, expected(shop, (3, 9)))
    papers = json.loads(found[1].text["settings"])
    assert papers["shows"] == "grey whale" and papers["picture"] == 1 and papers["checkpoint"] == "gpt.pt"
    assert {name: papers[name] for name in DRAW} == {**DRAW, "classes": ["three", "grey whale"]}
    assert [each["caption"] for each in data[2]] == ["three", "grey whale"] and "codes/s" in data[0]


def test_larger_pictures_are_the_same_ones_enlarged(url, shop):
    (first, *_) = pictures(url, draw(url, size=128)[1])
    wanted = Image.fromarray(expected(shop)[0]).resize((128, 128), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(first), np.asarray(wanted))


@pytest.mark.parametrize(
    "values, word",
    [
        ({"classes": ["dragon"]}, "dragon"),
        ({"classes": []}, "at least one class"),
        ({"classes": None}, "at least one class"),
        ({"classes": [{"a": 1}]}, "Classes [{'a': 1}]: must be a list of numbers or names"),
        ({"classes": 3}, "Classes 3: must be a list"),
        ({"classes": [10]}, "this model has classes 0 to 9"),
        ({"classes": [0] * 65}, "64 are the most"),
        ({"count": 7}, "7"),
        ({"count": 1.5}, "whole number"),
        ({"count": None}, "Pictures None: must be a whole number from 1 to 6"),
        ({"seed": -1}, "Seed -1: "),
        ({"seed": None}, "Seed None: "),
        ({"seed": 2**60}, f"Seed {2**60}: "),
        ({"cfg_scale": 1e9}, "Guidance 1000000000"),
        ({"cfg_scale": "much"}, "Guidance 'much': must be a number from 1 to 20"),
        ({"cfg_scale": [4]}, "Guidance [4]: "),
        ({"cfg_scale": float("nan")}, "Guidance nan"),
        ({"top_k": 300}, "Top-k 300: must be a whole number from 0 to 256"),
        ({"cfg_schedule": "cubic"}, "Schedule 'cubic': choose one of"),
        ({"cfg_schedule": None}, "Schedule None: "),
        ({"size": 100000}, "Size 100000: choose one of"),
        ({"size": "16"}, "Size '16': "),
    ],
)
def test_what_the_controls_do_not_allow_is_said_and_the_server_goes_on(values, word, url, shop):
    kind, data = draw(url, **values)
    assert kind == "error" and word in data["error"]
    assert same(pictures(url, draw(url)[1]), expected(shop))


def test_a_path_from_the_browser_is_not_read(url, tmp_path, monkeypatch):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(16, 16, 3))
    address = f"{url}theme.css"
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", None)
    for path in (str(secret), "/etc/passwd", "../../etc/passwd", address, "https://example.org/a.png"):
        for name, others in (("tokenize", []), ("draw_completion", [1, 0, *DRAW.values()])):
            kind, data = call(url, name, [{"path": path, **FILE}, *others])
            assert kind == "error"
            assert ("the page fetches none" if "://" in path else "not uploaded by a user") in data["error"]
    for address in (f"{url}gradio_api/file={secret}", f"{url}gradio_api/file=/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address)


@pytest.mark.parametrize("content, name", [(b"no picture", "a.png"), (b"", "b.jpg"), (png(64, 64, 3)[:900], "c.png"),
                                           (b"<svg onload='alert(1)'/>", "d.svg")])  # fmt: skip
def test_an_upload_that_is_no_picture_is_said(content, name, url):
    kind, data = call(url, "tokenize", [uploaded(url, content, name)])
    assert kind == "error" and "not a picture that can be read" in data["error"]
    assert call(url, "tokenize", [None])[1]["error"] == "Choose a picture first."
    assert call(url, "tokenize", [uploaded(url, png(20, 16, 3), "e.png")])[0] == "complete"


def test_an_upload_that_is_too_large_is_refused_before_it_is_opened(url, shop):
    with pytest.raises(urllib.error.HTTPError, match="413"):
        uploaded(url, bytes(21 * 2**20), "large.png")
    Image.new("RGB", (9000, 5000)).save(file := io.BytesIO(), "PNG")  # a few kilobytes, 45 million pixels
    kind, data = call(url, "tokenize", [uploaded(url, file.getvalue(), "bomb.png")])
    assert kind == "error" and "at most 40 megapixels" in data["error"]
    Image.new("RGB", (5000, 4000)).save(file := io.BytesIO(), "PNG")
    kind, data = call(url, "tokenize", [uploaded(url, file.getvalue(), "huge.png")])
    assert kind == "complete" and "5000 x 4000 pixels were scaled down to 4096 x 3277" in data[3]


def test_a_completion_keeps_the_codes_that_it_is_told_to(url, shop):
    pipeline, content = shop.classes.pipeline, png(40, 60, 3)
    values = {**DRAW, "classes": [0]}
    kind, data = call(url, "draw_completion", [uploaded(url, content, "a.png"), 1, 2, *values.values()])
    known = pipeline.top_codes(Image.open(io.BytesIO(content)), 1, 2)
    codes = pipeline.codes(pipeline.labels([0, 0]), Sampling(cfg_scale=2, top_k=100), 1, known=known)
    found = pictures(url, data)
    assert kind == "complete" and same(found, pipeline.to_pictures(codes))
    assert json.loads(found[0].text["settings"])["kept_codes"] == 6 and "60 x 40 pixels was brought to" in data[0]
    for rows, columns, word in ((0, 0, "Keep at least one code"), (4, 0, "4"), (1.5, 0, "whole number"), (1, -1, "-1")):
        kind, data = call(url, "draw_completion", [uploaded(url, content, "a.png"), rows, columns, *values.values()])
        assert kind == "error" and word in data["error"]


def test_two_visitors_at_once_get_their_own_pictures(url, shop):
    found = {}

    def visit(seed: int) -> None:
        found[seed] = draw(url, seed=seed)[1]

    with slowly(0.02):
        visitors = [threading.Thread(target=visit, args=(seed,)) for seed in range(5)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
    assert set(found) == set(range(5))
    for seed, data in found.items():
        assert same(pictures(url, data), expected(shop, seed=seed))


def test_no_more_draw_at_once_than_the_page_was_told_whatever_they_draw(tmp_path, monkeypatch):
    at_work, most, sit = [], [], Sitting.draw

    def counted(self, *given):
        at_work.append(self)
        most.append(len(at_work))
        sit(self, *given)
        at_work.remove(self)

    monkeypatch.setattr(Sitting, "draw", counted)
    shop = tiny_shop(tmp_path, text=True, page=PageOptions(max_images=6, at_once=1))
    with listening(shop) as url, slowly(0.02):
        _, *settings = DRAW.values()
        calls = [("draw_classes", [[3], *settings]), ("draw_prompts", ["a bird", "", *settings])]
        visitors = [threading.Thread(target=call, args=(url, *each)) for each in calls]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
    assert most == [1, 1]


def test_no_more_than_the_queue_holds_are_let_in(tmp_path):
    shop = tiny_shop(tmp_path, page=PageOptions(max_images=6, at_once=1, max_queue=2))
    with listening(shop) as url, slowly(0.2):
        body = json.dumps({"data": list(DRAW.values())}).encode()
        answers = []
        for _ in range(6):
            try:
                answers.append(post(f"{url}gradio_api/call/draw_classes", body))
            except urllib.error.HTTPError as error:
                answers.append(error.code)
        assert answers.count(503) >= 3 and isinstance(answers[0], dict)


def test_the_page_listens_on_this_machine_alone_unless_told_otherwise(url):
    assert url.startswith("http://127.0.0.1:") and PAGE.host == "127.0.0.1"


def test_weights_that_are_given_and_do_not_load_end_the_command(tmp_path):
    gpt, vq = options(write_files(tmp_path))
    with pytest.raises(ValueError, match="--gpt-ckpt .*nowhere.pt: there is no such file"):
        open_shop(App(GPTOptions(gpt_ckpt="nowhere.pt"), vq, machine=MACHINE))
    with pytest.raises(ValueError, match="--cfg-scale 0.5: the page takes 1 to 20"):
        open_shop(App(gpt, vq, machine=MACHINE, sampling=SamplingOptions(cfg_scale=0.5)))
    with pytest.raises(ValueError, match="--gpt-type t2i: .*gpt.pt is a c2i model"):
        open_shop(App(GPTOptions(gpt_ckpt=gpt.gpt_ckpt, gpt_type="t2i"), vq, machine=MACHINE))


@pytest.mark.parametrize("flag", ["--max-images", "--at-once", "--max-queue", "--port"])
def test_bounds_below_one_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        parse(App, [flag, "0"])
    assert f"{flag} 0: must be at least 1" in capsys.readouterr().err


def test_prompts_and_choices_have_bounds():
    from autoregressive.demo.desk import Desk
    from autoregressive.demo.page import text_plan

    tokenize = SimpleNamespace(long=lambda texts: [text for text in texts if len(text) > 100], max_length=5)
    model = SimpleNamespace(pipeline=SimpleNamespace(encoder=SimpleNamespace(tokenize=tokenize)))
    plan = text_plan(model, " a \n\nb\n" + "c" * 1000, "d" * 1000, 4)
    assert plan.names == ["a", "b", "c" * 1000, "a"] and plan.note.startswith("Of 2 prompts only the first 5 tokens")
    for prompts, negative, word in (("\n".join("x" * 65), "", "65 prompts were written"), (None, "", "Write a prompt"),
                                    ("c" * 1001, "", "1001 characters"), ("a", "c" * 1001, "1001 characters")):
        with pytest.raises(ValueError, match=word):
            text_plan(model, prompts, negative, 4)
    assert [Desk.picked(["a", "b"], chosen) for chosen in (-5, 0, 1, 9)] == ["a", "a", "b", "b"]


def test_a_png_of_the_command_line_can_be_drawn_again(shop, tmp_path):
    import gradio as gr

    from autoregressive.demo.desk import Controls
    from autoregressive.demo.page import known_classes

    gpt = shop.options.gpt
    grid = GridOptions(labels=["grey whale"], seed=3, output=str(tmp_path / "g.png"), single_dir=str(tmp_path))
    sample_grid(SampleC2I(gpt, shop.options.tokenizer, MACHINE, grid=grid))
    with gr.Blocks():
        controls = Controls(shop.classes)
    for name in ("g.png", "000000.png"):
        held = read_settings(tmp_path / name)
        assert known_classes(held, shop.classes) == [9]
        settings = controls.restored(held)
        assert (settings.seed, settings.top_k, settings.cfg_scale, settings.count) == (3, 256, 4.0, 1)
    assert controls.restored({**held, "picture": 3}).count == 4 and controls.restored({**held, "count": 70}).count == 6
    assert known_classes({"classes": ["three", "grey whale"] * 40}, shop.classes) == [3, 9]
    assert known_classes({"labels": [3], "classes": ["grey whale"]}, shop.classes) == [9], "of another model"
    assert known_classes({"labels": [3, 0]}, shop.classes) == [3, 0]
    for wrong in ({}, {"classes": []}, {"classes": "dragon"}, {"classes": [{"a": 1}]}):
        with pytest.raises(ValueError, match="name no classes|unknown|must be a list"):
            known_classes(wrong, shop.classes)
