"""Driving a loop that is written once: a generator of effects, run by threads or by an event loop.

A loop yields effects and gets their results sent back. An effect that raises has its error thrown into the loop at
the ``yield``, so the loop handles failures where they happen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import dspy
from dspy.streaming.messages import StatusMessage, sync_send_to_stream

from tpo_modules.scorers.base import AsyncScorer, Scorer
from tpo_modules.scorers.function import scoring_executor

T = TypeVar("T")


class Effect(Protocol):
    """Something slow that a loop waits for."""

    def run(self) -> Any:
        """Do it in this thread."""
        ...

    async def arun(self) -> Any:
        """Do it in the running event loop, without blocking it."""
        ...


Work = Generator[Effect, Any, T]
"""A loop that yields effects, receives their results, and returns a ``T``."""


@dataclass(frozen=True, slots=True)
class Score:
    """Reward responses to a query: the scorer's effect."""

    scorer: Scorer
    query: str
    responses: Sequence[str]

    def run(self) -> list[float]:
        """Score in this thread."""
        with dspy.context(trace=None, send_stream=None):
            return self.scorer.score(self.query, self.responses)

    async def arun(self) -> list[float]:
        """Score by the scorer's own ``ascore``, or in the threads kept for blocking scorers."""
        with dspy.context(trace=None, send_stream=None):
            if isinstance(self.scorer, AsyncScorer):
                return await self.scorer.ascore(self.query, self.responses)
            job = partial(self.scorer.score, self.query, self.responses)
            return await asyncio.get_running_loop().run_in_executor(
                scoring_executor(), copy_context().run, job
            )


@dataclass(frozen=True, slots=True)
class Announce:
    """Send a line of progress to whoever streams this program (``dspy.streamify``)."""

    message: str

    def run(self) -> None:
        """Send it from a thread."""
        if stream := dspy.settings.send_stream:
            sync_send_to_stream(stream, StatusMessage(self.message))

    async def arun(self) -> None:
        """Send it from an event loop."""
        if stream := dspy.settings.send_stream:
            await stream.send(StatusMessage(self.message))


def _throwable(error: Exception) -> Exception:
    """Wrap what a generator would take for its own end: a scorer may raise ``StopIteration`` by mistake."""
    if not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"StopIteration: {error}")
    wrapped.__cause__ = error
    return wrapped


def drive(work: Work[T]) -> T:
    """Run a loop to its end, blocking."""
    try:
        effect = next(work)
        while True:
            try:
                result = effect.run()
            except Exception as error:  # noqa: BLE001  the loop decides what an error means
                effect = work.throw(_throwable(error))
            else:
                effect = work.send(result)
    except StopIteration as end:
        return end.value


async def adrive(work: Work[T]) -> T:
    """Run a loop to its end in the running event loop."""
    try:
        effect = next(work)
        while True:
            try:
                result = await effect.arun()
            except Exception as error:  # noqa: BLE001  the loop decides what an error means
                effect = work.throw(_throwable(error))
            else:
                effect = work.send(result)
    except StopIteration as end:
        return end.value
