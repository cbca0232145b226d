"""A server that leaves answers those who still wait."""

import asyncio
import socket

import uvicorn

from autoregressive.serve.api import build
from autoregressive.serve.endpoint import Endpoint

GRACE = 10  # seconds that those who wait still have when the server is told to leave
FAREWELL = 5  # seconds more, for telling the others that it leaves


class Server(uvicorn.Server):
    """Told to leave it takes no more requests, and refuses those that are not done in GRACE seconds. (uvicorn alone
    cancels them: they get a bare 500, or nothing.)"""

    def __init__(self, endpoint: Endpoint):
        config = uvicorn.Config(build(endpoint), log_level="warning", timeout_graceful_shutdown=GRACE + FAREWELL)
        super().__init__(config)
        self.leaving = endpoint.leaving

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(GRACE, self.leaving.set)
        await super().shutdown(sockets)
