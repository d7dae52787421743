"""The HTTP client: replies of every framing, connections that break, kept ones, and those of a closed loop."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

import pytest

from tpo_modules.lms.http_client import (
    BrokenReplyError,
    NoReplyError,
    NotConnectedError,
    Reply,
    _sessions,  # pyright: ignore[reportPrivateUsage]
    apost,
    close_client,
    close_session,
    post,
)

pytestmark = pytest.mark.server

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
REPLIES = {
    "length": HELLO,
    "chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;note=1\r\nllo\r\n0\r\n\r\n",
    "trailers": OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n",
    "continued": b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO,
    "closing": OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello",
    "old": b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    "endless": OK + b"\r\nhello",
}
BROKEN = {
    "nothing": b"",
    "half a head": OK + b"content-le",
    "half a body": OK + b"content-length: 9\r\n\r\nhello",
    "half a chunk": OK + b"transfer-encoding: chunked\r\n\r\n9\r\nhello",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "no status": b"HTTP/1.1 abc\r\n\r\n",
    "no length": OK + b"content-length: many\r\n\r\n",
    "no size of a chunk": OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
    "no gzip": OK + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello",
}

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
both = pytest.mark.parametrize("how", ["sync", "async"])


async def ask(url: str, how: str = "async", body: bytes = b"{}", timeout: float = 5.0) -> Reply:
    """Ask in this loop, or in another thread."""
    if how == "async":
        return await apost(url, body, headers={"x-a": "1"}, timeout=timeout)
    try:
        return await asyncio.to_thread(post, url, body, headers={"x-a": "1"}, timeout=timeout)
    finally:
        close_client()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncGenerator[str]:
    tasks: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(cast("asyncio.Task[None]", asyncio.current_task()))
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        await close_session()
        server.close()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        await asyncio.sleep(0)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: bytes) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    await reader.readexactly(int(length.partition(b":")[2]))
    for piece in (reply[: len(reply) // 2], reply[len(reply) // 2 :]):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)


def always(reply: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, reply)

    return handler


@both
@pytest.mark.parametrize("name", REPLIES)
async def test_a_reply_of_any_framing_is_read(name: str, how: str) -> None:
    async with serving(always(REPLIES[name])) as url:
        reply = await ask(url, how)
    assert (reply.status, reply.content) == (200, b"hello")


@both
@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_reply_has_its_error(name: str, how: str) -> None:
    async with serving(always(BROKEN[name])) as url:
        with pytest.raises(BrokenReplyError, match=r"."):
            await ask(url, how)


@both
async def test_silence_and_no_server_have_their_errors(how: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as url:
        with pytest.raises(NoReplyError, match=r"within 0.1 s"):
            await ask(url, how, timeout=0.1)
    with pytest.raises(NotConnectedError):
        await ask(url, how)


@both
async def test_a_large_body_and_the_headers_arrive(how: str) -> None:
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        seen.append(await reader.readexactly(3_000_000))
        writer.write(HELLO)
        await writer.drain()

    async with serving(handler) as url:
        assert (await ask(url, how, body=b"x" * 3_000_000)).content == b"hello"
    assert b"\r\nx-a: 1\r\n" in seen[0]
    assert b"content-length: 3000000\r\n" in seen[0].lower()
    assert set(seen[1]) == {ord("x")}


@both
async def test_a_redirect_is_not_followed(how: str) -> None:
    moved = b"HTTP/1.1 307 Moved\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
    async with serving(always(moved)) as url:
        reply = await ask(url, how)
    assert (reply.status, reply.headers["Location"]) == (307, "/elsewhere")


async def test_connections_are_kept() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(3):
            await answer(reader, writer, HELLO)

    async with serving(handler) as url:
        for _ in range(3):
            await ask(url)
    assert connections == 1


async def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answer(reader, writer, HELLO)
        await answer(reader, writer, b"")  # the second request is read, and never answered

    async with serving(handler) as url:
        assert (await ask(url)).content == b"hello"
        assert (await ask(url)).content == b"hello"
    assert connections == 2


async def test_a_farewell_on_a_kept_connection_is_no_reply() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, HELLO)
        writer.write(b"HTTP/1.1 408 Too late\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    async with serving(handler) as url:
        assert (await ask(url)).status == 200
        await asyncio.sleep(0.1)
        assert (await ask(url)).status == 200


class Slow(socketserver.StreamRequestHandler):
    """Serves a connection until it is closed."""

    def handle(self) -> None:
        while self.rfile.readline():
            while self.rfile.readline().strip():
                pass
            self.rfile.read(2)
            self.wfile.write(HELLO)


@contextmanager
def threads_serving() -> Generator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


def test_a_loop_closes_its_connections_when_it_shuts_down() -> None:
    with threads_serving() as url:  # whose end waits for its connections to be closed
        for _ in range(2):
            assert asyncio.run(ask(url)).content == b"hello"
            assert len(_sessions) == 0


def test_a_loop_that_was_closed_without_a_shutdown_is_forgotten() -> None:
    with threads_serving() as url:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask(url))
        (kept,) = _sessions.values()
        loop.run_until_complete(kept.session.close())  # else it would complain of being left open
        loop.close()
        assert asyncio.run(ask(url)).content == b"hello"
        assert len(_sessions) == 0
