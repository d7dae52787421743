"""The small HTTP client: replies of every framing, in any number of pieces, and connections that break."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_modules.http1 import NoReplyError, NotConnectedError, Origin, close_connections, post
from tpo_modules.http1_reply import BrokenReplyError, Reply, ReplyReader

OK = b"HTTP/1.1 200 OK\r\n"
REPLIES = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", True),
    "chunked": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;note=1\r\nllo\r\n0\r\n\r\n",
        True,
    ),
    "trailers": (
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\nx-b: 2\r\n\r\n",
        True,
    ),
    "continued": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 5\r\n\r\nhello", True),
    "closing": (OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello", False),
    "old": (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", False),
}

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize("name", REPLIES)
@given(cuts=st.lists(st.integers(0, 120), max_size=6))
def test_a_reply_is_read_from_any_pieces(name: str, cuts: list[int]) -> None:
    raw, keeps = REPLIES[name]
    reader = ReplyReader()
    edges = sorted({0, *(min(cut, len(raw)) for cut in cuts), len(raw)})
    got: list[Reply | None] = [reader.feed(raw[a:b]) for a, b in itertools.pairwise(edges)]
    assert got[:-1] == [None] * (len(got) - 1)
    last = got[-1]
    assert last is not None
    assert (last.status, last.content, reader.keep_alive) == (200, b"hello", keeps)


def test_a_reply_may_end_with_the_connection() -> None:
    reader = ReplyReader()
    assert reader.feed(OK + b"\r\nhel") is None
    assert reader.feed(b"lo") is None
    reply = reader.at_end()
    assert reply is not None
    assert (reply.content, reader.keep_alive) == (b"hello", False)


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"content-length: many\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_what_is_no_http_is_refused(raw: bytes) -> None:
    with pytest.raises(BrokenReplyError, match="expected"):
        ReplyReader().feed(raw)


@pytest.mark.parametrize("half", [OK + b"content-length: 5\r\n\r\nhe", OK + b"content-le"])
def test_half_a_reply_is_none(half: bytes) -> None:
    reader = ReplyReader()
    assert reader.feed(half) is None
    assert reader.at_end() is None


@asynccontextmanager
async def serving(handler: Handler) -> AsyncGenerator[Origin]:
    tasks: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(cast("asyncio.Task[None]", asyncio.current_task()))
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield Origin("127.0.0.1", server.sockets[0].getsockname()[1], tls=False)
    finally:
        await close_connections()
        server.close()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        await asyncio.sleep(0)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: bytes) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(reply)
    await writer.drain()


PAYLOAD = b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.server
async def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answer(reader, writer, REPLIES["length"][0])
        await reader.readuntil(b"\r\n\r\n")  # the second request is read, and never answered

    async with serving(handler) as origin:
        assert (await post(origin, PAYLOAD, 5)).content == b"hello"
        assert (await post(origin, PAYLOAD, 5)).content == b"hello"
    assert connections == 2


@pytest.mark.server
async def test_breaks_and_silence_have_their_errors() -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, b"")

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(closing) as origin:
        with pytest.raises(BrokenReplyError, match="without a reply"):
            await post(origin, PAYLOAD, 5)
    async with serving(silent) as origin:
        with pytest.raises(NoReplyError, match=r"within 0.1 s"):
            await post(origin, PAYLOAD, 0.1)
    with pytest.raises(NotConnectedError):
        await post(origin, PAYLOAD, 5)


@pytest.mark.server
async def test_words_that_nobody_asked_for_end_the_connection() -> None:
    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, REPLIES["length"][0])
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 408 Too late\r\n\r\n")
        await reader.read()

    async with serving(chatty) as origin:
        assert (await post(origin, PAYLOAD, 5)).status == 200
        await asyncio.sleep(0.1)
        assert (await post(origin, PAYLOAD, 5)).status == 200
