"""The HTTP endpoint: the OpenAI images API.

Whatever a client sends that cannot be done is answered with the API's error object; whoever goes away frees the place.
"""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from autoregressive.serve.endpoint import GONE, Endpoint, refusal_of, sent_by, stopped, unless
from autoregressive.serve.wire import FORMATS, Generation, Refusal, event_of_error, read

LATE = 5  # seconds that a stream has for saying that its time is over
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {
    "type": "object", "required": ["message", "type"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]}}}}}  # fmt: skip
ANSWER = {"type": "object", "required": ["created", "data", "seed"], "properties": {
    "created": {"type": "integer"}, "seed": {"type": "integer"}, "size": {"type": "string"},
    "output_format": {"type": "string"}, "note": {"type": "string"}, "usage": {"type": "object"},
    "data": {"type": "array", "items": {"type": "object", "properties": {
        "b64_json": {"type": "string"}, "url": {"type": "string"}}}}}}  # fmt: skip


class Visit:
    """One request for pictures: until when it may take, and that it is counted once."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.began = endpoint, asyncio.get_running_loop().time()
        self.ends = self.began + endpoint.options.timeout

    def refusal(self, error: Exception) -> Refusal:
        return refusal_of(error, self.endpoint.options.timeout)

    def answered(self, status: int) -> None:
        self.endpoint.ledger.answered(status, asyncio.get_running_loop().time() - self.began)


class Events(StreamingResponse):
    """Server-sent events; what goes wrong in the middle is one of them. However it ends, and even if it never begins or
    nobody reads it, the room is given back."""

    def __init__(self, parts: AsyncIterator[bytes], room: contextlib.ExitStack, visit: Visit):
        # X-Accel-Buffering: that proxies pass on what there is.
        super().__init__(self._told(parts), media_type="text/event-stream",
                         headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})  # fmt: skip
        self.parts, self.room, self.visit = parts, room, visit
        self.status = GONE  # until all of it has been read

    async def _told(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for part in parts:
                yield part
            self.status = 200
        except Exception as error:
            refusal = self.visit.refusal(error)
            self.status = refusal.status
            yield event_of_error(refusal)

    async def __call__(self, scope, receive, send) -> None:
        try:
            async with asyncio.timeout_at(self.visit.ends + LATE):
                await super().__call__(scope, receive, send)
        except TimeoutError:  # the other side does not read
            pass
        finally:
            await self.parts.aclose()
            self.room.close()
            self.visit.answered(self.status)


async def body_of(request: Request, most: int) -> bytes:
    """Refusal of one that is too large, before it is all there, and of one that is no JSON by its header: that browsers
    do not send from other sites without asking."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(400, "the body must be sent with Content-Type: application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise Refusal(413, f"the body has more than {most} bytes")
    return bytes(body)


async def gone(request: Request) -> None:
    """Until the client goes away: Refusal."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise Refusal(GONE, "the client went away")


def schema_of(endpoint: Endpoint) -> dict:
    """Of a request's body, with this server's own bounds."""
    schema = Generation.model_json_schema()
    for name, most in (("n", endpoint.options.max_n), ("cfg_scale", endpoint.painter.packing.highest_scale)):
        number = next(kind for kind in schema["properties"][name]["anyOf"] if kind["type"] != "null")
        number["maximum"] = most
    return schema


def build(endpoint: Endpoint) -> FastAPI:
    """The application."""
    options, ledger = endpoint.options, endpoint.ledger
    app = FastAPI(title="LlamaGen", description="Pictures of classes or captions, by the OpenAI images API.",
                  docs_url=None, redoc_url=None)  # fmt: skip
    errors = {status: {"description": words, "content": {"application/json": {"schema": ERROR}}} for status, words in
              ((400, "What was sent cannot be done"), (401, "The API key is missing or wrong"),
               (404, "No such model or picture"), (413, "The body is too large"), (429, "No room now: see Retry-After"),
               (500, "Something went wrong here"), (503, "The engine has stopped, or the server leaves"),
               (504, "It took too long"))}  # fmt: skip

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body, refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(Refusal(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    def allowed(request: Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode("latin-1")  # the bytes sent
        if options.api_key and not hmac.compare_digest(given, options.api_key.encode()):
            raise Refusal(401, "the API key is missing or wrong: send Authorization: Bearer ...",
                          code="invalid_api_key", kind="authentication_error",
                          headers={"WWW-Authenticate": "Bearer"})  # fmt: skip

    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(endpoint)}}}}
    found = {200: {"description": "Pictures; with stream, server-sent events",
                   "content": {"application/json": {"schema": ANSWER}, "text/event-stream": {}}}}  # fmt: skip

    @app.post("/v1/images/generations", responses=found | errors, openapi_extra=body)
    async def generations(request: Request) -> Response:
        """Pictures."""
        visit = Visit(endpoint)
        try:
            async with asyncio.timeout_at(visit.ends):
                allowed(request)
                sent = await unless(body_of(request, options.max_body), endpoint.left())
                order = endpoint.order(read(sent))
                with contextlib.ExitStack() as room:
                    room.enter_context(ledger.admission(order.count))
                    if order.asked.stream:
                        parts = sent_by(lambda send: unless(endpoint.events(order, send), endpoint.left()), visit.ends)
                        return Events(parts, room.pop_all(), visit)
                    base = f"{(options.public_url or str(request.base_url)).rstrip('/')}/"
                    answer = await unless(endpoint.whole(order, base), gone(request), endpoint.left())
        except Exception as error:
            refusal = visit.refusal(error)
            visit.answered(refusal.status)
            raise refusal from None
        visit.answered(200)
        return JSONResponse(answer)

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
