"""What goes wrong around a request: it is told and counted, and its places come back."""

import asyncio
import io
import json
import logging
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("vllm", reason="needs vLLM: bash scripts/test_serve.sh")

from support import free_port
from vllm.model_executor.models.interfaces import supports_mrope
from waiting import OPTIONS, PATH, Waiting, app_of, asked, metrics, post, visited

from autoregressive.models.generate import Sampling
from autoregressive.serve import endpoint, launch, ledger
from autoregressive.serve.launch import cache_bytes, check_shares
from autoregressive.serve.ledger import Rate, Shelf
from autoregressive.serve.listen import listening
from autoregressive.serve.model import LlamaGenForImageCodes
from autoregressive.serve.options import EngineOptions, Serve, ServerOptions
from autoregressive.serve.packing import Packing
from autoregressive.serve.painter import Batches, Painter, Unfinished, Wish

JSON = {"Content-Type": "application/json"}
BODY = {"prompt": "cat"}


def events_of(text: str) -> list[dict]:
    return [json.loads(part.partition("data: ")[2]) for part in text.strip().split("\n\n") if "data: " in part]


def faulty(fault: Exception, stream: bool) -> tuple[httpx.Response, str]:
    """An answer of a server whose painter has this fault, and its metrics."""
    painter = Waiting()
    painter.fault = fault
    app = app_of(painter)

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(PATH, json={**BODY, "stream": stream})

    return asyncio.run(main()), metrics(app)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault, status, words", [
    (Unfinished("a picture was ended after 3 of 16 codes"), 503, "after 3 of 16 codes"),
    (RuntimeError("CUDA out of memory"), 500, "the server's log says what"),
])  # fmt: skip
def test_whatever_fails_is_told_in_the_api_s_words(fault, status, words, stream, caplog):
    with caplog.at_level(logging.ERROR):
        answer, page = faulty(fault, stream)
    error = events_of(answer.text)[-1]["error"] if stream else answer.json()["error"]
    assert answer.status_code == (200 if stream else status)
    assert words in error["message"] and error["type"] == "server_error" and "CUDA" not in answer.text
    assert ("CUDA out of memory" in caplog.text) == (status == 500), "what is not foreseen is in the log"
    assert f'llamagen_requests_total{{status="{status}"}} 1.0' in page and "llamagen_pictures_drawing 0.0" in page
    assert "llamagen_request_seconds_count 0.0" in page, "only pictures have a latency"


def test_a_body_must_say_that_it_is_json():
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = post(Waiting(), BODY, {"Content-Type": kind})
        assert answer.status_code == 400 and "Content-Type: application/json" in answer.json()["error"]["message"]
    assert post(Waiting(), BODY, {"Content-Type": "Application/JSON; charset=utf-8"}).status_code == 200


def test_a_body_that_never_ends_has_its_time():
    app, sent = app_of(Waiting(), timeout=1), []

    async def receive():
        await asyncio.sleep(0.3)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message):
        sent.append(message)

    asyncio.run(asyncio.wait_for(visited(app, receive, send), 5))
    assert sent[0]["status"] == 504 and "llamagen_pictures_drawing 0.0" in metrics(app)


@pytest.mark.parametrize("when", ["body", "caption"])
def test_who_goes_away_before_anything_is_drawn_is_counted(when):
    painter = Waiting(captions=True)
    painter.reading = 5.0
    app, sent = app_of(painter), []
    messages = [{"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": when == "body"}]

    async def receive():
        if messages:
            return messages.pop()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def main():
        await asyncio.wait_for(visited(app, receive, send), 3)

    asyncio.run(main())
    page = metrics(app)
    assert 'llamagen_requests_total{status="499"} 1.0' in page and "llamagen_pictures_drawing 0.0" in page
    assert not painter.asked


def test_a_reader_who_stalls_keeps_no_place(monkeypatch):
    """Nor does the server draw ahead of him without end."""
    monkeypatch.setattr("autoregressive.serve.api.LATE", 0.2)
    prepared, event = [], endpoint.event
    monkeypatch.setattr(endpoint, "event", lambda *given, **more: prepared.append(given) or event(*given, **more))
    painter = Waiting(0.01)
    app, sent = app_of(painter, timeout=1), []
    body = json.dumps({**BODY, "n": 3, "stream": True, "partial_images": 3}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        return await asyncio.sleep(60)

    async def send(message):
        sent.append(message)
        if len(sent) > 1:
            await asyncio.sleep(60)

    async def main():
        await asyncio.wait_for(visited(app, receive, send), 5)

    asyncio.run(main())
    assert len(sent) == 2 and painter.ended == 3
    assert endpoint.AHEAD < len(prepared) < 12, "not all that there would be"
    assert "llamagen_pictures_drawing 0.0" in metrics(app)


def test_a_stream_that_waits_says_so(monkeypatch):
    monkeypatch.setattr(endpoint, "SILENCE", 0.1)
    answer = post(Waiting(0.05), {**BODY, "stream": True})
    assert ": still drawing\n\n" in answer.text and events_of(answer.text)[-1]["type"] == "image_generation.completed"
    assert answer.headers["X-Accel-Buffering"] == "no"


def test_what_is_wrong_is_said_even_where_there_is_no_room():
    async def work(client):
        full = [asyncio.create_task(client.post(PATH, json={**BODY, "n": 3})) for _ in range(2)]
        await asyncio.sleep(0.2)
        bodies = BODY, {"prompt": "whal"}, {**BODY, "n": 9}
        found = [(await client.post(PATH, json=body)).status_code for body in bodies]
        await asyncio.gather(*full)
        return found

    assert asked(Waiting(0.1), work) == [429, 400, 400]


def test_small_courtesies():
    answer = post(Waiting(), {**BODY, "n": None, "partial_images": 2}).json()
    assert len(answer["data"]) == 1 and answer["note"] == "ignored: partial_images, without stream"
    answer = post(Waiting(), {**BODY, "response_format": "url"}, public_url="https://pictures.example/here/").json()
    assert answer["data"][0]["url"].startswith("https://pictures.example/here/v1/images/")
    key = "clé"
    sent = {"Authorization": f"Bearer {key}".encode()}
    assert post(Waiting(), BODY, {**JSON, **sent}, api_key=key).status_code == 200


def test_the_description_has_this_server_s_bounds():
    async def work(client):
        return (await client.get("/openapi.json")).json()

    content = asked(Waiting(), work)["paths"][PATH]["post"]["requestBody"]["content"]
    fields = content["application/json"]["schema"]["properties"]
    highest = Packing(16, 1, 3).highest_scale
    assert fields["n"]["anyOf"][0]["maximum"] == 3 and fields["cfg_scale"]["anyOf"][0]["maximum"] == highest


def test_captions_are_read_once_a_request():
    painter = Waiting(captions=True)
    answer = post(painter, {"prompt": "a red fox", "n": 3}).json()
    first, *others = [wish.condition for wish in painter.asked]
    assert all(condition is first for condition in others) and answer["usage"]["input_tokens"] == 3


# ---- what stands below


def test_batches_are_full_and_in_order_and_leave_out_who_has_left():
    seen = []

    def work(jobs: list[int]) -> list[int]:
        seen.append(jobs)
        if 13 in jobs:
            raise ValueError("thirteen")
        return [10 * job for job in jobs]

    async def main():
        batches = Batches("tens", 3, work)
        waiting = [asyncio.create_task(batches.done(i)) for i in range(8)]
        await asyncio.sleep(0)
        waiting[4].cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [found[i] for i in range(8) if i != 4] == [0, 10, 20, 30, 50, 60, 70]
        with pytest.raises(ValueError, match="thirteen"):
            await batches.done(13)
        assert await batches.done(2) == 20, "it goes on"
        batches.close()

    asyncio.run(asyncio.wait_for(main(), 20))
    assert seen[0] == [0, 1, 2] and [job for jobs in seen for job in jobs if job < 8][:7] == [0, 1, 2, 3, 5, 6, 7]
    assert max(map(len, seen)) == 3


def painter_of(outputs: list[list[int]], newer: bool = False, captions: bool = False) -> Painter:
    """A painter whose engine sends these codes."""

    class Engine:
        vllm_config = SimpleNamespace(use_v2_model_runner=newer)

        async def generate(self, prompt, params, name):
            self.params = params
            for codes in outputs:
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=codes)])

    one = Painter.__new__(Painter)
    one.pipeline, one.llm, one.captions = Waiting.pipeline, Engine(), captions
    one.packing, one.numbers = Packing(16, 8) if captions else Packing(16, 1, 3), iter(range(9))
    return one


def test_a_picture_that_the_engine_ends_early_is_none():
    whole = [[1] * 4] * 4
    wish = Wish(1, Sampling(2.0, top_k=5, temperature=0.5), seed=3)
    one = painter_of(whole)
    assert asyncio.run(one.all_codes(wish)) == [1] * 16
    assert (one.llm.params.stream_interval, one.llm.params.seed, one.llm.params.top_k) == (4, 3, 5)
    for outputs in (whole[:3], []):
        with pytest.raises(Unfinished, match=f"after {4 * len(outputs)} of 16 codes"):
            asyncio.run(painter_of(outputs).all_codes(wish))


@pytest.mark.parametrize("newer", [False, True])
def test_captions_as_both_model_runners_want_them(newer):
    rows = torch.zeros(3, 4)
    found = painter_of([], newer, captions=True).prompt(Wish(rows, Sampling(2.0)))
    assert len(found["prompt_token_ids"]) == 3 and found["prompt_embeds"] is rows
    assert found.get("prompt_is_token_ids") == (None if newer else [False] * 3)


def test_both_model_runners_see_that_positions_are_the_model_s():
    assert supports_mrope(LlamaGenForImageCodes)


def test_a_rate_forgets_without_being_asked(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(ledger.time, "monotonic", lambda: clock.now)
    rate = Rate()
    for i in range(100_000):
        clock.now = i / 100  # 1,000 seconds
        rate.add(2)
    assert len(rate.done) <= 61 and rate.now() == pytest.approx(200, rel=0.03)
    clock.now += 61
    assert rate.now() == 0


def test_a_shelf_holds_so_many_bytes_for_so_long(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(ledger.time, "monotonic", lambda: clock.now)
    shelf = Shelf(most=100, seconds=10)
    for i in range(30):
        shelf.put(str(i), bytes(10))
    assert shelf.get("19") is None and shelf.get("20") == bytes(10) and shelf.bytes == 100
    clock.now = 11
    assert shelf.get("29") is None and not shelf.held and shelf.bytes == 0


def test_shares_of_layers_are_equal():
    args = SimpleNamespace(n_head=12, n_kv_head=12, ffn_width=2048)
    for ranks in (1, 2, 4):
        check_shares(args, ranks)
    for ranks in (3, 5, 6, 24):
        with pytest.raises(ValueError, match=f"--tensor-parallel-size {ranks}: .* 12 heads and the 2048 columns"):
            check_shares(args, ranks)
    check_shares(SimpleNamespace(n_head=16, n_kv_head=2, ffn_width=2048), 8)


def test_key_heads_that_processes_repeat_are_counted(monkeypatch):
    config = {"max_position_embeddings": 65, "num_hidden_layers": 3, "n_kv_head": 2, "head_dim": 32}
    monkeypatch.setattr(launch, "config_of", lambda gpt, streams: {**config, "cfg_streams": streams})
    found = [cache_bytes(SimpleNamespace(gpt=None), EngineOptions(max_num_seqs=4, tensor_parallel_size=ranks),
                         torch.bfloat16, guided=True) for ranks in (1, 2, 4)]  # fmt: skip
    assert found[1] == found[2] == 2 * 3 * 2 * 32 * 2 * 5 * 128 and found[0] == 2 * found[1]


@pytest.mark.parametrize("make, words", [
    (lambda: ServerOptions(api_key=""), "--api-key"),
    (lambda: ServerOptions(host=""), "--host"),
    (lambda: ServerOptions(public_url="pictures.example"), "--public-url pictures.example"),
    (lambda: Serve(server=ServerOptions(max_n=10, max_queue=2), engine=EngineOptions(max_num_seqs=2)), "--max-n 10"),
    (lambda: EngineOptions(nnodes=2, node_rank=2), "--node-rank 2: must be 0 to 1"),
])  # fmt: skip
def test_options_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_address_that_is_taken_is_said_at_once():
    assert OPTIONS.host == "127.0.0.1"
    with listening(ServerOptions(port=free_port())) as place:
        port = place.getsockname()[1]
        with pytest.raises(ValueError, match=f"--host 127.0.0.1 --port {port}: cannot listen there"):
            listening(ServerOptions(port=port))




def test_pictures_are_encoded_as_asked():
    picture = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    found = Image.open(io.BytesIO(endpoint.packed(picture, 16, "webp")))
    assert found.size == (16, 16) and found.format == "WEBP"
