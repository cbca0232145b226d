"""The server as users have it: a process that the openai client, curl and a load from another process talk to."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import environment, free_port
from test_served_codes import written
from tiny_pipeline import ENCODER, MACHINE, options, write_gpt, write_text_files

pytest.importorskip("vllm", reason="needs vLLM: bash scripts/test_serve.sh")

import httpx
import openai
import psutil

from autoregressive.models.generate import Sampling
from autoregressive.models.gpt import build_gpt
from autoregressive.sample.pipeline import Pipeline, load_pipeline, load_text_pipeline
from benchmarks.load import Served, load, served
from benchmarks.measure import in_own_process

KEY = {"Authorization": "Bearer secret"}
CLASSES = ["golden retriever", "macaw", 387]


def start(folder: Path, *flags: str):
    return served(free_port(), "--gpt-ckpt", str(folder / "gpt.pt"), "--vq-ckpt", str(folder / "vq.pt"),
                  "--precision", "none", "--max-num-seqs", "8", "--cache-dir", str(folder / "cache"), *flags,
                  environment=environment())  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("served")
    written(made, num_classes=1000)
    return made


@pytest.fixture(scope="module")
def pipeline(folder) -> Pipeline:
    return load_pipeline(*options(folder), MACHINE)


@pytest.fixture(scope="module")
def server(folder):
    with start(folder, "--api-key", "secret", "--max-queue", "60") as one:
        yield one


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0)


def pixels(content: str | bytes) -> np.ndarray:
    """int [S, S, 3] of a file, or of its base64."""
    content = base64.b64decode(content) if isinstance(content, str) else content
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    """But for what a batch of another size changes in the last digit of a float."""
    assert found.shape == wanted.shape and np.abs(found - wanted.astype(int)).max() <= 1


def metric(server: Served, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"llamagen_{name} ")))


def eventually(holds, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


@contextmanager
def standing(engine: psutil.Process) -> Iterator[None]:
    """The engine does nothing meanwhile."""
    engine.suspend()
    try:
        yield
    finally:
        engine.resume()


def test_the_openai_client_gets_the_samplers_pictures(client, pipeline):
    (model,) = client.models.list().data
    assert model.id == "GPT-1M" and client.models.retrieve(model.id) == model
    for name, label in (("golden retriever", 207), ("88", 88)):
        answer = client.images.generate(model=model.id, prompt=name, n=2, response_format="b64_json", quality="hd",
                                        extra_body={"temperature": 0, "cfg_scale": 4})  # fmt: skip
        (wanted,) = pipeline.sample([label], Sampling(cfg_scale=4, greedy=True))
        for picture in answer.data:
            assert_same(pixels(picture.b64_json), wanted)
        assert answer.usage.output_tokens == 2 * 64 and answer.size == "32x32"


def test_a_seed_is_a_picture_and_a_url_shows_it(client):
    def drawn(seed: int) -> np.ndarray:
        answer = client.images.generate(prompt="macaw", size="128x128", response_format="url",
                                        extra_body={"seed": seed})  # fmt: skip
        return pixels(httpx.get(answer.data[0].url).content)

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first.shape == (128, 128, 3) and (first == again).all() and (first != other).any()


def test_the_openai_client_sees_a_picture_grow(client, pipeline):
    codes = pipeline.codes(pipeline.labels([88]), Sampling(cfg_scale=4, greedy=True))
    events = list(client.images.generate(prompt="macaw", stream=True, partial_images=3,
                                         extra_body={"temperature": 0, "cfg_scale": 4}))  # fmt: skip
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    for quarters, event in enumerate(events, 1):
        assert getattr(event, "partial_image_index", 3) == quarters - 1
        found, rows = pixels(event.b64_json), 8 * quarters  # of pixels; a code has 4 x 4
        known = torch.where(torch.arange(64) < 16 * quarters, codes, 0)
        assert_same(found[:rows], pipeline.to_pictures(known)[0, :rows])
        assert (found[rows:] == 96).all(), "not there yet"


def test_what_the_openai_client_raises(client, server):
    with pytest.raises(openai.BadRequestError, match="did you mean golden retriever") as raised:
        client.images.generate(prompt="golden retriver")
    assert raised.value.param == "prompt" and raised.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="this server has GPT-1M"):
        client.images.generate(prompt="macaw", model="dall-e-3")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).images.generate(prompt="macaw")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server):
    body = json.dumps({"prompt": "macaw", "seed": 1, "output_format": "jpeg"})
    command = ["curl", "--silent", "--fail", f"{server.url}/v1/images/generations"]
    command += ["-H", f"Authorization: {KEY['Authorization']}", "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, "-d", body], capture_output=True, check=True)
    file = base64.b64decode(json.loads(done.stdout)["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(file)).format == "JPEG"
    assert subprocess.run([*command, "-d", "{}"], capture_output=True).returncode == 22, "an error's status"


def test_a_load_loses_nothing_and_mixes_nothing_up(server):
    bodies = [{"prompt": CLASSES[i % 3], "seed": i, "cfg_scale": (1, 1.75, 4)[i % 3], "n": 1 + i % 2, "top_k": 50}
              for i in range(64)]  # fmt: skip
    sent, counted = sum(body["n"] for body in bodies), ("pictures_total", "codes_total")
    before = [metric(server, name) for name in counted]
    alone, few, many = (in_own_process(load, server.url, clients, bodies, "secret")["answers"]
                        for clients in (1, 8, 32))  # fmt: skip
    counts = [metric(server, name) - start for name, start in zip(counted, before)]
    assert counts == [3 * sent, 3 * sent * 64] and metric(server, "pictures_drawing") == 0
    assert [answer["seed"] for answer in alone] == list(range(64))
    first = [[pixels(file) for file in answer["pictures"]] for answer in alone]
    assert len({picture.tobytes() for pictures in first for picture in pictures}) == sent, "no two are alike"
    for answers in (few, many):
        for answer, wanted in zip(answers, first, strict=True):
            for file, picture in zip(answer["pictures"], wanted, strict=True):
                assert_same(pixels(file), picture)


def test_too_many_at_once_are_sent_away_and_find_room_later(server):
    (engine,) = engines_of(server)  # stands still until all have come: 68 pictures have room, so 6 of 8 requests
    with httpx.Client(base_url=server.url, headers=KEY, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        ask = partial(http.post, "/v1/images/generations", json={"prompt": "macaw", "n": 10})
        with standing(engine):
            asked = [pool.submit(ask) for _ in range(8)]
            assert eventually(lambda: sum(each.done() for each in asked) == 2)
            away = [each.result() for each in asked if each.done()]
        assert all(each.status_code == 429 and int(each.headers["Retry-After"]) >= 1 for each in away)
        assert sorted(each.result().status_code for each in asked) == [200] * 6 + [429] * 2
        assert ask().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_the_places(server, stream):
    before, body = metric(server, "codes_total"), {"prompt": "macaw", "n": 10, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/images/generations", json=body, headers=KEY,
                   timeout=httpx.Timeout(30, read=0.1))  # fmt: skip
    assert eventually(lambda: metric(server, "pictures_drawing") == 0)
    drawn = metric(server, "codes_total") - before
    assert drawn < 640, "the rest is not drawn"
    time.sleep(0.5)
    assert metric(server, "codes_total") - before == drawn


def processes(server: Served) -> list[psutil.Process]:
    parent = psutil.Process(server.process.pid)
    return [parent, *parent.children(recursive=True)]


def engines_of(server: Served) -> list[psutil.Process]:
    return [each for each in processes(server)[1:] if "EngineCore" in " ".join(each.cmdline())]


def test_an_engine_that_is_killed_is_seen_and_nothing_stays_behind(folder):
    with start(folder, "--data-parallel-size", "2") as server:
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        assert len(in_own_process(load, server.url, 8, [{"prompt": i} for i in range(16)])["answers"]) == 16
        known, engines = processes(server), engines_of(server)
        assert len(engines) == 2
        engines[1].kill()
        assert eventually(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        answer = httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "macaw"}, timeout=60)
        assert answer.status_code == 503 and "must be started again" in answer.json()["error"]["message"]
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="must be started again"):
            list(client.images.generate(prompt="macaw", stream=True))
        server.end()
        assert not psutil.wait_procs(known[1:], timeout=20)[1]


def assert_leaves(server: Served, tell: Callable[[], None], prompt: str, stands: bool = False) -> None:
    """Told to leave in the middle of its work, or (`stands`) with an engine that does no more, it leaves nothing
    behind, and sends whole pictures or none."""
    known, (engine,) = processes(server), engines_of(server)

    def asked(count: int) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/images/generations", json={"prompt": prompt, "n": count}, headers=KEY,
                          timeout=60)  # fmt: skip

    def drawing_or_waiting() -> float:
        return metric(server, "pictures_drawing") + metric(server, "pictures_waiting")

    with ThreadPoolExecutor(7) as pool:
        with standing(engine):  # until all are let in: a connection that was not taken yet ends without an answer
            first = pool.submit(asked, 1)
            assert eventually(lambda: drawing_or_waiting() == 1)
            others = [pool.submit(asked, 10) for _ in range(6)]
            assert eventually(lambda: drawing_or_waiting() == 61)
        assert first.result().status_code == 200
        with standing(engine) if stands else nullcontext():
            tell()
            answers = [each.result() for each in others]
        assert not psutil.wait_procs(known, timeout=30)[1]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused and all(each.json()["error"]["type"] == "server_error" for each in refused)
    if stands:
        assert all("the server is about to leave" in each.json()["error"]["message"] for each in refused)
    assert all(len(answer.json()["data"]) == 10 for answer in answers if answer not in refused)
    # vLLM's processes say more; their lines begin with their names.
    assert not [line for line in server.log.read_text().splitlines() if line.startswith("Traceback")]


def test_captions_and_leaving_by_ctrl_c(tmp_path):
    files = write_text_files(tmp_path)
    gpt = build_gpt("GPT-1M", model_type="t2i", cls_token_num=120, caption_dim=32)
    write_gpt(files / "gpt.pt", gpt, class_names=None, image_size=32)
    pair = options(files, {"gpt_type": "t2i", "cls_token_num": 120})
    encoder = replace(ENCODER, t5_path=str(files / "t5"))
    pipeline = load_text_pipeline(*pair, encoder, MACHINE)
    texts = ["a red fox", "a lighthouse in a storm, oil on canvas", ""]
    wanted = pipeline.to_pictures(pipeline.codes(sampling=Sampling(cfg_scale=7.5, greedy=True),
                                                 **pipeline.captions(texts)))  # fmt: skip
    flags = ["--gpt-type", "t2i", "--t5-path", encoder.t5_path, "--t5-model-type", encoder.t5_model_type,
             "--t5-precision", encoder.t5_precision, "--cfg-scale", "7.5"]  # fmt: skip
    with start(files, *flags) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for text, picture in zip(texts, wanted):
            answer = client.images.generate(prompt=text, extra_body={"temperature": 0})
            assert_same(pixels(answer.data[0].b64_json), picture)
        assert_leaves(server, lambda: os.killpg(server.process.pid, signal.SIGINT), texts[1])


def test_a_server_that_is_ended(server):
    """The last test of this file: the others' server is gone then."""
    assert_leaves(server, server.process.terminate, "macaw", stands=True)
