"""The endpoint's manners, with a painter that only waits: limits, keys, time, those who go away, and a fuzzer."""

import asyncio
import base64
import io
import json
import logging
import socket
from functools import partial

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("vllm", reason="needs vLLM: bash scripts/test_serve.sh")

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from waiting import PATH, Waiting, app_of, asked, endpoint_of, metrics, post, visited

from autoregressive.models.generate import Sampling
from autoregressive.serve import leaving
from autoregressive.serve.vllm_names import EngineDeadError


def test_pictures_and_what_they_were_asked_to_be():
    painter = Waiting()
    answer = post(painter, {"prompt": "grey whale", "n": 2, "seed": 5, "cfg_scale": 3, "cfg_interval": 4, "top_k": 7,
                            "top_p": 0.5, "temperature": 0.25, "quality": "hd", "size": "128x128"})  # fmt: skip
    body = answer.json()
    assert answer.status_code == 200 and len(body["data"]) == 2 and body["seed"] == 5
    assert body["note"] == "ignored: quality" and body["size"] == "128x128"
    picture = Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"])))
    assert picture.size == (128, 128) and picture.format == "PNG" and picture.getpixel((0, 0)) == (160, 160, 160)
    assert {wish.condition for wish in painter.asked} == {1} and len({wish.seed for wish in painter.asked}) == 2
    assert painter.asked[0].sampling == Sampling(3.0, 4, "constant", 2.75, 0.25, 7, 0.5)
    first = [wish.seed for wish in painter.asked]
    assert post(painter, {"prompt": 0}).json()["seed"] != post(painter, {"prompt": "0"}).json()["seed"]
    assert painter.asked[-1].sampling == Sampling(cfg_scale=2.0, top_k=100), "the server's own"
    post(painter, {"prompt": 2, "n": 2, "seed": 5})
    assert [wish.seed for wish in painter.asked[-2:]] == first


@pytest.mark.parametrize("kind, found", [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_a_picture_waits_at_an_address(kind, found):
    async def work(client):
        answer = await client.post(PATH,
                                   json={"prompt": "cat", "response_format": "url", "output_format": kind})  # fmt: skip
        (one,) = answer.json()["data"]
        missing = await client.get("/v1/images/other.png")
        return await client.get(one["url"]), missing

    picture, missing = asked(Waiting(), work)
    assert picture.headers["content-type"] == f"image/{kind}" and missing.status_code == 404
    assert Image.open(io.BytesIO(picture.content)).format == found


WRONG = [
    (b"", None, "the body is no JSON object"),
    (b"[]", None, "the body is no JSON object"),
    (b'{"prompt": "cat"', None, "the body is no JSON object"),
    (b"\xff\xfe", None, "the body is no JSON object"),
    ({}, "prompt", "Field required"),
    ({"prompt": None}, "prompt", "prompt"),
    ({"prompt": True}, "prompt", "prompt"),
    ({"prompt": ["cat"]}, "prompt", "prompt"),
    ({"prompt": "whal"}, "prompt", "did you mean grey whale"),
    ({"prompt": 3}, "prompt", "this model has classes 0 to 2"),
    ({"prompt": -1}, "prompt", "this model has classes 0 to 2"),
    ({"prompt": 10**30}, "prompt", "classes 0 to 2"),
    ({"prompt": "x" * 4001}, "prompt", "4000"),
    ({"prompt": "cat", "n": 0}, "n", "greater than or equal to 1"),
    ({"prompt": "cat", "n": 4}, "n", "3 are the most"),
    ({"prompt": "cat", "n": 10**6}, "n", "3 are the most"),
    ({"prompt": "cat", "n": "2"}, "n", "valid integer"),
    ({"prompt": "cat", "n": 1.5}, "n", "integer"),
    ({"prompt": "cat", "size": "9x9"}, "size", "auto, 8x8, 128x128"),
    ({"prompt": "cat", "size": "9x9", "stream": True}, "size", "auto, 8x8, 128x128"),
    ({"prompt": "cat", "size": 8}, "size", "valid string"),
    ({"prompt": "cat", "response_format": "gif"}, "response_format", "b64_json"),
    ({"prompt": "cat", "partial_images": 4}, "partial_images", "less than or equal to 3"),
    ({"prompt": "cat", "stream": True, "response_format": "url"}, "response_format", "leave it out with stream"),
    ({"prompt": "cat", "seed": -1}, "seed", "greater than or equal to 0"),
    ({"prompt": "cat", "cfg_scale": 1.005}, "cfg_scale", "steps of 0.01"),
    ({"prompt": "cat", "cfg_scale": 0.5}, "cfg_scale", "greater than or equal to 1"),
    (b'{"prompt": "cat", "cfg_scale": NaN}', "cfg_scale", ""),
    ({"prompt": "cat", "temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"prompt": "cat", "top_p": 0}, "top_p", "greater than 0"),
    ({"prompt": "cat", "top_k": -1}, "top_k", "greater than or equal to 0"),
    ({"prompt": "cat", "stream": "yes"}, "stream", "valid boolean"),
    ({"prompt": "cat", "tempeature": 1}, "tempeature", "not permitted"),
]


@pytest.mark.parametrize("body, param, words", WRONG)
def test_what_cannot_be_done_is_named(body, param, words):
    painter = Waiting()
    answer = post(painter, body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and words in error["message"]
    assert error["type"] == "invalid_request_error" and not painter.asked


def test_other_refusals_have_the_same_shape():
    async def work(client):
        json_ = {"prompt": "cat", "model": "dall-e-2"}
        return [await client.post(PATH, json=json_), await client.get("/v1/models/gpt"),
                await client.get("/nowhere"), await client.get(PATH)]  # fmt: skip

    answers = asked(Waiting(), work)
    assert [answer.status_code for answer in answers] == [404, 404, 404, 404]
    assert all(answer.json()["error"]["message"] for answer in answers)
    assert answers[0].json()["error"]["code"] == "model_not_found"
    large = post(Waiting(), {"prompt": "cat", "user": "x" * 7000})
    assert large.status_code == 413 and "6000 bytes" in large.json()["error"]["message"]


def test_a_key_is_asked_for_where_there_is_one():
    painter, body = Waiting(), {"prompt": "cat"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
        answer = post(painter, body, headers, api_key="secret")
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert not painter.asked
    assert post(painter, body, {"Authorization": "Bearer secret"}, api_key="secret").status_code == 200

    async def work(client):
        paths = "/v1/models", "/v1/models/tiny", "/health", "/metrics"
        return [(await client.get(path)).status_code for path in paths]

    assert asked(painter, work, api_key="secret") == [401, 401, 200, 200]


def test_no_more_wait_than_there_is_room_for():
    async def work(client):
        body = {"prompt": "cat", "n": 2}
        first = [asyncio.create_task(client.post(PATH, json=body)) for _ in range(3)]
        await asyncio.sleep(0.2)
        page = (await client.get("/metrics")).text
        late = await client.post(PATH, json={"prompt": "cat"})
        done = [answer.status_code for answer in await asyncio.gather(*first)]
        return page, late, done, await client.post(PATH, json=body)

    page, late, done, after = asked(Waiting(0.1), work)
    assert "llamagen_pictures_drawing 2.0" in page and "llamagen_pictures_waiting 4.0" in page
    assert late.status_code == 429 and 1 <= int(late.headers["Retry-After"]) <= 600
    assert late.json()["error"]["code"] == "queue_full" and done == [200, 200, 200] and after.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_ended_and_gives_its_room_back(stream):
    painter = Waiting(0.2)

    async def work(client):
        found = await client.post(PATH, json={"prompt": "cat", "n": 2, "stream": stream})
        return found, (await client.get("/metrics")).text

    answer, page = asked(painter, work, timeout=1)
    if stream:
        assert answer.text.startswith("event: error\n") and "longer than 1 seconds" in answer.text
    else:
        assert answer.status_code == 504 and answer.json()["error"]["type"] == "timeout_error"
    assert painter.ended == 2 and "llamagen_pictures_drawing 0.0" in page
    assert 'llamagen_requests_total{status="504"} 1.0' in page


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_has_stopped_is_said(stream):
    painter = Waiting()
    painter.fault = EngineDeadError()

    async def work(client):
        return (await client.post(PATH, json={"prompt": "cat", "stream": stream}),
                await client.get("/health"))  # fmt: skip

    answer, health = asked(painter, work)
    assert "the engine has stopped" in answer.text and answer.status_code == (200 if stream else 503)
    assert health.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_leaves_has_a_little_time(stream, monkeypatch):
    """Who is done meanwhile gets pictures; who is not is told, and so is who has not said yet what he wants."""
    monkeypatch.setattr(leaving, "GRACE", 2.0)
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)  # uvicorn sets it for good
    painter, place = Waiting(0.2), socket.create_server(("127.0.0.1", 0))
    painter.slow = {2}
    server = leaving.Server(endpoint_of(painter))

    async def half_said() -> str:
        reader, writer = await asyncio.open_connection(*place.getsockname())
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                     'Content-Length: 99\r\n\r\n{"prompt"'.encode())  # fmt: skip
        answer = await reader.read()
        writer.close()
        return answer.decode()

    async def main():
        serving = asyncio.create_task(server.serve(sockets=[place]))
        url = "http://{}:{}".format(*place.getsockname())
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            ask = partial(client.post, PATH)
            body = {"stream": stream, "n": 2, "partial_images": 3}
            asked = [ask(json={**body, "prompt": 0}), ask(json={**body, "prompt": 2}), half_said()]
            asked = [asyncio.create_task(each) for each in asked]
            while len(server.server_state.tasks) < 3 or len(painter.asked) < 4:
                await asyncio.sleep(0.01)
            server.should_exit = True
            while server.servers[0].is_serving():
                await asyncio.sleep(0.01)
            painter.step = 0.0
            answers = await asyncio.gather(*asked)
            with pytest.raises(httpx.ConnectError):
                await client.get("/health")
        await serving
        return answers

    quick, slow, still = asyncio.run(asyncio.wait_for(main(), 30))
    assert quick.status_code == 200 and "b64_json" in quick.text and "error" not in quick.text
    assert slow.status_code == (200 if stream else 503) and still.startswith("HTTP/1.1 503")
    error = json.loads(slow.text.rpartition("data: ")[2])["error"]
    assert "the server is about to leave" in error["message"] and error["type"] == "server_error"
    assert "the server is about to leave" in still and painter.ended == len(painter.asked) == 4
    assert "completed" not in slow.text and stream == ("partial_image" in slow.text)


def test_rows_are_shown_as_they_finish():
    answer = post(Waiting(), {"prompt": "cat", "stream": True, "partial_images": 3, "seed": 1, "n": 2})
    events = [json.loads(part.partition("data: ")[2]) for part in answer.text.strip().split("\n\n")]
    for i in range(2):
        mine = [event for event in events if event["index"] == i]
        assert [event["type"].split(".")[1] for event in mine] == ["partial_image"] * 3 + ["completed"]
        assert [event.get("partial_image_index") for event in mine] == [0, 1, 2, None]
        for rows, event in enumerate(mine[:-1], 1):
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(event["b64_json"]))))
            assert (picture[: 2 * rows] == 40 * rows).all() and (picture[2 * rows :] == 96).all()
        assert mine[-1]["seed"] == 1 and mine[-1]["usage"]["output_tokens"] == 16


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("read", [0, 1])
def test_who_goes_away_frees_the_place(stream, read):
    painter = Waiting(0.05)
    app, sent = app_of(painter), []

    async def main():
        gone = asyncio.Event()
        body = json.dumps({"prompt": "cat", "n": 2, "stream": stream, "partial_images": 3}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        asking = asyncio.create_task(visited(app, receive, send))
        await asyncio.sleep(0.3 * read)
        gone.set()
        await asking
        before = painter.ended
        await asyncio.sleep(0.3)
        assert painter.ended == len(painter.asked) == before
        assert len(painter.asked) == 2 or not read

    asyncio.run(main())

    page = metrics(app)
    assert "llamagen_pictures_drawing 0.0" in page and 'llamagen_requests_total{status="499"} 1.0' in page


def described(**more):
    return schemathesis.openapi.from_asgi("/openapi.json", app_of(Waiting(**more), max_queue=1000, max_body=65_536))


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
classes, captions = described(), described(captions=True)


@classes.parametrize()
@FUZZ
def test_whatever_is_sent_there_is_an_answer(case):
    # That a class is unknown, or a size, no description can say: what fits it may still be refused.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


@captions.include(path=PATH).parametrize()
@FUZZ
def test_whatever_is_sent_as_a_caption_there_is_an_answer(case):
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
