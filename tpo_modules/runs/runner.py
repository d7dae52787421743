"""Many queries at once: one cap on requests, no barriers, every record on disk, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import dspy

from tpo_modules._version import __version__
from tpo_modules.errors import RunFolderError
from tpo_modules.gate import RequestGate
from tpo_modules.policy import PolicyModule, whole_number
from tpo_modules.runs.answering import Answering
from tpo_modules.runs.ledger import Ledger, Progress
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.run_folder import RunFolder
from tpo_modules.runs.tally import Limits, Tally, price_of
from tpo_modules.runs.todo import DEPTHS, Todo, as_rows, queries_to_do
from tpo_modules.step import find_predictors
from tpo_modules.trace import TPOTrace

_T = TypeVar("_T")

_STRETCH = 2  # the last stretch begins when fewer fresh queries are left than this many per slot
_ACTIVE = 4  # queries under way at most, per slot: the rest of them wait for the scorer
_GRACE = 5.0  # seconds that requests in flight get to finish after an interruption


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a run is carried out; nothing here changes its results.

    Attributes:
        max_in_flight: Requests to the LM at a time, over all queries.
        retry_failures: Take queries up again whose last attempt failed for good, and those that a failure
            ended before their depth, at the call that failed.
        extend_depth: Continue finished queries of a smaller depth from their pools; refused if one is deeper.
        patience: Seconds that a query waits, in all, for an error to pass.
        limits: Budgets of the whole run.
    """

    max_in_flight: int = 32
    retry_failures: bool = False
    extend_depth: bool = False
    patience: float = 1800.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check what was given.

        Raises:
            ConfigurationError: ``max_in_flight`` is no whole number of at least 1.
        """
        whole_number(self.max_in_flight, "max_in_flight", least=1)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run came to.

    Attributes:
        finished: Queries with a result, earlier runs of the folder included.
        failed: Queries without one.
        left: Queries not tried, because a budget was reached or the run was interrupted.
        stop_reason: Why the run ended early, or None.
        figures: The last figures of the progress file.
    """

    finished: int
    failed: int
    left: int
    stop_reason: str | None
    figures: dict[str, Any]


def run_queries(
    module: PolicyModule,
    queries: Sequence[QueryRow | str],
    *,
    out: str | Path,
    settings: RunSettings | None = None,
    on_progress: Progress | None = None,
    first: Mapping[str, TPOTrace] | None = None,
) -> RunSummary:
    """Answer many queries with a module, and keep every record in a folder: see `arun_queries`."""
    job = partial(
        arun_queries,
        module,
        queries,
        out=out,
        settings=settings,
        on_progress=on_progress,
        first=first,
    )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(job())
    return _run_beside(job)  # this thread runs a loop already (Jupyter)


def _run_beside(job: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a job in an event loop of another thread; an interruption of this one cancels it."""
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def announced() -> _T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine that runs has one
        begun.set_result((asyncio.get_running_loop(), task))
        return await job()

    with ThreadPoolExecutor(max_workers=1) as thread:
        done = thread.submit(copy_context().run, asyncio.run, announced())
        try:
            return done.result()
        except BaseException:
            if not done.done():
                loop, task = begun.result()
                with contextlib.suppress(RuntimeError):  # it ended just now
                    loop.call_soon_threadsafe(task.cancel)
            raise


async def arun_queries(
    module: PolicyModule,
    queries: Sequence[QueryRow | str],
    *,
    out: str | Path,
    settings: RunSettings | None = None,
    on_progress: Progress | None = None,
    first: Mapping[str, TPOTrace] | None = None,
) -> RunSummary:
    """Answer many queries with a module, and keep every record in a folder.

    The same call again continues: finished queries are skipped, others go on at the step where they were. An
    error that can pass makes its query wait and try again; one that cannot is recorded and costs its query
    only. Cancelling the task stops the run; what is recorded is kept.

    Args:
        module: What answers each query.
        queries: Rows with unique ids, or plain texts, whose position becomes their id.
        out: The run's folder: see `RunFolder`.
        settings: How the run is carried out.
        on_progress: Called with the run's figures whenever they change.
        first: First rounds drawn before, by query id: their step 0 is taken over, neither drawn nor scored again,
            so that several methods start from the same samples. Its cost is counted in each query's result.

    Raises:
        RunFolderError: The folder is in use, of another run, or cannot be written any more (a full disk).
        LMCallError: Nothing works: a wrong key, an account without credit, or the first requests failed alike and
            not one succeeded.
        ConfigurationError: Ids repeat or are no strings, there is no LM, or ``extend_depth`` would go less deep.
    """
    rows = as_rows(queries)
    settings = settings or RunSettings()
    with open_folder(module, out, settings) as folder:
        todo = queries_to_do(
            module,
            rows,
            folder,
            extend_depth=settings.extend_depth,
            retry_failures=settings.retry_failures,
            first=first,
        )
        return await _Runner(module, rows, todo, settings, folder, on_progress).run()


def run_config(module: PolicyModule) -> dict[str, Any]:
    """Return what a run's folder keeps as its configuration: the module's, and versions."""
    versions = {"dspy-tpo": __version__, "dspy": dspy.__version__}
    return {**module.config(), "versions": versions}


def open_folder(module: PolicyModule, path: str | Path, settings: RunSettings) -> RunFolder:
    """Open a run's folder for a module, or make it; the caller closes it.

    Raises:
        RunFolderError: See `RunFolder`.
        ConfigurationError: There is a budget of money, and an LM of the module has no price.
    """
    if settings.limits.money is not None:
        predictors = [p for step in module.steps().values() for p in find_predictors(step.predict)]
        for lm in filter(None, (predictor.lm or dspy.settings.lm for predictor in predictors)):
            price_of(lm.model, settings.limits.prices)
    ignore = DEPTHS if settings.extend_depth else ()
    return RunFolder(path, config=run_config(module), ignore=tuple(ignore))


class _Runner:
    def __init__(
        self,
        module: PolicyModule,
        rows: Sequence[QueryRow],
        todo: Sequence[Todo],
        settings: RunSettings,
        folder: RunFolder,
        on_progress: Progress | None,
    ) -> None:
        self.rows = rows
        self.folder = folder
        self.todo = todo
        self.gate = RequestGate(settings.max_in_flight)
        self.ledger = Ledger(
            folder,
            Tally(settings.limits),
            patience=settings.patience,
            in_flight=lambda: self.gate.in_flight,
            on_progress=on_progress,
        )
        self.answering = Answering(module, self.gate, self.ledger)

    async def run(self) -> RunSummary:
        self.ledger.begin(total=len(self.rows), todo=len(self.todo))
        with dspy.context(disable_history=True):
            feed = asyncio.ensure_future(self._feed())
            try:
                await asyncio.wait(
                    {feed, self.answering.broken}, return_when=asyncio.FIRST_COMPLETED
                )
                if self.answering.broken.done():
                    self.answering.broken.result()
                left = feed.result()
            except BaseException as error:
                feed.cancel()
                interrupted = isinstance(error, asyncio.CancelledError)
                await self.answering.wind_up(_GRACE if interrupted else 0.0)
                if not isinstance(error, RunFolderError):
                    self.ledger.show()
                raise
            finally:
                self.answering.broken.cancel()
        self.ledger.show()
        return summary_of(self.rows, left, self.ledger)

    async def _feed(self) -> int:
        """Start queries as slots fall free, and wait for all; return how many were not started."""
        tasks, most = self.answering.tasks, _ACTIVE * self.gate.limit
        for order, todo in enumerate(self.todo):
            left = len(self.todo) - order
            self.gate.last_stretch = left <= _STRETCH * self.gate.limit
            while not self.gate.last_stretch or len(tasks) >= most:
                await self.gate.wait_for_room()
                if len(tasks) < most:
                    break
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self.ledger.halt():
                break
            self.answering.start(order, todo.row, todo.earlier)
            await asyncio.sleep(0)  # let it take its slot before the next one looks for room
        else:
            left = 0
        while tasks:
            await asyncio.wait(tasks)
        return left


def summary_of(rows: Iterable[QueryRow], left: int, ledger: Ledger) -> RunSummary:
    """Sum up a run that has ended."""
    ids = {row.id for row in rows}
    failed = len(ids & ledger.folder.failed.keys())
    finished = len(ids & ledger.folder.finished.keys())
    return RunSummary(finished, failed, left, ledger.halt(), ledger.tally.figures())
