"""A painter that only waits, and an endpoint on it."""

import asyncio
import json
from dataclasses import replace

import httpx
import numpy as np
import torch

from autoregressive.models.generate import Sampling
from autoregressive.serve.api import build
from autoregressive.serve.endpoint import Endpoint
from autoregressive.serve.options import ServerOptions
from autoregressive.serve.packing import Packing
from dataset.classes import find_label

NAMES = ["cat", "grey whale", "red fox"]
OPTIONS = ServerOptions(max_n=3, max_queue=4, timeout=20, max_body=6000)
PATH = "/v1/images/generations"


class Waiting:
    """A painter whose pictures are grey squares; what it was asked for, and who ended it, is written down."""

    class pipeline:
        grid = 4

        class gpt:
            image_size = 8

        @staticmethod
        def labels(classes: list) -> torch.Tensor:
            return torch.tensor([find_label(each, NAMES) for each in classes])

    def __init__(self, step: float = 0.0, captions: bool = False):
        self.step, self.captions, self.asked, self.ended, self.fault = step, captions, [], 0, None
        self.slow = set()  # labels of which little more than a row is drawn
        self.packing = Packing(16, 8) if captions else Packing(16, 1, 3)
        self.reader, self.reading = self, 0.0

    async def done(self, text: str) -> torch.Tensor:
        """The reader's work: a row a word."""
        await asyncio.sleep(self.reading)
        return torch.zeros(max(1, min(8, len(text.split()))), 4)

    async def codes(self, wish):
        self.asked.append(wish)
        try:
            for i in range(1, 17):
                await asyncio.sleep(60 if i > 5 and wish.condition in self.slow else self.step)
                if self.fault is not None:
                    raise self.fault
                yield list(range(i))
        finally:
            self.ended += 1

    async def developed(self, codes: list[int]) -> np.ndarray:
        return np.full((8, 8, 3), 10 * len(codes), np.uint8)

    async def alive(self) -> bool:
        return self.fault is None


def endpoint_of(painter: Waiting, **changed) -> Endpoint:
    return Endpoint(painter, replace(OPTIONS, **changed), Sampling(cfg_scale=2.0, top_k=100), "tiny", places=2)


def app_of(painter: Waiting, **changed):
    return build(endpoint_of(painter, **changed))


def asked(painter: Waiting, work, **changed):
    """What work(client) gives, on a server of this painter."""

    async def main():
        transport = httpx.ASGITransport(app_of(painter, **changed))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            return await work(client)

    return asyncio.run(main())


def post(painter: Waiting, body, headers: dict | None = None, **changed) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}

    async def work(client):
        return await client.post(PATH, content=content, headers=headers)

    return asked(painter, work, **changed)


async def visited(app, receive, send) -> None:
    """A request for pictures at the level of ASGI, to its end."""
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
             "method": "POST", "scheme": "http", "path": PATH, "raw_path": b"", "query_string": b"",
             "headers": [(b"content-type", b"application/json")], "server": ("test", 80), "client": ("test", 1),
             "root_path": ""}  # fmt: skip
    await app(scope, receive, send)


def metrics(app) -> str:
    async def page():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.get("/metrics")).text

    return asyncio.run(page())
