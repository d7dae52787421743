"""A small HTTP/1.1 client for one event loop: POST a body, get the whole reply, keep the connection.

An LM call needs no more than that, and a general client costs several times what DSPy does (its pool looks at
every open connection for every request). Connections are kept by address and reused last in, first out; they are
closed when their event loop shuts down, as ``asyncio.run`` does at its end.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import cast

import httpx

from tpo_modules.http1_reply import BrokenReplyError, Reply, ReplyReader

CONNECT_TIMEOUT = 15.0
"""Seconds within which a connection must be made."""

_IDLE = 30.0  # a connection unused for longer may have been dropped on the way without a sign


class NotConnectedError(ConnectionError):
    """No connection could be made, so nothing was sent."""


class NoReplyError(TimeoutError):
    """The reply did not come in time."""


class _StaleError(BrokenReplyError):
    """A kept connection was closed by the other side before a byte of the reply came."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect to."""

    host: str
    port: int
    tls: bool


async def post(origin: Origin, payload: bytes, timeout: float) -> Reply:
    """Send a request and wait for its reply, in the running event loop.

    Args:
        origin: Where to connect to.
        payload: Head and body of the request, with a ``content-length``.
        timeout: Seconds until the reply must be complete, once connected.

    Raises:
        NotConnectedError: There is no connection to be had.
        BrokenReplyError: The connection broke, or the reply is no HTTP.
        NoReplyError: The timeout passed.
    """
    pool = await _pool()
    kept = pool.take(origin)
    if kept is not None:
        try:
            return await pool.ask(kept, payload, timeout)
        except _StaleError:
            pass
    return await pool.ask(await pool.connect(origin), payload, timeout)


async def close_connections() -> None:
    """Close the connections of the running event loop; a later `post` opens new ones."""
    pool = _pools.pop(asyncio.get_running_loop(), None)
    if pool is not None:
        await pool.close()


class _Pool:
    """The connections of one event loop."""

    def __init__(self) -> None:
        self.closer: AsyncGenerator[None, None] | None = None
        self._idle: dict[Origin, list[_Connection]] = {}
        self._open: set[_Connection] = set()

    def take(self, origin: Origin) -> _Connection | None:
        """Return the kept connection that was used last, if one still stands."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.closed:
                continue
            if time.monotonic() - connection.idle_since < _IDLE:
                return connection
            connection.abort()
        return None

    async def connect(self, origin: Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            connecting = loop.create_connection(
                lambda: _Connection(origin, self._open.discard),
                origin.host,
                origin.port,
                ssl=_tls() if origin.tls else None,
            )
            _, connection = await asyncio.wait_for(connecting, CONNECT_TIMEOUT)
        except asyncio.TimeoutError:
            raise NotConnectedError(f"no connection within {CONNECT_TIMEOUT:g} s") from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
            raise NotConnectedError(str(error) or type(error).__name__) from error
        self._open.add(connection)
        return connection

    async def ask(self, connection: _Connection, payload: bytes, timeout: float) -> Reply:
        reply = await connection.ask(payload, timeout)
        if connection.reusable:
            connection.idle_since = time.monotonic()
            self._idle.setdefault(connection.origin, []).append(connection)
        return reply

    async def close(self) -> None:
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # transports close their sockets in the next turn of the loop


class _Connection(asyncio.Protocol):
    """One connection: a request and its reply at a time."""

    def __init__(self, origin: Origin, forget: Callable[[_Connection], None]) -> None:
        self.origin = origin
        self.closed = False
        self.idle_since = 0.0
        self.reusable = False
        self._forget = forget
        self._used = False
        self._waiter: asyncio.Future[Reply] | None = None
        self._reader = ReplyReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.reusable = False
        self._forget(self)
        if self._waiter is None or self._waiter.done():
            return
        reply = self._reader.at_end()
        if reply is not None:
            self._waiter.set_result(reply)
        elif self._used and not self._reader.started:
            self._waiter.set_exception(_StaleError("the server closed the connection"))
        else:
            what = "in the middle of its reply" if self._reader.started else "without a reply"
            why = f": {exc}" if exc else ""
            self._waiter.set_exception(
                BrokenReplyError(f"the server closed the connection {what}{why}")
            )

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.abort()  # nothing was asked
            return
        try:
            reply = self._reader.feed(data)
        except BrokenReplyError as error:
            self._waiter.set_exception(error)
        else:
            if reply is not None:
                self._waiter.set_result(reply)

    async def ask(self, payload: bytes, timeout: float) -> Reply:
        loop = asyncio.get_running_loop()
        self.reusable = False
        self._reader = ReplyReader()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(timeout, self._expire, timeout)
        try:
            self._transport.write(payload)
            reply = await waiter
            self.reusable = self._reader.keep_alive and not self.closed
            self._used = True
            return reply
        finally:
            timer.cancel()
            self._waiter = None
            if not self.reusable:
                self.abort()

    def abort(self) -> None:
        self._transport.abort()

    def _expire(self, timeout: float) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(NoReplyError(f"no complete reply within {timeout:g} s"))


_pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = weakref.WeakKeyDictionary()


async def _pool() -> _Pool:
    loop = asyncio.get_running_loop()
    pool = _pools.get(loop)
    if pool is None:
        for other in [other for other in _pools if other.is_closed()]:
            del _pools[other]
        pool = _pools[loop] = _Pool()
        pool.closer = _close_at_shutdown(loop, pool)
        await anext(pool.closer)
    return pool


async def _close_at_shutdown(
    loop: asyncio.AbstractEventLoop, pool: _Pool
) -> AsyncGenerator[None, None]:
    """Wait for the loop to close its asynchronous generators, the last thing it does, and close the pool then."""
    try:
        yield
    finally:
        if _pools.get(loop) is pool:
            del _pools[loop]
        await pool.close()


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()
