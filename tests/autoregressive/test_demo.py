"""What the page stands on: settings within bounds, drawing that can be watched and stopped, which weights it opens."""

import json
from dataclasses import asdict
from threading import Barrier, Event, Thread

import numpy as np
import pytest
import torch
from app_server import slowly, tiny_shop
from PIL import Image

from autoregressive.demo.pictures import code_map, dimmed, fitted, opened
from autoregressive.demo.settings import Settings, numbers, sizes_for
from autoregressive.demo.studio import Jobs, Sitting, Stopped, Studio
from autoregressive.models.generate import Sampling
from autoregressive.models.runners import EagerRunner
from autoregressive.sample.drawn import GREY, greyed, read_settings, resized
from evaluations.images import save_png
from golden.fill import uniform

SAMPLING = Sampling(cfg_scale=2.0, top_k=100)


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    return tiny_shop(tmp_path_factory.mktemp("demo")).classes.studio


def drawing(studio: Studio, stop: Event | None = None, labels=(3, 9), seed=1, known=None):
    return studio.draw(stop or Event(), lambda pipeline: {"cond": pipeline.labels(labels)}, SAMPLING, seed, known)


def whole(studio: Studio, labels=(3, 9), seed=1) -> np.ndarray:
    return studio.pipeline.sample(labels, SAMPLING, seed)


# ---- drawing


def test_a_drawing_shows_its_rows_and_ends_in_the_pipeline_s_pictures(studio):
    with slowly(0.05):
        frames = list(drawing(studio))
    assert frames[-1].state == "done"
    assert np.array_equal(frames[-1].pictures, whole(studio))
    shown = [frame for frame in frames if frame.state == "sampling" and frame.pictures is not None]
    assert shown, "at least the first row is shown"
    for frame in shown:
        rows = frame.done // 4
        assert (frame.pictures[:, 4 * rows :] == GREY).all() and (frame.pictures[:, : 4 * rows] != GREY).any()
    assert [frame.done for frame in frames] == sorted(frame.done for frame in frames)
    assert all(frame.total == 16 for frame in frames) and frames[-1].rate > 0


@pytest.mark.parametrize("cost, shown", [(0.0, [4, 8, 12]), (1.0, [4, 8, 12]), (1.5, [4, 12]), (30.0, [4])])
def test_previews_take_a_fifth_of_the_time_at_most(cost, shown, studio, monkeypatch):
    clock = [0.0]

    def costly(work, seconds: float):
        def longer(self, *given):
            clock[0] += seconds
            return work(self, *given)

        return longer

    monkeypatch.setattr("autoregressive.demo.studio.perf_counter", lambda: clock[0])
    monkeypatch.setattr("autoregressive.demo.studio.now", lambda device: clock[0])
    monkeypatch.setattr(Sitting, "preview", costly(Sitting.preview, cost))
    monkeypatch.setattr(EagerRunner, "step", costly(EagerRunner.step, 1.0))
    frames = []
    sitting = Sitting(studio.pipeline, Event(), frames.append)  # a reader would miss what comes too fast
    sitting.draw(lambda pipeline: {"cond": pipeline.labels((3, 9))}, SAMPLING, 1, None)
    assert [frame.done for frame in frames if frame.state == "sampling" and frame.pictures is not None] == shown
    assert frames[-1].rate == pytest.approx(2 * 16 / 15), "15 steps of a second: the time of previews does not count"


def test_codes_count_when_the_device_has_them(studio, monkeypatch):
    clock, launched, step = [0.0], [0.0], EagerRunner.step

    def launch(self, codes):  # as on a GPU: at once, and done a second later
        launched[0] = max(launched[0], clock[0]) + 1
        return step(self, codes)

    def wait(device) -> float:
        clock[0] = max(clock[0], launched[0])
        return clock[0]

    monkeypatch.setattr("autoregressive.demo.studio.perf_counter", lambda: clock[0])
    monkeypatch.setattr("autoregressive.demo.studio.now", wait)
    monkeypatch.setattr(EagerRunner, "step", launch)
    frames = []
    Sitting(studio.pipeline, Event(), frames.append).draw(
        lambda pipeline: {"cond": pipeline.labels((3, 9))}, SAMPLING, 1, None
    )
    rates = [frame.rate for frame in frames if frame.state == "sampling"]
    assert len(rates) >= 3, "each row is waited for, so that Stop is never more than a row late"
    assert all(2 <= rate < 3 for rate in (*rates, frames[-1].rate)), "two pictures, a step a second"


def test_stopping_really_stops(studio, monkeypatch):
    stop, steps, step = Event(), [], EagerRunner.step

    def counted(self, codes):
        steps.append(stop.is_set())
        if len(steps) == 6:
            stop.set()
        return step(self, codes)

    with monkeypatch.context() as patch:
        patch.setattr(EagerRunner, "step", counted)
        rest = list(drawing(studio, stop))
    assert len(steps) == 6, "not one step more"
    assert rest[-1].state == "stopped" and rest[-1].done == 6
    assert rest[-1].pictures.shape == (2, 16, 16, 3), "what there is of it is shown"
    assert np.array_equal(list(drawing(studio))[-1].pictures, whole(studio)), "and nothing of it is left in the way"


def test_a_job_that_was_stopped_while_it_waited_does_not_begin(studio, monkeypatch):
    stop = Event()
    stop.set()
    monkeypatch.setattr(EagerRunner, "start", None)
    assert [(frame.state, frame.pictures) for frame in drawing(studio, stop)] == [("stopped", None)]


def test_whoever_leaves_costs_no_more(studio, monkeypatch):
    done, steps = Event(), []
    finish = EagerRunner.finish
    monkeypatch.setattr(EagerRunner, "finish", lambda self: (finish(self), done.set()))
    with slowly(0.2, steps.append):
        frames = drawing(studio)
        next(frames)
        frames.close()
        assert done.wait(10), "the model works for nobody"
    assert len(steps) < 15


def test_a_fault_reaches_whoever_waits_and_frees_the_place(studio):
    for _ in range(3):  # more often than there are places
        with pytest.raises(ValueError, match="0 to 9"):
            list(drawing(studio, labels=(10,)))
    assert np.array_equal(list(drawing(studio))[-1].pictures, whole(studio))


def test_two_at_once_draw_their_own_pictures(studio, monkeypatch):
    found, beginning = {}, Barrier(2, timeout=60)
    start = EagerRunner.start
    # One after the other, the first would wait here for ever.
    monkeypatch.setattr(EagerRunner, "start", lambda self, *given: beginning.wait() >= 0 and start(self, *given))

    def draw(seed: int) -> None:
        found[seed] = list(drawing(studio, seed=seed, labels=(seed, 2 * seed)))[-1].pictures

    threads = [Thread(target=draw, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    for seed in (1, 2):
        assert np.array_equal(found[seed], whole(studio, (seed, 2 * seed), seed))


def test_known_codes_are_counted_out(studio):
    known = torch.zeros(6, dtype=torch.int64)
    frames = list(drawing(studio, known=lambda pipeline: known))
    assert all(frame.total == 10 for frame in frames) and frames[-1].done == 10
    expected = studio.pipeline.codes(studio.pipeline.labels((3, 9)), SAMPLING, 1, known=known)
    assert np.array_equal(frames[-1].pictures, studio.pipeline.to_pictures(expected))


def test_grey_begins_where_codes_end():
    pictures = np.zeros((1, 8, 8, 3), np.uint8)
    grey = greyed(pictures, 6, grid=4)[0, ..., 0] == GREY  # a row and two codes; a code is 2 x 2 pixels
    assert grey.sum() == (16 - 6) * 4
    assert not grey[:2].any() and not grey[2:4, :4].any() and grey[2:4, 4:].all() and grey[4:].all()
    assert not pictures.any(), "the pictures themselves are let be"


def test_jobs_are_stopped_by_name():
    jobs = Jobs()
    jobs.announce("ann/classes")
    jobs.stop("ann/")
    with jobs.begin("ann/classes") as stop, jobs.begin("bob/classes") as other, jobs.begin("ann/prompts") as third:
        assert stop.is_set(), "it was stopped while it waited"
        assert not other.is_set() and not third.is_set()
        jobs.stop("ann/prompts")
        assert third.is_set() and not other.is_set()
    assert other.is_set() and not jobs._drawing and not jobs._waiting
    jobs.announce("ann/classes")
    jobs.announce("bob/classes")
    with jobs.begin("ann/prompts") as stop:
        jobs.leave("ann/")
        assert stop.is_set() and list(jobs._waiting) == ["bob/classes"], "nothing is kept of who has left"
    for i in range(5000):
        jobs.announce(f"nobody{i}/classes")
    assert len(jobs._waiting) == 1000, "nor of many who never come"
    with jobs.begin("ann/classes") as stop:
        assert not stop.is_set(), "a new job begins anew"
    with pytest.raises(Stopped), jobs.begin("ann/classes"):
        raise Stopped
    assert not jobs._drawing


# ---- settings


BOUNDS = numbers(codes=16, vocabulary=256, most=6)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"cfg_scale": 21}, r"Guidance 21: must be a number from 1 to 20"),
        ({"cfg_scale": float("nan")}, "Guidance nan: must be a number"),
        ({"temperature": float("inf")}, "Temperature inf: "),
        ({"top_p": 0}, r"Top-p 0: must be a number from 0\.01 to 1"),
        ({"top_k": 257}, "Top-k 257: must be a whole number from 0 to 256"),
        ({"top_k": 1.5}, r"Top-k 1\.5: must be a whole number"),
        ({"count": 7}, "Pictures 7: must be a whole number from 1 to 6"),
        ({"count": True}, "Pictures True: "),
        ({"seed": -1}, "Seed -1: "),
        ({"seed": 2**53}, "Seed 9007199254740992: must be a whole number from 0 to 9007199254740991"),
        ({"seed": "1"}, "Seed '1': "),
        ({"temperature": 10**400}, r"Temperature 1000\d*\.\.\.\d*: "),
        ({"temperature": "x" * 10**6}, r"Temperature 'x*\.\.\.x*': "),
        ({"seed": None}, "Seed None: "),
        ({"cfg_interval": 17}, "Guidance interval 17: "),
        ({"cfg_schedule": "cubic"}, "Schedule 'cubic': choose one of constant, linear, power-cosine"),
        ({"cfg_schedule": ["linear"]}, r"Schedule \['linear'\]: "),
        ({"size": 300}, "Size 300: choose one of 256, 16"),
        ({"size": [256]}, r"Size \[256\]: "),
    ],
)
def test_values_out_of_bounds_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Settings.checked(values, BOUNDS, sizes_for(16))


def test_whoever_reads_slowly_misses_what_is_old(studio):
    frames, read = drawing(studio), []
    with slowly(0.01):
        for frame in frames:
            read.append(frame.state)
            Event().wait(1)
    assert read[-1] == "done" and len(read) <= 3, "not every row waits to be shown"


def test_settings_travel_through_a_png(tmp_path):
    settings = Settings.checked({"cfg_scale": 3, "seed": 2**53 - 1, "count": 6.0, "size": 16, "top_k": 7,
                                 "cfg_schedule": "linear"}, BOUNDS, sizes_for(16))  # fmt: skip
    assert settings == Settings(3.0, seed=2**53 - 1, count=6, size=16, top_k=7, cfg_schedule="linear")
    save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), {"settings": json.dumps({**asdict(settings), "x": 1})})
    held = read_settings(tmp_path / "a.png")
    assert held["x"] == 1 and Settings.checked(held, BOUNDS, sizes_for(16)) == settings
    assert (settings.cfg_scale, settings.cfg_schedule, settings.top_k) == (3.0, "linear", 7)


@pytest.mark.parametrize("content", ["text", "picture", "list"])
def test_files_without_settings_are_refused(content, tmp_path):
    path = tmp_path / "a.png"
    if content == "text":
        path.write_text("{}")
    else:
        save_png(path, np.zeros((4, 4, 3), np.uint8), {"settings": "[1]"} if content == "list" else {})
    with pytest.raises(ValueError, match="this file"):
        read_settings(path)


def test_small_pictures_are_shown_large():
    assert sizes_for(32) == [256, 32, 128, 384, 512]
    assert sizes_for(256) == [256, 384, 512]
    assert sizes_for(384) == [384, 512]


# ---- pictures


def noise(*shape: int) -> np.ndarray:
    return (uniform("noise", shape) * 120 + 128).astype(np.uint8)


def test_uploads_are_upright_rgb_pictures_of_bounded_size(tmp_path):
    tall = Image.fromarray(noise(30, 20, 3))
    exif = Image.Exif()
    exif[274] = 6  # the camera was held sideways
    tall.save(tmp_path / "turned.jpg", exif=exif)
    assert opened(tmp_path / "turned.jpg")[0].size == (30, 20)
    Image.fromarray(noise(30, 20, 3)[..., 0], "L").save(tmp_path / "grey.png")
    assert opened(tmp_path / "grey.png")[0].mode == "RGB" and opened(tmp_path / "grey.png")[1] == ""
    Image.new("RGB", (6000, 3000)).save(tmp_path / "huge.png")
    picture, word = opened(tmp_path / "huge.png")
    assert picture.size == (4096, 2048) and word == "6000 x 3000 pixels were scaled down to 4096 x 2048. "


@pytest.mark.parametrize("content", ["text", "cut", "nothing", "bomb", "thin", "program"])
def test_what_is_no_picture_is_said(content, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (300, 2 if content == "thin" else 300)).save(path)
    if content == "text":
        path.write_text("no picture")
    if content == "cut":
        Image.fromarray(noise(64, 64, 3)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    if content == "program":  # PostScript, which another program would be started for
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
        assert Image.open(path).format == "EPS"
    if content == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    expected = {"nothing": "Choose a picture first", "thin": "a picture of 300 x 2 pixels: its long"}
    with pytest.raises(ValueError, match=expected.get(content, "not a picture")):
        opened(None if content == "nothing" else path)


def test_a_picture_is_fitted_to_the_model_and_enlarged_to_be_looked_at():
    small = noise(16, 16, 3)
    back, word = fitted(Image.fromarray(small.repeat(16, 0).repeat(16, 1)), 16)
    assert np.array_equal(back, small) and "256 x 256 pixels was brought to 16 x 16" in word
    assert np.array_equal(fitted(Image.fromarray(small), 16)[0], small)
    assert resized(small[None], 32).shape == (1, 32, 32, 3) and np.array_equal(resized(small[None], 16)[0], small)


def test_what_is_not_kept_is_pale():
    picture = np.zeros((8, 8, 3), np.uint8)
    pale = dimmed(picture, 6, 4)[..., 0] > 0
    assert np.array_equal(pale, greyed(picture[None], 6, 4)[0, ..., 0] > 0)


def test_codes_have_a_colour_each():
    codes = np.arange(256).reshape(16, 16)
    colours = code_map(codes, 256, 16)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 250
    assert np.array_equal(code_map(codes[::-1], 256, 16), colours[::-1])
