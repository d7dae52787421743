"""Posting JSON to a server: concurrent, bounded, and retried where that can help."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from tpo_modules.errors import ConfigurationError, RewardError, ScorerError

T = TypeVar("T")
_log = logging.getLogger(__name__)
_WORTH_RETRYING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REMEDIES = {
    401: "Give the server's token as token=.",
    403: "The server knows the token, but does not allow this.",
    404: "Is the address right, and does this server have this endpoint and model (api=, model=)?",
    405: "Is this the right endpoint (api=)?",
    413: "The request is too large: give a smaller batch_size=, or raise the server's limit.",
}


class RequestRefusedError(ScorerError):
    """The server refuses this request for what it is, so that sending it again cannot help.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _FailedAttemptError(Exception):
    """One attempt failed in a way that may pass."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how long to try again.

    Retried: connection errors, timeouts, and the statuses 408, 425, 429 and 5xx (``Retry-After`` is
    kept to). Never retried: other statuses, and answers that cannot be read.

    Attributes:
        limit: Retries after the first attempt; 0 for none.
        first_wait: Seconds before the first retry; doubled for each further one, with up to a
            quarter taken off at random so that many clients do not return at once.
        longest_wait: The longest of these waits, in seconds.
        give_up_after: Seconds after the first attempt beyond which no retry begins, also where
            ``Retry-After`` asks for a longer wait.
    """

    limit: int = 8
    first_wait: float = 0.5
    longest_wait: float = 20.0
    give_up_after: float = 300.0

    def __post_init__(self) -> None:
        if self.limit < 0 or self.first_wait < 0 or self.longest_wait < 0 or self.give_up_after < 0:
            raise ConfigurationError(f"Expected no negative number in {self}.")

    def wait(self, attempt: int) -> float:
        """Give the seconds to wait after the given attempt (counted from 1)."""
        longest = min(self.first_wait * 2.0 ** min(attempt - 1, 30), self.longest_wait)
        return longest * random.uniform(0.75, 1.0)


@dataclass(slots=True)
class _Running:
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    client: httpx.AsyncClient
    slots: asyncio.Semaphore


class JSONPoster:
    """Posts JSON to one URL and returns the JSON that comes back.

    The requests run on an event loop in a thread of their own, started at the first one. So `run`
    also works inside a running event loop (Jupyter), one connection pool serves every thread and
    every loop, and the limit on concurrent requests holds for all of them together.

    Args:
        url: Where to post.
        headers: Sent with each request.
        timeout: Seconds for one attempt: sending, waiting, and reading the answer.
        retry: When to try again.
        max_concurrency: The most requests under way at once.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: float,
        retry: Retry,
        max_concurrency: int,
    ) -> None:
        self.url = url
        self._headers = dict(headers)
        self._timeout = timeout
        self._retry = retry
        self._max_concurrency = max_concurrency
        self._warned = -math.inf
        self._start_lock = threading.Lock()
        self._running: _Running | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> JSONPoster:
        return self  # one connection pool and one limit, however often a program is copied

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_start_lock", "_running")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _start_lock=threading.Lock(), _running=None)

    def hurried(self, limit: int) -> JSONPoster:
        """Make a poster of the same requests that retries less, on connections of its own."""
        other = copy.copy(self)
        other._retry = replace(self._retry, limit=min(limit, self._retry.limit))
        return other

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine that calls `post`, on this poster's own event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._started().loop)

    def close(self) -> None:
        """Close the connections and end the thread; a later request starts both again."""
        with self._start_lock:
            running, self._running = self._running, None
        if running is not None:
            _stop(running)

    async def post(self, body: Mapping[str, Any]) -> object:
        """Post one body, again where that can help, and return the answer's JSON.

        Raises:
            RequestRefusedError: The server refuses this request.
            ScorerError: The server could not be reached, or kept failing.
            RewardError: The answer cannot be read as JSON.
        """
        content = json.dumps(body).encode()
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(content)
            except _FailedAttemptError as failure:
                wait = self._retry.wait(attempt) if failure.wait is None else failure.wait
                elapsed = time.monotonic() - started
                if attempt > self._retry.limit or elapsed + wait > self._retry.give_up_after:
                    raise ScorerError(self._given_up(attempt, elapsed, failure)) from failure
                self._warn(failure, attempt, wait)
            await asyncio.sleep(wait)

    def _warn(self, failure: _FailedAttemptError, attempt: int, wait: float) -> None:
        """Log a failed attempt, but not each of many requests that fail together."""
        now = time.monotonic()
        level = logging.WARNING if now - self._warned > 1.0 else logging.DEBUG
        if level == logging.WARNING:
            self._warned = now
        _log.log(level, "%s: %s; attempt %d in %.1f s", self.url, failure, attempt + 1, wait)

    def _given_up(self, attempts: int, elapsed: float, failure: _FailedAttemptError) -> str:
        asked = "" if failure.wait is None else f" (it asks to wait {failure.wait:.0f} s)"
        return (
            f"{self.url} gave no scores after {attempts} attempt(s) in {elapsed:.1f} s: "
            f"{failure}{asked}. Is the server up, and is timeout= long enough for one batch? See "
            "retry= to try for longer."
        )

    async def _attempt(self, content: bytes) -> object:
        running = self._started()
        async with running.slots:
            try:
                answer = await asyncio.wait_for(
                    running.client.post(self.url, content=content), self._timeout
                )
            except (asyncio.TimeoutError, httpx.TimeoutException) as error:
                raise _FailedAttemptError(f"no answer within {self._timeout:g} s") from error
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                raise _FailedAttemptError(f"connection failed ({reason})") from error
            except httpx.DecodingError as error:
                raise RewardError(
                    f"{self.url} gave an answer that is not packed as its content-encoding says "
                    f"({error}). Does a proxy before the server change it?"
                ) from error
        return self._read(answer)

    def _read(self, answer: httpx.Response) -> object:
        status = answer.status_code
        if status in _WORTH_RETRYING:
            raise _FailedAttemptError(f"HTTP {status}: {_message(answer)}", _retry_after(answer))
        if not answer.is_success:
            remedy = _REMEDIES.get(status, "")
            message = f"{self.url} answered HTTP {status}: {_message(answer)}. {remedy}".rstrip()
            raise RequestRefusedError(message, status)
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError) as error:
            kind = answer.headers.get("content-type", "no content type")
            raise RewardError(
                f"{self.url} answered something that is not JSON ({kind}): {answer.text[:200]!r}. "
                "Is the address that of the scoring server itself?"
            ) from error

    def _started(self) -> _Running:
        with self._start_lock:
            if self._running is None or not self._running.thread.is_alive():
                self._running = _start(self._headers, self._timeout, self._max_concurrency)
                weakref.finalize(self, _stop, self._running)
            return self._running


def _start(headers: Mapping[str, str], timeout: float, max_concurrency: int) -> _Running:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_run_loop, args=(loop,), name="tpo-scorer-http", daemon=True)
    client = httpx.AsyncClient(
        headers={"content-type": "application/json", **headers},
        timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
        limits=httpx.Limits(max_connections=max_concurrency),
    )
    thread.start()
    return _Running(loop, thread, client, asyncio.Semaphore(max_concurrency))


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(running: _Running) -> None:
    if not running.thread.is_alive() or running.loop.is_closed():
        return
    running.loop.call_soon_threadsafe(_begin_winding_up, running)
    if threading.current_thread() is not running.thread:  # a finalizer can run in any thread
        running.thread.join(5.0)


def _begin_winding_up(running: _Running) -> None:
    ending = running.loop.create_task(_wind_up(running.client))
    ending.add_done_callback(lambda _: running.loop.stop())


async def _wind_up(client: httpx.AsyncClient) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await client.aclose()


def _message(answer: httpx.Response) -> str:
    """Find the server's own words in the usual places of an error answer."""
    try:
        found: Any = json.loads(answer.content)
    except (ValueError, RecursionError):
        found = answer.text
    while isinstance(found, dict):
        found = next((found[k] for k in ("error", "message", "detail") if k in found), str(found))
    text = str(found).strip().rstrip(".") or answer.reason_phrase
    location = answer.headers.get("location")
    return text[:500] + (f" (redirects to {location})" if location else "")


def _retry_after(answer: httpx.Response) -> float | None:
    """Read ``Retry-After``: seconds, or a date."""
    given = answer.headers.get("retry-after")
    if given is None:
        return None
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        due = parsedate_to_datetime(given)
    except ValueError:
        return None
    due = due if due.tzinfo else due.replace(tzinfo=timezone.utc)
    return max(0.0, (due - datetime.now(timezone.utc)).total_seconds())
