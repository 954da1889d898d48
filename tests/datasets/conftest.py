"""A cache of its own for every test, and a server that misbehaves on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> SimpleNamespace:
    """Where datasets are looked for and kept: under the test's own folder."""
    found = SimpleNamespace(cache=tmp_path / "cache", minari=tmp_path / "minari", d4rl=tmp_path / "d4rl")
    for name, folder in {
        "RLBOOK_DATA": found.cache,
        "MINARI_DATASETS_PATH": found.minari,
        "D4RL_DATASET_DIR": found.d4rl,
    }.items():
        monkeypatch.setenv(name, str(folder))
    return found


class Server:
    """What is served, what was asked for, and what goes wrong."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True  # whether it can continue a download
        self.cuts: list[int] = []  # after how many bytes the connection breaks: one entry per request
        self.statuses: list[int] = []  # errors to answer with: one entry per request
        self.asked: list[str | None] = []  # the Range of every request
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.headers.get("Range"))
        body = self.files.get(request.path)
        status = self.statuses.pop(0) if self.statuses else 200
        if body is None or status != 200:
            request.send_error(404 if body is None else status)
            return
        start = int(self.asked[-1].removeprefix("bytes=").rstrip("-")) if self.ranges and self.asked[-1] else 0
        if start >= len(body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(body)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        request.wfile.write(body[start : start + self.cuts.pop(0)] if self.cuts else body[start:])


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on this machine."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()
