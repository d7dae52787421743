"""POST a body and read the whole reply: one `httpx` client for threads, one `aiohttp` session per event loop.

Connections are kept and reused. A session is closed when its event loop shuts down, as ``asyncio.run`` does at its
end.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import io
import os
import ssl
import weakref
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp
import httpx

CONNECT_TIMEOUT = 15.0
"""Seconds within which a connection must be made."""

_KEPT = 30.0  # a connection unused for longer may have been dropped on the way without a sign
_LARGE = 2**20  # of bytes of more than that aiohttp would warn; it sends a file of them in pieces


class NotConnectedError(ConnectionError):
    """No connection could be made, so nothing was sent."""


class BrokenReplyError(ConnectionError):
    """The connection broke before the reply was complete, or what came is no HTTP."""


class NoReplyError(TimeoutError):
    """The reply did not come in time."""


class _StaleError(BrokenReplyError):
    """A kept connection was closed by the other side before a reply began."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, complete.

    Attributes:
        status: The status code.
        headers: Header values, by name in any case.
        content: The body.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes


def post(url: str, body: bytes, *, headers: Mapping[str, str], timeout: float) -> Reply:
    """Send a request from this thread and wait for its reply, through the environment's proxy if it names one.

    Args:
        url: Where to.
        body: What to send.
        headers: Headers of the request.
        timeout: Seconds to wait for the reply, once connected.

    Raises:
        NotConnectedError: There is no connection to be had.
        BrokenReplyError: The connection broke, or the reply is no HTTP.
        NoReplyError: The timeout passed.
    """
    limits = httpx.Timeout(timeout, connect=CONNECT_TIMEOUT)
    try:
        reply = _client().post(url, content=body, headers=dict(headers), timeout=limits)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise NotConnectedError(_said(error)) from error
    except httpx.TimeoutException as error:
        raise NoReplyError(f"no reply within {timeout:g} s") from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise BrokenReplyError(_said(error)) from error
    return Reply(reply.status_code, reply.headers, reply.content)


async def apost(
    url: str, body: bytes, *, headers: Mapping[str, str], timeout: float, proxy: str | None = None
) -> Reply:
    """Do what `post` does in the running event loop.

    A kept connection that turns out to be closed is replaced once.

    Args:
        url: Where to.
        body: What to send.
        headers: Headers of the request.
        timeout: Seconds to wait for the reply, once connected.
        proxy: Address of the HTTP proxy to go through. It is the caller's to look up: aiohttp would do that in two
            threads for each request, and send what a ``.netrc`` file holds.

    Raises:
        NotConnectedError: There is no connection to be had.
        BrokenReplyError: The connection broke, or the reply is no HTTP.
        NoReplyError: The timeout passed.
    """
    try:
        return await _send(url, body, headers, timeout, proxy)
    except _StaleError:
        return await _send(url, body, headers, timeout, proxy)


def close_client() -> None:
    """Close the connections of `post`; a later call opens new ones."""
    if _client.cache_info().currsize:
        _client().close()
        _client.cache_clear()


async def close_session() -> None:
    """Close the connections of `apost` in the running event loop; a later call opens new ones."""
    kept = _sessions.get(asyncio.get_running_loop())
    if kept is not None:
        await kept.closer.aclose()


@dataclass(slots=True)
class _Progress:
    """How far a request has come: on a kept connection, to the head of its reply."""

    reused: bool = False
    answered: bool = False


async def _send(
    url: str, body: bytes, headers: Mapping[str, str], timeout: float, proxy: str | None
) -> Reply:
    session = await _session()
    progress = _Progress()
    try:
        async with session.post(
            url,
            data=body if len(body) <= _LARGE else io.BytesIO(body),
            headers=headers,
            timeout=aiohttp.ClientTimeout(
                total=CONNECT_TIMEOUT + timeout, connect=CONNECT_TIMEOUT, sock_read=timeout
            ),
            proxy=proxy,
            ssl=_tls() if url.startswith("https:") else True,
            allow_redirects=False,
            trace_request_ctx=progress,
        ) as reply:
            progress.answered = True
            return Reply(reply.status, reply.headers, await reply.read())
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise NotConnectedError(_said(error)) from error
    except asyncio.TimeoutError as error:
        raise NoReplyError(f"no reply within {timeout:g} s") from error
    except (aiohttp.ServerDisconnectedError, OSError) as error:
        stale = progress.reused and not progress.answered
        raise (_StaleError if stale else BrokenReplyError)(_said(error)) from error
    except aiohttp.ClientError as error:
        raise BrokenReplyError(_said(error)) from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class _Kept:
    """A session, and the generator that closes it."""

    session: aiohttp.ClientSession
    closer: AsyncGenerator[aiohttp.ClientSession, None]


_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Kept] = weakref.WeakKeyDictionary()


async def _session() -> aiohttp.ClientSession:
    loop = asyncio.get_running_loop()
    kept = _sessions.get(loop)
    if kept is None:
        for other in [other for other in _sessions if other.is_closed()]:
            del _sessions[other]
        closer = _session_until_shutdown(loop)
        kept = _sessions[loop] = _Kept(await anext(closer), closer)
    return kept.session


async def _session_until_shutdown(
    loop: asyncio.AbstractEventLoop,
) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """Open a session, and close it when the loop closes its asynchronous generators, the last thing it does."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[_tracing()],
    ) as session:
        try:
            yield session
        finally:
            _sessions.pop(loop, None)
    await asyncio.sleep(0)  # transports close their sockets in the next turn of the loop


def _tracing() -> aiohttp.TraceConfig:
    """Let a request's `_Progress` know of a kept connection; aiohttp says so in no other way."""

    async def note(
        session: aiohttp.ClientSession, context: SimpleNamespace, params: object
    ) -> None:
        context.trace_request_ctx.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(note)
    return config


@functools.lru_cache(maxsize=1)
def _client() -> httpx.Client:
    client = httpx.Client(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))
    atexit.register(client.close)
    return client


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Trust the same authorities as `post` does."""
    return httpx.create_ssl_context()


if hasattr(os, "register_at_fork"):  # a child must not write into its parent's connections
    os.register_at_fork(after_in_child=_client.cache_clear)
