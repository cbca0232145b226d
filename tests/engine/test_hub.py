"""Fetching published files, from a Hub that stands on this machine."""

import hashlib
import http.server
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from support import ROOT, environment

from engine.hub import C2I, PUBLISHED, T2I, repository

CONTENT = b"weights " * 5000
HELD = "c2i_B_256.pt"  # the one file that this Hub has


class Hub(http.server.BaseHTTPRequestHandler):
    """/{repository}/resolve/main/{file} as huggingface_hub asks for it; notes who asked."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        self.server.asked.append((self.command, self.path))
        there = self.path == f"/{PUBLISHED[HELD]}/resolve/main/{HELD}"
        self.send_response(200 if there else 404)
        if not there:
            self.send_header("X-Error-Code", "EntryNotFound")
        content = CONTENT if there else b""
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) - self.server.cut])

    def log_message(self, *args):
        pass


@contextmanager
def hub(cut: int = 0):
    """A server that sends files without their last `cut` bytes."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.cut = [], cut
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def fetch(endpoint: str, folder, *arguments: str, offline: bool = False) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/download.py", *arguments, "--folder", str(folder / "pretrained")]
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    settings = {**environment(), **settings, "HF_HUB_OFFLINE": str(int(offline))}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=settings, timeout=120)


def test_a_file_is_fetched_by_name_and_not_twice(tmp_path):
    with hub() as server:
        for _ in range(2):
            done = fetch(f"http://127.0.0.1:{server.server_port}", tmp_path, HELD)
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "pretrained" / HELD).read_bytes() == CONTENT
        assert server.asked.count(("GET", f"/{C2I}/resolve/main/{HELD}")) == 1
    assert str(tmp_path / "pretrained" / HELD) in done.stdout


def test_a_cut_download_leaves_no_file(tmp_path):
    with hub(cut=100) as server:
        done = fetch(f"http://127.0.0.1:{server.server_port}", tmp_path, HELD)
    assert done.returncode != 0
    assert not (tmp_path / "pretrained" / HELD).exists()


def test_a_file_that_the_hub_has_no_more_is_named(tmp_path):
    with hub() as server:
        done = fetch(f"http://127.0.0.1:{server.server_port}", tmp_path, "vq_ds8_c2i.pt")
    assert done.returncode == 2 and f"{C2I} has no such file" in done.stderr


def test_without_a_network_the_page_is_named(tmp_path):
    done = fetch("http://127.0.0.1:9", tmp_path, HELD, offline=True)
    assert done.returncode == 2
    assert f"by hand from http://127.0.0.1:9/{C2I}/resolve/main/{HELD} (" in done.stderr
    assert f"put it at {tmp_path / 'pretrained' / HELD}" in done.stderr


def test_a_wrong_name_is_said_before_anything_is_fetched(tmp_path):
    with hub() as server:
        done = fetch(f"http://127.0.0.1:{server.server_port}", tmp_path, HELD, "vq_ds16_c2i")
        assert not server.asked
    assert done.returncode == 2 and "did you mean vq_ds16_c2i.pt" in done.stderr


def test_every_published_file_has_its_repository():
    assert repository("c2i_3B_384.pt") == C2I and repository("t2i_XL_stage2_512.pt") == T2I
    with pytest.raises(ValueError, match="choose from vq_ds16_c2i.pt"):
        repository("zzz")
