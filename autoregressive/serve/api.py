"""The HTTP endpoint: the OpenAI images API, answered by a Painter.

Whatever a client sends that cannot be done is answered with the API's error object; whoever goes away frees the place.
"""

import asyncio
import contextlib
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from autoregressive.models.generate import Sampling
from autoregressive.sample.drawn import greyed, resized
from autoregressive.serve.launch import guidance_of
from autoregressive.serve.ledger import Ledger, Shelf
from autoregressive.serve.options import ServerOptions
from autoregressive.serve.painter import Painter, Wish, picture_seed
from autoregressive.serve.wire import (
    FORMATS,
    Generation,
    Refusal,
    base64_of,
    encoded,
    event,
    event_of_error,
    read,
    side_of,
    usage,
)

ERROR = {"type": "object", "required": ["error"], "properties": {"error": {
    "type": "object", "required": ["message", "type"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]}}}}}  # fmt: skip
ANSWER = {"type": "object", "required": ["created", "data", "seed"], "properties": {
    "created": {"type": "integer"}, "seed": {"type": "integer"}, "size": {"type": "string"},
    "output_format": {"type": "string"}, "note": {"type": "string"}, "usage": {"type": "object"},
    "data": {"type": "array", "items": {"type": "object", "properties": {
        "b64_json": {"type": "string"}, "url": {"type": "string"}}}}}}  # fmt: skip
GONE = 499  # that a client went away, as it is counted: nobody reads the answer


class Endpoint:
    """The state that requests share."""

    def __init__(self, painter: Painter, options: ServerOptions, sampling: Sampling, name: str, places: int):
        self.painter, self.options, self.sampling, self.name = painter, options, sampling, name
        self.ledger, self.shelf, self.began = Ledger(places, options.max_queue), Shelf(), int(time.time())
        self.native = painter.pipeline.gpt.image_size

    # ---- one request

    async def wishes(self, asked: Generation, seed: int) -> list[Wish]:
        """What each of the pictures is asked to be."""
        if asked.model not in (None, self.name):
            raise Refusal(404, f"model {asked.model!r}: this server has {self.name}", "model", "model_not_found")
        if asked.n > self.options.max_n:
            raise Refusal(400, f"n: {self.options.max_n} are the most", "n")
        pipeline = self.painter.pipeline
        if (asked.partial_images or 0) >= pipeline.grid:
            raise Refusal(400, f"partial_images: {pipeline.grid - 1} are the most", "partial_images")
        try:
            sampling = asked.sampling(self.sampling)
            guidance_of(sampling, self.painter.packing)
        except ValueError as error:
            raise Refusal(400, str(error).replace("--cfg-scale", "cfg_scale"), "cfg_scale") from error
        try:
            if self.painter.captions:
                (condition,) = await asyncio.to_thread(pipeline.caption_rows, [str(asked.prompt)])
            else:
                condition = pipeline.labels([asked.prompt]).item()
        except (ValueError, OverflowError) as error:
            raise Refusal(400, str(error), "prompt") from error
        return [Wish(condition, sampling, picture_seed(seed, i)) for i in range(asked.n)]

    async def drawn(self, wish: Wish, previews: asyncio.Queue | None = None, rows: tuple[int, ...] = ()) -> np.ndarray:
        """uint8 [S, S, 3]. previews: where (how many rows are there, codes) goes when these rows are there."""
        grid, count, codes = self.painter.pipeline.grid, 0, []
        async with contextlib.aclosing(self.painter.codes(wish)) as steps:
            async for codes in steps:
                self.ledger.sampled(len(codes) - count)
                for row in rows:
                    if count < row * grid <= len(codes) and previews is not None:
                        previews.put_nowait((row, codes[: row * grid]))
                count = len(codes)
        return await self.painter.darkroom.picture(codes)

    async def packed(self, picture: np.ndarray, side: int, kind: str) -> bytes:
        return await asyncio.to_thread(lambda: encoded(resized(picture[None], side)[0], kind))

    async def whole(self, asked: Generation, wishes: list[Wish], seed: int, base: str) -> dict:
        """The answer to a request that is not streamed."""
        side, kind = side_of(asked.size, self.native), asked.output_format or "png"

        async def one(wish: Wish) -> dict:
            content = await self.packed(await self.drawn(wish), side, kind)
            if asked.response_format != "url":
                return {"b64_json": base64_of(content)}
            name = f"{secrets.token_urlsafe(16)}.{kind}"
            self.shelf.put(name, content)
            return {"url": f"{base}v1/images/{name}"}

        data = await together(one(wish) for wish in wishes)
        self.ledger.sent(len(data))
        return {"created": int(time.time()), "data": data, "size": f"{side}x{side}", "output_format": kind,
                "seed": seed, "usage": self._usage(wishes), **self._notes(asked)}  # fmt: skip

    async def bounded(self, work: Awaitable, ends: float):
        """The work's result; Refusal where the time is over before, or the engine has stopped."""
        from autoregressive.serve.vllm_names import EngineDeadError

        try:
            return await asyncio.wait_for(work, ends - time.monotonic())
        except asyncio.TimeoutError as error:
            raise Refusal(504, f"it took longer than {self.options.timeout:g} seconds", kind="timeout_error") from error
        except EngineDeadError as error:
            raise stopped() from error

    async def streamed(self, asked: Generation, wishes: list[Wish], seed: int, ends: float) -> AsyncIterator[bytes]:
        """Server-sent events: previews as rows finish, then each picture."""
        side, kind, grid = side_of(asked.size, self.native), asked.output_format or "png", self.painter.pipeline.grid
        count = asked.partial_images or 0
        rows = tuple(sorted({round(grid * (i + 1) / (count + 1)) for i in range(count)} - {0, grid}))
        events: asyncio.Queue[bytes] = asyncio.Queue()

        async def one(i: int, wish: Wish) -> None:
            previews: asyncio.Queue = asyncio.Queue()
            drawing = asyncio.create_task(self.drawn(wish, previews, rows))
            drawing.add_done_callback(lambda _: previews.put_nowait(None))
            try:
                shown = 0
                while (preview := await previews.get()) is not None:
                    row, codes = preview
                    picture = await self.painter.darkroom.picture(codes)
                    content = await self.packed(greyed(picture[None], row * grid, grid)[0], side, kind)
                    events.put_nowait(event("partial_image", base64_of(content), side, kind,
                                            partial_image_index=shown, index=i))  # fmt: skip
                    shown += 1
                content = await self.packed(await drawing, side, kind)
            finally:
                await ended(drawing)
            self.ledger.sent(1)
            events.put_nowait(event("completed", base64_of(content), side, kind, index=i, seed=seed,
                                    usage=self._usage([wish]), **self._notes(asked)))  # fmt: skip

        work = asyncio.create_task(together(one(i, wish) for i, wish in enumerate(wishes)))
        work.add_done_callback(lambda _: events.put_nowait(b""))
        try:
            while part := await self.bounded(events.get(), ends):
                yield part
            await self.bounded(work, ends)
        finally:
            await ended(work)

    def _usage(self, wishes: list[Wish]) -> dict:
        rows = len(wishes[0].condition) if self.painter.captions else 1
        return usage(rows, len(wishes) * self.painter.packing.codes)

    @staticmethod
    def _notes(asked: Generation) -> dict:
        return {"note": "; ".join(asked.notes)} if asked.notes else {}


class Events(StreamingResponse):
    """Server-sent events; what goes wrong in the middle is one of them. However it ends, and even if it never begins,
    the room is given back."""

    def __init__(self, parts: AsyncIterator[bytes], room: contextlib.ExitStack, answered: Callable[[int], None]):
        super().__init__(self._told(parts), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.parts, self.room, self.answered, self.status = parts, room, answered, GONE

    async def _told(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for part in parts:
                yield part
            self.status = 200
        except Refusal as refusal:
            self.status = refusal.status
            yield event_of_error(refusal)

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.room.close()
            self.answered(self.status)
            await self.parts.aclose()


async def together(work) -> list:
    """What all of them give. Where one fails, or nobody waits any more, the others end as well."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await ended(*tasks)


async def body_of(request: Request, most: int) -> bytes:
    """Refusal of one that is too large, before it is all there."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise Refusal(413, f"the body has more than {most} bytes")
    return bytes(body)


async def unless_gone(request: Request, work: Coroutine):
    """What the work gives; None, with the work ended, where the client goes away before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    drawing, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({drawing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await drawing if drawing.done() else None
    finally:
        await ended(drawing, leaving)


async def ended(*tasks: asyncio.Task) -> None:
    """Until they have given back what they hold."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def build(endpoint: Endpoint) -> FastAPI:
    """The application."""
    options, ledger = endpoint.options, endpoint.ledger
    app = FastAPI(title="LlamaGen", description="Pictures of classes or captions, by the OpenAI images API.",
                  docs_url=None, redoc_url=None)  # fmt: skip
    errors = {status: {"description": words, "content": {"application/json": {"schema": ERROR}}} for status, words in
              ((400, "What was sent cannot be done"), (401, "The API key is missing or wrong"),
               (404, "No such model or picture"), (413, "The body is too large"), (429, "No room now: see Retry-After"),
               (503, "The engine has stopped"), (504, "It took too long"))}  # fmt: skip

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body, refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(Refusal(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    def allowed(request: Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if options.api_key and not hmac.compare_digest(given.encode(), options.api_key.encode()):
            raise Refusal(401, "the API key is missing or wrong: send Authorization: Bearer ...",
                          code="invalid_api_key", kind="authentication_error",
                          headers={"WWW-Authenticate": "Bearer"})  # fmt: skip

    schema = {"required": True, "content": {"application/json": {"schema": Generation.model_json_schema()}}}

    found = {200: {"description": "Pictures; with stream, server-sent events",
                   "content": {"application/json": {"schema": ANSWER}, "text/event-stream": {}}}}  # fmt: skip

    @app.post("/v1/images/generations", responses=found | errors, openapi_extra={"requestBody": schema})
    async def generations(request: Request) -> Response:
        """Pictures."""
        began = time.monotonic()
        ends = began + options.timeout

        def answered(status: int) -> None:
            ledger.requests.labels(str(status)).inc()
            ledger.latency.observe(time.monotonic() - began)

        try:
            allowed(request)
            asked = read(await body_of(request, options.max_body))
            side_of(asked.size, endpoint.native)
            seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
            with contextlib.ExitStack() as room:
                room.enter_context(ledger.admission(asked.n))
                wishes = await endpoint.wishes(asked, seed)
                if asked.stream:
                    return Events(endpoint.streamed(asked, wishes, seed, ends), room.pop_all(), answered)
                work = endpoint.whole(asked, wishes, seed, str(request.base_url))
                found = await unless_gone(request, endpoint.bounded(work, ends))
        except Refusal as refusal:
            answered(refusal.status)
            raise
        answered(GONE if found is None else 200)
        return Response(status_code=GONE) if found is None else JSONResponse(found)

    found_picture = {200: {"content": {f"image/{kind}": {} for kind in FORMATS}}, 404: errors[404]}

    @app.get("/v1/images/{name}", responses=found_picture, response_class=Response)
    async def picture(name: str) -> Response:
        """A picture that was asked for with response_format url."""
        content, kind = endpoint.shelf.get(name), name.rpartition(".")[2]
        if content is None or kind not in FORMATS:
            raise Refusal(404, "there is no such picture, or no more")
        return Response(content, media_type=f"image/{kind}")

    about = {"id": endpoint.name, "object": "model", "created": endpoint.began, "owned_by": "llamagen"}

    @app.get("/v1/models", responses={401: errors[401]})
    async def models(request: Request) -> dict:
        allowed(request)
        return {"object": "list", "data": [about]}

    @app.get("/v1/models/{model}", responses={401: errors[401], 404: errors[404]})
    async def model(model: str, request: Request) -> dict:
        allowed(request)
        if model != endpoint.name:
            raise Refusal(404, f"model {model!r}: this server has {endpoint.name}", "model", "model_not_found")
        return about

    @app.get("/health", responses={503: errors[503]})
    async def health() -> dict:
        if not await endpoint.painter.alive():
            raise stopped()
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        return Response(ledger.page(), media_type="text/plain; version=0.0.4")

    return app


def stopped() -> Refusal:
    return Refusal(503, "the engine has stopped: the server must be started again", kind="server_error")
