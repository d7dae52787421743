"""One scorer for many concurrent runs: requests that arrive together are scored together."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tpo_modules.errors import ConfigurationError, RewardError

Pair = tuple[str, str]
"""One (query, response)."""

_MARGIN = 0.8  # of max_wait is spent waiting: the rest is for the thread to wake up


class PairScorer(Protocol):
    """A scorer that rewards responses to different queries in one call."""

    def score_pairs(self, pairs: Sequence[Pair]) -> Sequence[float]:
        """Reward each (query, response); one reward per pair, same order."""
        ...


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What a `BatchingScorer` has done so far.

    Attributes:
        requests: Calls of ``score`` or ``ascore`` that were scored or failed.
        pairs: (query, response) pairs in them.
        batches: Calls of the scorer's ``score_pairs`` they were put into.
        largest_batch: Pairs in the largest of these.
        longest_wait: Seconds that a request at most waited for company while a worker was free;
            stays below ``max_wait``.
        longest_queue: Seconds from the arrival of a request to the start of its batch, at most.
            Above ``longest_wait`` when requests had to wait for batches before them.
    """

    requests: int = 0
    pairs: int = 0
    batches: int = 0
    largest_batch: int = 0
    longest_wait: float = 0.0
    longest_queue: float = 0.0

    @property
    def mean_batch(self) -> float:
        """Pairs per batch."""
        return self.pairs / self.batches if self.batches else 0.0


@dataclass(eq=False, slots=True)
class _Request:
    pairs: list[Pair]
    future: Future[list[float]] = field(default_factory=lambda: Future[list[float]]())
    arrived: float = field(default_factory=time.monotonic)


class BatchingScorer:
    """Shares one scorer among many runs, in tasks of any event loop and in threads alike.

    A request is what one run asks for at one step: all responses to its query. Requests are taken
    in order of arrival and put into one batch until it holds ``max_batch`` pairs; a request is
    never split, so one that is larger than ``max_batch`` is a batch of its own. A request that
    finds a worker free waits for company, at most ``max_wait`` seconds; one that finds all busy
    waits for them, and by then has company already.

    Scoring runs in threads of its own, never in asyncio's default executor, so generation goes on
    meanwhile. When a batch fails, its requests are scored one by one, and each has its own result
    or error; what is no ordinary error, as `SystemExit`, comes as a `RewardError`. Copies share the
    original; a pickled one starts afresh with the same options.

    Args:
        scorer: Scores the batches.
        max_batch: Pairs up to which requests are merged.
        max_wait: Seconds a request may wait for others while a worker is free.
        workers: Batches in flight at once. 1 suits a local model; more suit a server.

    Raises:
        ConfigurationError: ``max_batch`` or ``workers`` below 1, or ``max_wait`` negative.
    """

    def __init__(
        self,
        scorer: PairScorer,
        *,
        max_batch: int = 64,
        max_wait: float = 0.01,
        workers: int = 1,
    ) -> None:
        if max_batch < 1 or workers < 1:
            raise ConfigurationError(
                f"max_batch and workers must be at least 1; got max_batch={max_batch}, "
                f"workers={workers}"
            )
        if not max_wait >= 0:
            raise ConfigurationError(f"max_wait must be 0 or more seconds; got {max_wait}")
        self.scorer = scorer
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.workers = workers
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._active = 0
        self._free_since = time.monotonic()
        self._stats = BatchStats()
        self._executor: ThreadPoolExecutor | None = None

    @property
    def stats(self) -> BatchStats:
        """What has been done since the start or the last `reset_stats`."""
        with self._changed:
            return self._stats

    def reset_stats(self) -> None:
        """Start counting anew."""
        with self._changed:
            self._stats = BatchStats()

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Reward each response to the query; see `tpo_modules.scorers.base.Scorer`."""
        if not responses:
            return []
        return self._submit([(query, response) for response in responses]).result()

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Do what `score` does, without blocking the event loop; may be cancelled."""
        if not responses:
            return []
        future = self._submit([(query, response) for response in responses])
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Finish what was asked for and end the threads; a later request starts them again."""
        with self._changed:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    # Requests are put in order by the callers and served by workers that end when none is left.

    def _submit(self, pairs: list[Pair]) -> Future[list[float]]:
        if self._process != os.getpid():  # a fork has the queue but not the threads
            self._start()
        request = _Request(pairs)
        with self._changed:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="tpo-scorer")
            if self._active < self.workers:
                self._executor.submit(self._serve)
                self._active += 1
            self._queue.append(request)
            self._changed.notify_all()
        return request.future

    def _serve(self) -> None:
        while batch := self._next_batch():
            running = [r for r in batch if r.future.set_running_or_notify_cancel()]
            if running:
                self._score_together(running)
            with self._changed:
                self._free_since = time.monotonic()

    def _next_batch(self) -> list[_Request]:
        with self._changed:
            self._wait_for_company()
            batch: list[_Request] = []
            size = 0
            while self._queue and (not batch or size + len(self._queue[0].pairs) <= self.max_batch):
                batch.append(self._queue.popleft())
                size += len(batch[-1].pairs)
            if batch:
                self._record(batch, size)
            else:
                self._active -= 1
            return batch

    def _wait_for_company(self) -> None:
        while self._queue and sum(len(r.pairs) for r in self._queue) < self.max_batch:
            waited = time.monotonic() - self._queue[0].arrived
            left = self.max_wait * _MARGIN - waited
            if left <= 0:
                return
            self._changed.wait(left)

    def _record(self, batch: list[_Request], size: int) -> None:
        now = time.monotonic()
        before = self._stats
        oldest = min(request.arrived for request in batch)
        waited = now - max(oldest, self._free_since)
        self._stats = replace(
            before,
            requests=before.requests + len(batch),
            pairs=before.pairs + size,
            batches=before.batches + 1,
            largest_batch=max(before.largest_batch, size),
            longest_wait=max(before.longest_wait, waited),
            longest_queue=max(before.longest_queue, now - oldest),
        )

    def _score_together(self, batch: list[_Request]) -> None:
        try:
            rewards = self._rewards([pair for request in batch for pair in request.pairs])
        except BaseException as error:  # noqa: BLE001 - handed to the callers, each its own
            if len(batch) == 1:
                batch[0].future.set_exception(_for_callers(self.scorer, error))
                return
            for request in batch:
                self._score_together([request])
            return
        start = 0
        for request in batch:
            end = start + len(request.pairs)
            request.future.set_result(rewards[start:end])
            start = end

    def _rewards(self, pairs: list[Pair]) -> list[float]:
        rewards = list(self.scorer.score_pairs(pairs))
        if len(rewards) != len(pairs):
            raise RewardError(
                f"{type(self.scorer).__name__}.score_pairs must return one reward per pair: "
                f"{len(pairs)} pairs, {len(rewards)} rewards"
            )
        return rewards

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchingScorer:
        return self

    def __copy__(self) -> BatchingScorer:
        return self

    def __getstate__(self) -> dict[str, Any]:
        names = ("scorer", "max_batch", "max_wait", "workers")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def _for_callers(scorer: object, error: BaseException) -> Exception:
    """Make an error one that a future can hand on: an exit is no exit of the caller's."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failed = RewardError(f"{type(scorer).__name__}.score_pairs raised {error!r}.")
    failed.__cause__ = error
    return failed
