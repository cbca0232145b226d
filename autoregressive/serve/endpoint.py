"""What a request for pictures becomes: an answer, or events, by a Painter that all requests share.

Axes: N codes of a picture, n rows of a caption, S side of a picture in pixels.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass

import numpy as np
from starlette.requests import ClientDisconnect

from autoregressive.models.generate import Sampling
from autoregressive.sample.drawn import greyed, resized
from autoregressive.serve.ledger import Ledger, Shelf
from autoregressive.serve.options import ServerOptions
from autoregressive.serve.painter import Painter, Unfinished, Wish, picture_seed
from autoregressive.serve.wire import Generation, Refusal, base64_of, encoded, event, side_of, usage

GONE = 499  # that a client went away, as it is counted: nobody reads the answer
SILENCE = 15  # seconds after which a stream says that it is still there: proxies close what is silent for longer
AHEAD = 4  # events that a stream prepares while its reader is busy

Send = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Order:
    """A request that can be met."""

    asked: Generation
    sampling: Sampling
    seed: int
    prompt: int | str  # a label, or a caption

    @property
    def count(self) -> int:
        """Pictures."""
        return self.asked.n or 1


class Endpoint:
    """The state that requests share."""

    def __init__(self, painter: Painter, options: ServerOptions, sampling: Sampling, name: str, places: int):
        self.painter, self.options, self.sampling, self.name = painter, options, sampling, name
        self.ledger, self.shelf, self.began = Ledger(places, options.max_queue), Shelf(), int(time.time())
        self.native = painter.pipeline.gpt.image_size
        self.leaving = asyncio.Event()  # set: the time of those who still wait is over

    async def left(self) -> None:
        """Until the server has no more time for those who wait: Refusal."""
        await self.leaving.wait()
        raise leaves("there was no time to finish this")

    def order(self, asked: Generation) -> Order:
        """What is to be drawn. Refusal of what this server has not."""
        if asked.model not in (None, self.name):
            raise Refusal(404, f"model {asked.model!r}: this server has {self.name}", "model", "model_not_found")
        if (asked.n or 1) > self.options.max_n:
            raise Refusal(400, f"n: {self.options.max_n} are the most", "n")
        if asked.stream and asked.response_format == "url":
            raise Refusal(400, "response_format: events hold their pictures; leave it out with stream",
                          "response_format")  # fmt: skip
        side_of(asked.size, self.native)
        try:
            sampling = asked.sampling(self.sampling)
            self.painter.packing.carried(sampling)
        except ValueError as error:
            raise Refusal(400, str(error).replace("--cfg-scale", "cfg_scale"), "cfg_scale") from error
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        if self.painter.captions:
            return Order(asked, sampling, seed, str(asked.prompt))
        try:
            return Order(asked, sampling, seed, self.painter.pipeline.labels([asked.prompt]).item())
        except (ValueError, OverflowError) as error:
            raise Refusal(400, str(error), "prompt") from error

    async def wishes(self, order: Order) -> list[Wish]:
        """Each of its pictures."""
        condition = order.prompt
        if self.painter.captions:
            condition = await self.painter.reader.done(condition)
        return [Wish(condition, order.sampling, picture_seed(order.seed, i)) for i in range(order.count)]

    async def drawn(self, wish: Wish, previews: asyncio.Queue | None = None, rows: tuple[int, ...] = ()) -> np.ndarray:
        """uint8 [S, S, 3]. previews: where (how many rows are there, codes) goes when these rows are there."""
        grid, count, codes = self.painter.pipeline.grid, 0, []
        async with contextlib.aclosing(self.painter.codes(wish)) as steps:
            async for codes in steps:
                self.ledger.sampled(len(codes) - count)
                for row in rows:
                    if count < row * grid <= len(codes):
                        previews.put_nowait((row, codes[: row * grid]))
                count = len(codes)
        return await self.painter.developed(codes)

    async def whole(self, order: Order, base: str) -> dict:
        """The answer to a request that is not streamed; base: what addresses of pictures begin with."""
        side, kind = self._format(order)
        wishes = await self.wishes(order)

        async def one(wish: Wish) -> dict:
            picture = await self.drawn(wish)
            content = await asyncio.to_thread(packed, picture, side, kind)
            if order.asked.response_format != "url":
                return {"b64_json": await asyncio.to_thread(base64_of, content)}
            name = f"{secrets.token_urlsafe(16)}.{kind}"
            self.shelf.put(name, content)
            return {"url": f"{base}v1/images/{name}"}

        data = await together(one(wish) for wish in wishes)
        self.ledger.finished(len(data))
        return {"created": int(time.time()), "data": data, "size": f"{side}x{side}", "output_format": kind,
                "seed": order.seed, "usage": self._usage(wishes), **self._notes(order)}  # fmt: skip

    async def events(self, order: Order, send: Send) -> None:
        """Previews as rows finish, then each picture, as server-sent events."""
        (side, kind), grid, count = self._format(order), self.painter.pipeline.grid, order.asked.partial_images or 0
        rows = tuple(sorted({round(grid * (i + 1) / (count + 1)) for i in range(count)} - {0, grid}))
        wishes = await self.wishes(order)

        async def told(name: str, picture: np.ndarray, **more) -> None:
            await send(await asyncio.to_thread(lambda: event(name, packed(picture, side, kind), side, kind, **more)))

        async def one(i: int, wish: Wish) -> None:
            previews: asyncio.Queue = asyncio.Queue()
            drawing = asyncio.create_task(self.drawn(wish, previews, rows))
            drawing.add_done_callback(lambda _: previews.put_nowait(None))
            try:
                shown = 0
                while (preview := await previews.get()) is not None:
                    row, codes = preview
                    picture = greyed((await self.painter.developed(codes))[None], row * grid, grid)[0]
                    await told("partial_image", picture, partial_image_index=shown, index=i)
                    shown += 1
                picture = await drawing
            finally:
                await ended(drawing)
            self.ledger.finished(1)
            more = {"usage": self._usage([wish]), **self._notes(order)}
            await told("completed", picture, index=i, seed=order.seed, **more)

        await together(one(i, wish) for i, wish in enumerate(wishes))

    def _usage(self, wishes: list[Wish]) -> dict:
        rows = len(wishes[0].condition) if self.painter.captions else 1
        return usage(rows, len(wishes) * self.painter.packing.codes)

    def _format(self, order: Order) -> tuple[int, str]:
        """Side in pixels, and kind of file."""
        return side_of(order.asked.size, self.native), order.asked.output_format or "png"

    @staticmethod
    def _notes(order: Order) -> dict:
        return {"note": "; ".join(order.asked.notes)} if order.asked.notes else {}


def packed(picture: np.ndarray, side: int, kind: str) -> bytes:
    """uint8 [S, S, 3] as a file of this size and format."""
    return encoded(resized(picture[None], side)[0], kind)


def refusal_of(error: Exception, timeout: float) -> Refusal:
    """What a client is told of anything that went wrong."""
    from autoregressive.serve.vllm_names import EngineDeadError

    if isinstance(error, Refusal):
        return error
    if isinstance(error, TimeoutError):
        return Refusal(504, f"it took longer than {timeout:g} seconds", kind="timeout_error")
    if isinstance(error, ClientDisconnect):
        return Refusal(GONE, "the client went away")
    if isinstance(error, EngineDeadError):
        return stopped()
    if isinstance(error, Unfinished):
        return leaves(error)
    logging.getLogger("uvicorn.error").error("a request failed", exc_info=error)
    return Refusal(500, "something went wrong here, and the server's log says what", kind="server_error")


def stopped() -> Refusal:
    return Refusal(503, "the engine has stopped: the server must be started again", kind="server_error")


def leaves(reason: object) -> Refusal:
    return Refusal(503, f"{reason}: the server is about to leave", kind="server_error")


async def sent_by(work: Callable[[Send], Awaitable[None]], ends: float) -> AsyncIterator[bytes]:
    """What the work sends, as it comes, and a comment where it is silent. `ends`: by the loop's time; TimeoutError."""
    parts: asyncio.Queue[bytes | None] = asyncio.Queue(AHEAD)

    async def working() -> None:
        await work(parts.put)
        await parts.put(None)

    loop, getting = asyncio.get_running_loop(), None
    task = asyncio.create_task(working())
    try:
        while True:
            left = ends - loop.time()
            if left <= 0:
                raise TimeoutError
            getting = getting or asyncio.ensure_future(parts.get())
            await asyncio.wait({getting, task}, timeout=min(SILENCE, left), return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                part, getting = getting.result(), None
                if part is None:
                    return
                yield part
            elif task.done():
                task.result()  # raises what went wrong; else the end is on its way
            elif loop.time() < ends:
                yield b": still drawing\n\n"
    finally:
        await ended(task, *([getting] if getting else []))


async def together(work) -> list:
    """What all of them give. Where one fails, or nobody waits any more, the others end as well."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await ended(*tasks)


async def unless(work: Coroutine, *stops: Coroutine):
    """What the work gives, or what one of the stops raises where that comes first; the others are ended."""
    tasks = [asyncio.create_task(each) for each in (work, *stops)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return await next(task for task in tasks if task in done)
    finally:
        await ended(*tasks)


async def ended(*tasks: asyncio.Future) -> None:
    """Until they have given back what they hold."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
