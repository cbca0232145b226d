"""A Hub that stands on this machine: repositories are made, filled and fetched as huggingface_hub asks for it."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMIT = "1" * 40
TOKEN = "hf_token"


class Hub(http.server.BaseHTTPRequestHandler):
    """server.repositories: name -> path -> content. Who writes must show TOKEN."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.created.append(asked)
            there = name in self.server.repositories
            self.server.repositories.setdefault(name, {})
            if not there and asked.get("visibility") == "private":
                self.server.private.add(name)
            return self.answer(409 if there else 200, {"url": f"{self.server.url}/{name}"})
        if self.path == "/api/validate-yaml":  # the model card's first lines
            return self.answer(200, {"errors": [], "warnings": []})
        name, what = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main.*", self.path).groups()
        if what == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self.answer(200, {"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.server.url}/{name}/commit/{COMMIT}"
        return self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main|/tree/[^/]+)?(\?.*)?", self.path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        name = (api or file)[1] if api or file else None
        files = self.server.repositories.get(name)
        if files is None:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if file:
            return self.answer(200, files[file[2]])
        if (api[2] or "").startswith("/tree"):
            return self.answer(200, [{"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                                     for path, content in files.items()])  # fmt: skip
        return self.answer(200, {"id": name, "sha": COMMIT, "private": name in self.server.private,
                                 "siblings": [{"rfilename": path} for path in files]})  # fmt: skip

    def answer(self, status: int, content, headers: dict | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kept = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        for name, value in {**kept, "Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def small_hub() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.private, server.created = {}, set(), []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def connected(place: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """This process logged in at a small Hub, its cache in `place`."""
    from huggingface_hub import constants

    with small_hub() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, value in {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "NO_PROXY": "*"}.items():
            patch.setenv(name, value)
        yield server
