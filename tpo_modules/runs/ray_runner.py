"""`run_on_ray`: the queries of a run spread over a Ray cluster, each worker running the same async loop.

The driver alone writes the run's folder; workers send it what becomes of their queries as it happens. A worker
that is lost is replaced, and its queries go on from their last record, so that at most its calls in flight are
made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from tpo_modules.errors import ConfigurationError, LMCallError, MissingExtraError
from tpo_modules.policy import PolicyModule
from tpo_modules.run import Event, is_blank
from tpo_modules.runs.ledger import Ledger, Progress
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.ray_worker import (
    Failed,
    Finished,
    Job,
    Note,
    RayWorker,
    Recorded,
    ScorerActor,
    Waiting,
)
from tpo_modules.runs.records import with_record
from tpo_modules.runs.runner import RunSettings, RunSummary, open_folder, summary_of
from tpo_modules.runs.tally import Tally
from tpo_modules.runs.todo import Todo, as_rows, queries_to_do
from tpo_modules.trace import Failure, TPOTrace

_HELD = 3  # queries that a worker holds, per slot: enough that it never waits for the driver
_LOSSES = 5  # a worker lost so often in a row without a record in between is not replaced again
_GRACE = 5.0  # seconds that requests in flight get to finish after an interruption


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """Which cluster, and how it is used.

    Attributes:
        address: As for ``ray.init``: ``"auto"`` finds the cluster of this machine, ``"local"`` starts one on it,
            ``"HOST:PORT"`` names one. A cluster that is connected already is used whatever this says.
        workers: Processes that answer queries; by default one for each machine, and two at least. Each gets an
            equal part of the requests in flight.
        scorers: Actors that hold the scorer for all workers, such as a reward model that is not to be loaded in
            each; with 0 every worker scores for itself, as is right for served and cheap scorers.
    """

    address: str = "auto"
    workers: int | None = None
    scorers: int = 0


def run_on_ray(
    module: PolicyModule,
    queries: Sequence[QueryRow | str],
    *,
    out: str | Path,
    cluster: RayCluster | None = None,
    settings: RunSettings | None = None,
    on_progress: Progress | None = None,
) -> RunSummary:
    """Answer many queries on a Ray cluster: see `arun_on_ray`."""
    job = arun_on_ray(
        module, queries, out=out, cluster=cluster, settings=settings, on_progress=on_progress
    )
    return asyncio.run(job)


async def arun_on_ray(
    module: PolicyModule,
    queries: Sequence[QueryRow | str],
    *,
    out: str | Path,
    cluster: RayCluster | None = None,
    settings: RunSettings | None = None,
    on_progress: Progress | None = None,
) -> RunSummary:
    """Answer many queries on a Ray cluster, and keep every record in a folder on this machine.

    Folder, resuming, failures and budgets are as `arun_queries` has them; a folder may be continued by either. The
    LM's endpoint, and a served scorer's, must be reachable from every machine.

    Args:
        module: What answers each query; it is pickled, with the LM that DSPy is configured with.
        queries: Rows with unique ids, or plain texts, whose position becomes their id.
        out: The run's folder.
        cluster: Which cluster; the one of this machine by default.
        settings: How the run is carried out.
        on_progress: Called with the run's figures whenever they change.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigurationError: There is no such cluster, or the module cannot be sent to it.
        RunFolderError: The folder is in use, of another run, or cannot be written any more.
        LMCallError: Nothing works, or workers die as soon as they are started.
    """
    cluster, settings = cluster or RayCluster(), settings or RunSettings()
    rows = as_rows(queries)
    payload = _pickled(module)
    with open_folder(module, out, settings) as folder, _connected(cluster.address) as ray:
        todo = queries_to_do(
            module,
            rows,
            folder,
            extend_depth=settings.extend_depth,
            retry_failures=settings.retry_failures,
        )
        driver = _Driver(ray, cluster, settings, payload, todo)
        driver.ledger = Ledger(
            folder,
            Tally(settings.limits),
            patience=settings.patience,
            in_flight=lambda: sum(driver.in_flight),
            on_progress=on_progress,
        )
        driver.base = TPOTrace(
            method=module.method, label=module.label, query="", inputs={}, config=module.config()
        )
        driver.ledger.begin(total=len(rows), todo=len(todo))
        await driver.run()
        return summary_of(rows, len(driver.todo), driver.ledger)


class _Driver:
    ledger: Ledger
    base: TPOTrace

    def __init__(
        self,
        ray: Any,
        cluster: RayCluster,
        settings: RunSettings,
        payload: bytes,
        todo: Sequence[Todo],
    ) -> None:
        nodes = sum(node["Alive"] for node in ray.nodes())
        most = max(1, min(settings.max_in_flight, len(todo)))
        count = min(cluster.workers or max(2, nodes), most)
        self.todo = deque(Job(order, one.row, one.earlier) for order, one in enumerate(todo))
        self.shares = [settings.max_in_flight // count] * count
        for index in range(settings.max_in_flight % count):
            self.shares[index] += 1
        self.in_flight = [0] * count
        self._under_way: list[dict[str, Job]] = [{} for _ in range(count)]
        self._seen = [0] * count
        self._actors: list[Any] = [None] * count
        self._ray = ray
        self._payload = ray.put(payload)
        self._patience = settings.patience
        scorer = ray.remote(ScorerActor).options(max_restarts=-1, max_task_retries=3)
        self._scorers = [scorer.remote(self._payload) for _ in range(cluster.scorers)]

    async def run(self) -> None:
        """Keep workers until every query is answered."""
        keepers = [asyncio.ensure_future(self._keep_worker(i)) for i in range(len(self.shares))]
        try:
            await asyncio.gather(*keepers)
        except BaseException as error:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            if isinstance(error, asyncio.CancelledError):
                await self._wind_up()
            raise
        finally:
            for actor in [*self._actors, *self._scorers]:
                if actor is not None:
                    self._ray.kill(actor)
        self.ledger.show()

    async def _keep_worker(self, index: int) -> None:
        """Have a worker, and another one when it is lost, while there is work."""
        losses = 0
        while self._under_way[index] or (self.todo and not self.ledger.halt()):
            worker = self._ray.remote(RayWorker).options(scheduling_strategy="SPREAD")
            share = self.shares[index]
            actor = worker.remote(
                self._payload, self._scorers, limit=share, patience=self._patience
            )
            self._actors[index], self._seen[index] = actor, 0
            before = self.ledger.tally.finished
            try:
                await self._serve(index, actor)
            except self._ray.exceptions.RayActorError as error:
                losses = losses + 1 if self.ledger.tally.finished == before else 1
                if losses >= _LOSSES:
                    raise LMCallError(
                        f"a worker on the Ray cluster was lost {losses} times without finishing a query; see "
                        f"Ray's logs: {error}"
                    ) from error
                self._take_back(index)

    async def _serve(self, index: int, actor: Any) -> None:
        """Give a worker queries and take down what becomes of them, until none is left."""
        mine, most = self._under_way[index], _HELD * self.shares[index]
        await actor.add.remote([])  # a worker that does not start must not hold queries
        while True:
            jobs: list[Job] = []
            while self.todo and len(mine) < most and not self.ledger.halt():
                jobs.append(self.todo.popleft())
                mine[jobs[-1].row.id] = jobs[-1]
            if jobs:
                await actor.add.remote(jobs)
            if not mine:
                return
            report = await actor.collect.remote(
                self._seen[index], self.ledger.halt(), not self.todo
            )
            self.in_flight[index] = report.in_flight
            for note in report.notes:
                self._take_down(index, note)

    def _take_back(self, index: int) -> None:
        """Put a lost worker's queries back, those begun first, each with what is recorded of it."""
        mine = sorted(self._under_way[index].values(), key=lambda job: job.order)
        self.todo.extendleft(reversed(mine))
        self._under_way[index].clear()
        self.in_flight[index] = 0

    def _take_down(self, index: int, note: Note) -> None:
        mine = self._under_way[index]
        self._seen[index] += 1
        if isinstance(note, Recorded):
            self._add_record(mine, note)
        elif isinstance(note, Finished):
            self.ledger.enter(note.result, note.trace)
            del mine[note.result.id]
        elif isinstance(note, Failed):
            self.ledger.fail(note.row, LMCallError(note.message), note.kind)
            del mine[note.row.id]
        elif isinstance(note, Waiting):
            error = LMCallError(note.message)
            waits = self.ledger.may_wait(note.identity, error, note.kind, note.waited)
            if not waits and not self.ledger.tally.worked and not self.ledger.halt():
                raise LMCallError(f"nothing works: {note.kind}: {note.message}")
        else:
            raise LMCallError(f"a worker cannot go on: {note.kind}: {note.message}")

    def _add_record(self, mine: dict[str, Job], note: Recorded) -> None:
        """Keep a record for the run's folder, and for whoever takes the query over."""
        job, record = mine[note.identity], note.record
        trace = job.earlier or self.base
        if not isinstance(record, Failure) and not is_blank(record):
            trace = with_record(trace, record)
        mine[note.identity] = Job(job.order, job.row, trace)
        self.ledger.record(note.identity, Event(trace=trace, record=record, replayed=False))

    async def _wind_up(self) -> None:
        """Let every worker finish its requests in flight, and take down what came of them."""

        async def last_words(index: int, actor: Any) -> None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                for note in (await actor.wind_up.remote(self._seen[index], _GRACE)).notes:
                    if isinstance(note, Recorded | Finished):
                        self._take_down(index, note)

        words = [last_words(i, actor) for i, actor in enumerate(self._actors) if actor is not None]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*words), 2 * _GRACE)


def _pickled(module: PolicyModule) -> bytes:
    """Pickle what workers need.

    Raises:
        ConfigurationError: Something in it cannot be pickled.
    """
    import cloudpickle

    try:
        return cloudpickle.dumps((module, dspy.settings.lm, dspy.settings.adapter))
    except (
        TypeError,
        AttributeError,
        RuntimeError,
        ValueError,
    ) as error:  # pickle has no one error
        raise ConfigurationError(
            f"expected a module that can be sent to other machines, got one that cannot be pickled: {error}; serve "
            "a scorer that holds open files or loaded models over HTTP (tpo serve-scorer) and name its URL"
        ) from error


@contextlib.contextmanager
def _connected(address: str) -> Generator[Any]:
    """Connect to a cluster, unless this process is connected already."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray", "--ray") from None
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        with _own_signal_handlers():
            ray.init(address=address, log_to_driver=False, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"expected the address of a Ray cluster, or 'local' to start one here, got {address!r}: {error}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_signal_handlers() -> Generator[None]:
    """Keep what this process does on Ctrl-C and SIGTERM: Ray puts its own handlers there, which end it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
