"""A server in a process of its own, and clients in another that load it."""

import asyncio
import base64
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT

SERVER = "autoregressive/serve/server.py"


@dataclass
class Served:
    url: str
    process: subprocess.Popen
    log: Path

    def end(self, seconds: float = 60) -> None:
        """Tell it to leave by SIGTERM; TimeoutExpired, and it is killed with its engine, where it does not."""
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise


@contextmanager
def served(port: int, *flags: str, environment: dict[str, str] | None = None, seconds: float = 600) -> Iterator[Served]:
    """autoregressive/serve/server.py with these flags, when it listens. RuntimeError, with what it said, where it ends
    before."""
    command = [sys.executable, str(ROOT / SERVER), "--port", str(port), *flags]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as out:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT,
                                       start_new_session=True)  # fmt: skip
        server, deadline = Served(f"http://127.0.0.1:{port}", process, log), time.monotonic() + seconds
        try:
            while f"is served on {server.url}" not in log.read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start:\n{log.read_text()[-5000:]}")
                time.sleep(0.1)
            yield server
        finally:
            if process.poll() is None:
                server.end()


def load(url: str, clients: int, bodies: list[dict], key: str = "none") -> dict:
    """Post each of the bodies, by so many clients at once that wait for an answer before they ask again: "answers", in
    the order of `bodies`, each with "seed", "seconds" and "pictures" (their files); and "seconds" of them all.
    httpx.HTTPStatusError where one is refused."""
    return asyncio.run(_load(url, clients, bodies, {"Authorization": f"Bearer {key}"}))


async def _load(url: str, clients: int, bodies: list[dict], headers: dict[str, str]) -> dict:
    import httpx

    answers: list[dict | None] = [None] * len(bodies)
    waiting = iter(enumerate(bodies))

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600) as http:
            for i, body in waiting:
                began = time.perf_counter()
                answer = (await http.post("/v1/images/generations", json=body)).raise_for_status().json()
                answers[i] = {"seed": answer["seed"], "seconds": time.perf_counter() - began,
                              "pictures": [base64.b64decode(one["b64_json"]) for one in answer["data"]]}  # fmt: skip

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return {"answers": answers, "seconds": time.perf_counter() - began}
