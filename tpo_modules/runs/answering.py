"""`Answering`: queries under way in an event loop, each tried again while what it failed at can pass."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import dspy

from tpo_modules.errors import InputError, LMCallError, NoCandidateError, ScorerError, TPOError
from tpo_modules.gate import RequestGate, gated
from tpo_modules.policy import PolicyModule
from tpo_modules.run import Event, is_blank, observe
from tpo_modules.runs.queries import QueryRow
from tpo_modules.trace import TPOTrace

TRANSIENT = frozenset(
    {"LMRateLimitError", "LMTimeoutError", "LMServerError", "LMTransportError", "ScorerError"}
)
"""Errors that can pass: the query waits and goes on where it was."""

_OF_A_SAMPLE = frozenset({"EmptyResponse", "NonFiniteReward"})

# Of this project's errors; the others would meet every query, and end the run.
_OF_A_QUERY = (InputError, NoCandidateError, ScorerError)

_LONGEST_PAUSE = 60.0


class Desk(Protocol):
    """Takes down what becomes of queries, and decides whether they go on."""

    def record(self, identity: str, event: Event) -> None:
        """Take down a record of a query under way."""
        ...

    def finish(self, row: QueryRow, prediction: dspy.Prediction) -> None:
        """Take down a query's result."""
        ...

    def fail(self, row: QueryRow, error: Exception, kind: str) -> None:
        """Take down that a query gave nothing, or was given up for now."""
        ...

    def may_wait(self, identity: str, error: Exception, kind: str, waited: float) -> bool:
        """Decide whether a query waits for an error to pass, after so many seconds of waiting."""
        ...

    def halt(self) -> str | None:
        """Say why no step may be begun any more, or None."""
        ...


class Answering:
    """Queries under way.

    Args:
        module: What answers them.
        gate: The slots for their requests.
        desk: Takes down what becomes of them. An error that it raises ends all of it.

    Attributes:
        tasks: One for each query under way.
        broken: Set to the error that no query can go on with.
    """

    def __init__(self, module: PolicyModule, gate: RequestGate, desk: Desk) -> None:
        self.module = module
        self.gate = gate
        self.tasks: set[asyncio.Task[None]] = set()
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._desk = desk

    def start(self, order: int, row: QueryRow, earlier: TPOTrace | None) -> None:
        """Begin to answer a query.

        Args:
            order: Its place in the run.
            row: The query.
            earlier: What is recorded of it already.
        """
        task = asyncio.create_task(self._answer(order, row, earlier))
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    async def wind_up(self, grace: float) -> None:
        """Begin no request any more, give those in flight a few seconds, then drop them."""
        self.gate.closed = True
        deadline = time.monotonic() + grace
        while self.tasks and self.gate.in_flight and time.monotonic() < deadline:
            await asyncio.wait(self.tasks, timeout=0.1)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self.broken.done():
            self.broken.set_exception(error)

    async def _answer(self, order: int, row: QueryRow, earlier: TPOTrace | None) -> None:
        waited, tries = 0.0, 0
        watch = _Watch(partial(self._desk.record, row.id))
        with gated(self.gate, order, self._desk.halt), observe(watch):
            while True:
                try:
                    done = await self._attempt(row, earlier)
                except Exception as error:
                    if isinstance(error, TPOError) and not isinstance(error, _OF_A_QUERY):
                        raise
                    kind, failure = kind_of(error), error
                    if watch.trace is not None:  # samples that were drawn are not drawn again
                        earlier = _without_failures(watch.trace)
                else:
                    kind = _cut_short_by(done.trace)
                    if watch.error is None and (kind is None or self._desk.halt()):
                        self._desk.finish(row, done)
                        return
                    earlier = _without_failures(done.trace)
                    failure = LMCallError(_why_cut_short(done.trace))
                if watch.error is not None:
                    raise watch.error  # the loop took it for a failure of its own
                kind = str(kind)
                if kind not in TRANSIENT or not self._desk.may_wait(row.id, failure, kind, waited):
                    self._desk.fail(row, failure, kind)
                    return
                waited, tries = waited + await self._pause(tries), tries + 1

    async def _attempt(self, row: QueryRow, earlier: TPOTrace | None) -> dspy.Prediction:
        if earlier is None or not earlier.calls:
            return await self.module.acall(**row.inputs)
        return await self.module.aresume(earlier, inputs=row.inputs)

    async def _pause(self, tries: int) -> float:
        """Wait for longer with each try, but no longer than the run goes on; return the seconds."""
        pause = min(_LONGEST_PAUSE, 2.0**tries) * random.uniform(0.5, 1.0)
        left = pause
        while left > 0 and not self._desk.halt():
            await asyncio.sleep(min(1.0, left))
            left -= 1.0
        return pause


class _Watch:
    """An observer that remembers the latest trace that it was shown, and the error which it raised."""

    def __init__(self, observer: Callable[[Event], None]) -> None:
        self.error: Exception | None = None
        self.trace: TPOTrace | None = None
        self._observer = observer

    def __call__(self, event: Event) -> None:
        self.trace = event.trace
        try:
            self._observer(event)
        except Exception as error:
            self.error = error
            raise


def kind_of(error: Exception) -> str:
    """Name the error that a query failed with: of the samples' errors, where it is their sum."""
    kinds = error.kinds if isinstance(error, NoCandidateError) else ()
    return _gravest(kinds) or type(error).__name__


def _gravest(kinds: Iterable[str]) -> str | None:
    """Pick the error that decides: one that stays, else one that passes, else a sample that says nothing."""
    return min(
        kinds, key=lambda kind: 2 if kind in _OF_A_SAMPLE else kind in TRANSIENT, default=None
    )


def _cut_short_by(trace: TPOTrace) -> str | None:
    """Name the passing error that ended a run before its depth, or None."""
    if trace.status != "failed" or not trace.failures:
        return None
    last = trace.failures[-1]
    together = [f for f in trace.failures if f.step == last.step and f.index is not None]
    kind = last.type if last.index is None else _gravest(failure.type for failure in together)
    return kind if kind in TRANSIENT else None


def _why_cut_short(trace: TPOTrace) -> str:
    said = [failure.message for failure in trace.failures[-1:]]
    return ": ".join([str(trace.stop_reason), *said])


def _without_failures(trace: TPOTrace) -> TPOTrace:
    """Cut a trace before the call or the scoring that failed, so that resuming makes it again.

    A round that lost samples, and the rest of which has no rewards, is drawn again.
    """
    unscored = {scoring.step for scoring in trace.scorings if is_blank(scoring)}
    good = [
        call
        for call in trace.calls
        if not is_blank(call) and not (call.failures and call.step in unscored)
    ]
    scored = [scoring for scoring in trace.scorings if not is_blank(scoring)]
    return trace.model_copy(update={"calls": good, "scorings": scored})
