"""What runs on the machines of a Ray cluster: `RayWorker` answers queries, `ScorerActor` scores for all of them.

Both are plain classes; `tpo_modules.runs.ray_runner` makes actors of them. A worker keeps no files: what becomes of
its queries waits in its outbox until the driver collects it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from tpo_modules.errors import ScorerError, explain
from tpo_modules.gate import RequestGate
from tpo_modules.run import Event
from tpo_modules.runs.answering import Answering
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.results import QueryResult
from tpo_modules.trace import Call, Failure, Scoring, TPOTrace

_LONGEST_POLL = 0.5  # seconds after which a worker reports although there is nothing new


@dataclass(frozen=True, slots=True)
class Job:
    """A query for a worker.

    Attributes:
        order: Its place in the run.
        row: The query.
        earlier: What is recorded of it already.
    """

    order: int
    row: QueryRow
    earlier: TPOTrace | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """A record of a query under way."""

    identity: str
    record: Call | Scoring | Failure


@dataclass(frozen=True, slots=True)
class Finished:
    """A query's result and trace."""

    result: QueryResult
    trace: TPOTrace


@dataclass(frozen=True, slots=True)
class Failed:
    """A query that gave nothing, and why."""

    row: QueryRow
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A query that waits for an error to pass, and for how many seconds it has waited."""

    identity: str
    kind: str
    message: str
    waited: float


@dataclass(frozen=True, slots=True)
class Broken:
    """An error that no query can go on with."""

    kind: str
    message: str


Note = Recorded | Finished | Failed | Waiting | Broken


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker has to say: notes in the order they were made, and its requests in flight."""

    notes: list[Note]
    in_flight: int


class RayWorker:
    """Answers queries in its event loop, as a run in one process does.

    Args:
        payload: The pickled module, LM and adapter.
        scorers: Handles of `ScorerActor`, or none to score here.
        limit: Requests in flight at most.
        patience: Seconds that a query waits, in all, for an error to pass.
    """

    def __init__(
        self, payload: bytes, scorers: Sequence[Any], *, limit: int, patience: float
    ) -> None:
        self._module, self._lm, self._adapter = pickle.loads(payload)
        if scorers:
            self._module.use_scorer(RemoteScorer(scorers, repr(self._module.scorer)))
        self._gate = RequestGate(limit)
        self._patience = patience
        self._halted: str | None = None
        self._outbox: list[Note] = []
        self._forgotten = 0
        self._answering: Answering | None = None

    async def add(self, jobs: Sequence[Job]) -> None:
        """Begin to answer queries; those begun before go first."""
        if self._answering is None:
            self._news = asyncio.Event()
            self._answering = Answering(self._module, self._gate, self)
            self._answering.broken.add_done_callback(self._break)
        with dspy.context(lm=self._lm, adapter=self._adapter, disable_history=True):
            for job in jobs:
                self._answering.start(job.order, job.row, job.earlier)

    async def collect(self, seen: int, halt: str | None, last_stretch: bool) -> Report:
        """Hand over what is new, as soon as there is something.

        Args:
            seen: How many notes the driver has in all; the others are handed over, until it has them.
            halt: Why no step may be begun any more, or None.
            last_stretch: Whether no fresh queries will follow.
        """
        self._halted = halt
        self._gate.last_stretch = last_stretch
        self._forget(seen)
        if not self._outbox:
            self._news.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), _LONGEST_POLL)
        return Report([*self._outbox], self._gate.in_flight)

    async def wind_up(self, seen: int, grace: float) -> Report:
        """End within so many seconds, and hand over what is recorded."""
        if self._answering is not None:
            await self._answering.wind_up(grace)
        self._forget(seen)
        return Report([*self._outbox], 0)

    def record(self, identity: str, event: Event) -> None:
        """Take down a record of a query under way."""
        if not event.replayed:
            self._say(Recorded(identity, event.record))

    def finish(self, row: QueryRow, prediction: dspy.Prediction) -> None:
        """Take down a query's result."""
        result = QueryResult.of(row.id, prediction, keep_trace=False)
        self._say(Finished(result, prediction.trace))

    def fail(self, row: QueryRow, error: Exception, kind: str) -> None:
        """Take down that a query gave nothing."""
        self._say(Failed(row, kind, explain(error)))

    def may_wait(self, identity: str, error: Exception, kind: str, waited: float) -> bool:
        """Let a query wait for a while; the driver ends the run where that is hopeless."""
        self._say(Waiting(identity, kind, explain(error), waited))
        return waited < self._patience and not self._halted

    def halt(self) -> str | None:
        """Say what the driver said."""
        return self._halted

    def _forget(self, seen: int) -> None:
        del self._outbox[: seen - self._forgotten]
        self._forgotten = seen

    def _say(self, note: Note) -> None:
        self._outbox.append(note)
        self._news.set()

    def _break(self, broken: asyncio.Future[None]) -> None:
        if not broken.cancelled() and (error := broken.exception()):
            self._say(Broken(type(error).__name__, explain(error)))


class ScorerActor:
    """Holds a scorer for all workers, so that a reward model is loaded once for each such actor.

    Args:
        payload: The pickled module whose scorer it is.
    """

    def __init__(self, payload: bytes) -> None:
        self._scorer = pickle.loads(payload)[0].scorer

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Score responses to a query."""
        return self._scorer.score(query, responses)


class RemoteScorer:
    """A scorer whose work is done by actors, in turn.

    Args:
        actors: Their handles.
        name: What the scorer they hold calls itself, which is part of a run's configuration.
    """

    def __init__(self, actors: Sequence[Any], name: str) -> None:
        self._turns = itertools.cycle(actors)
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Score responses to a query, blocking."""
        import ray.exceptions

        try:
            return ray.get(next(self._turns).score.remote(query, responses))
        except ray.exceptions.RayError as error:
            raise ScorerError(f"a scorer on the Ray cluster failed: {explain(error)}") from error

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Score responses to a query in the running event loop."""
        import ray.exceptions

        try:
            return await next(self._turns).score.remote(query, responses)
        except ray.exceptions.RayError as error:
            raise ScorerError(f"a scorer on the Ray cluster failed: {explain(error)}") from error
