"""Reward servers for tests: real HTTP on loopback, in threads of the test's own process."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Handler = Callable[["Request"], "Answer | Any"]


@dataclass(frozen=True)
class Request:
    path: str
    body: Any
    headers: Mapping[str, str]
    number: int


@dataclass(frozen=True)
class Answer:
    status: int = 200
    json: Any = None
    raw: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass
class Stub:
    url: str
    requests: list[Request]

    @property
    def bodies(self) -> list[Any]:
        return [request.body for request in self.requests]


@contextmanager
def stub_server(handler: Handler) -> Iterator[Stub]:
    """Serve POST requests by a function from the request to JSON, or to an `Answer`."""
    seen: list[Request] = []
    lock = threading.Lock()

    class OneRequest(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                request = Request(self.path, body, dict(self.headers.items()), len(seen))
                seen.append(request)
            answer = handler(request)
            if not isinstance(answer, Answer):
                answer = Answer(json=answer)
            content = json.dumps(answer.json).encode() if answer.raw is None else answer.raw
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a client that timed out has gone

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), OneRequest)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Stub(f"http://127.0.0.1:{server.server_address[1]}", seen)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reward_of(text: str) -> float:
    """A reward that depends on every character, between -5 and 5."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) / 2**32 * 10 - 5
