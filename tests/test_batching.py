"""`BatchingScorer`: merged batches, bounded waits, failures kept apart, many loops and threads."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tpo_modules.errors import ConfigurationError, RewardError
from tpo_modules.scorers.batching import BatchingScorer, Pair


class Lengths:
    """Rewards a response by its length, slowly; keeps the batches that it was given."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[Pair]] = []
        self.threads: set[str] = set()

    def score_pairs(self, pairs: Sequence[Pair]) -> list[float]:
        self.batches.append(list(pairs))
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        if any(response == "bad" for _, response in pairs):
            raise RewardError("a bad response")
        return [float(len(response)) for _, response in pairs]


class Gated(Lengths):
    """Rewards nothing before `gate` is set."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(seconds)
        self.gate = threading.Event()

    def score_pairs(self, pairs: Sequence[Pair]) -> list[float]:
        rewards = super().score_pairs(pairs)
        assert self.gate.wait(60)
        return rewards


def responses_of(run: int) -> list[str]:
    return ["x" * (run + i) for i in range(5)]


def expected_of(run: int) -> list[float]:
    return [float(run + i) for i in range(5)]


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.001)


async def test_100_concurrent_runs_share_batches() -> None:
    scorer = Lengths(seconds=0.005)
    batching = BatchingScorer(scorer, max_batch=64, max_wait=1.0)

    async def run(number: int) -> None:
        for step in range(3):  # what TPO D2-N5 asks of a scorer, generation in between
            await asyncio.sleep(0.01 + 0.0005 * (number * 37 % 100))
            rewards = await batching.ascore(f"query {number}", responses_of(number + step))
            assert rewards == expected_of(number + step)

    await asyncio.gather(*(run(number) for number in range(100)))
    stats = batching.stats
    assert (stats.requests, stats.pairs) == (300, 1500)
    assert stats.mean_batch > 20, "one run alone asks for 5"
    assert stats.largest_batch <= 64
    assert stats.longest_wait <= 1.0
    assert len(scorer.batches) == stats.batches


def test_threads_share_batches() -> None:
    batching = BatchingScorer(Lengths(seconds=0.005), max_wait=1.0)

    def run(number: int) -> list[float]:
        return batching.score("query", responses_of(number))

    with ThreadPoolExecutor(40) as pool:
        rewards = list(pool.map(run, range(100)))
    assert rewards == [expected_of(number) for number in range(100)]
    assert batching.stats.mean_batch > 10
    assert batching.stats.longest_wait <= 1.0


def test_lone_request_waits_no_longer_than_stated() -> None:
    batching = BatchingScorer(Lengths(), max_wait=1.0)
    began = time.monotonic()
    assert batching.score("query", ["xx"]) == [2.0]
    assert 0.5 < time.monotonic() - began < 3.0
    assert 0.5 < batching.stats.longest_wait <= 1.0


def test_full_batch_goes_at_once() -> None:
    batching = BatchingScorer(Lengths(), max_batch=5, max_wait=30.0)
    began = time.monotonic()
    batching.score("query", responses_of(1))
    assert time.monotonic() - began < 5.0


async def test_requests_are_taken_in_order_and_never_split() -> None:
    scorer = Gated(seconds=0.1)
    batching = BatchingScorer(scorer, max_batch=6, max_wait=0.0)

    def ask(number: int, size: int) -> asyncio.Task[list[float]]:
        return asyncio.create_task(batching.ascore(str(number), ["x"] * size))

    tasks = [ask(0, 1)]
    await until(lambda: scorer.batches)
    sizes = (1, 4, 2, 3, 9, 1)
    tasks += [ask(number, size) for number, size in enumerate(sizes) if number]
    await asyncio.sleep(0)  # each has asked
    scorer.gate.set()
    assert await asyncio.gather(*tasks) == [[1.0] * size for size in sizes]
    order = [[*dict.fromkeys(query for query, _ in batch)] for batch in scorer.batches]
    assert order == [["0"], ["1", "2"], ["3"], ["4"], ["5"]]
    stats = batching.stats
    assert stats.longest_queue > 0.25, "the last one waited for the batches before it"
    assert stats.longest_wait < 0.1


def test_failing_request_does_not_fail_its_neighbours() -> None:
    batching = BatchingScorer(Lengths(), max_wait=0.3)
    with ThreadPoolExecutor(3) as pool:
        good = pool.submit(batching.score, "a", ["x"])
        bad = pool.submit(batching.score, "b", ["x", "bad"])
        also_good = pool.submit(batching.score, "c", ["xxx"])
        assert good.result() == [1.0]
        assert also_good.result() == [3.0]
        with pytest.raises(RewardError, match="a bad response"):
            bad.result()


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), StopIteration()])
async def test_a_scorer_that_ends_its_thread_is_an_error_and_no_hang(error: BaseException) -> None:
    class Ends(Lengths):
        def score_pairs(self, pairs: Sequence[Pair]) -> list[float]:
            if any(response == "end" for _, response in pairs):
                raise error
            return super().score_pairs(pairs)

    batching = BatchingScorer(Ends(), max_batch=4)
    with pytest.raises(RewardError, match=type(error).__name__) as found:
        await asyncio.wait_for(batching.ascore("query", ["end"]), 60)
    assert found.value.__cause__ is error
    assert await asyncio.wait_for(batching.ascore("query", ["good"]), 60) == [4.0]


def test_wrong_number_of_rewards_is_an_error() -> None:
    class Short:
        def score_pairs(self, pairs: Sequence[Pair]) -> list[float]:
            return [1.0]

    with pytest.raises(RewardError, match=r"Short\.score_pairs .* 2 pairs, 1 rewards"):
        BatchingScorer(Short()).score("query", ["a", "b"])


async def test_scoring_leaves_the_loop_and_its_executor_free() -> None:
    scorer = Gated()
    batching = BatchingScorer(scorer)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="default"))
    scoring = asyncio.create_task(batching.ascore("query", ["x"]))
    await until(lambda: scorer.batches)
    await asyncio.to_thread(time.sleep, 0.01)  # the default executor's only thread is idle
    assert not scoring.done()
    scorer.gate.set()
    assert await scoring == [1.0]
    assert all(name.startswith("tpo-scorer") for name in scorer.threads)


async def test_cancelled_request_is_left_out() -> None:
    scorer = Gated()
    batching = BatchingScorer(scorer, max_wait=0.0)
    first = asyncio.create_task(batching.ascore("first", ["x"]))
    await until(lambda: scorer.batches)
    waiting = [asyncio.create_task(batching.ascore(str(i), ["x"])) for i in range(3)]
    await asyncio.sleep(0)  # each has asked
    waiting[1].cancel()
    await asyncio.sleep(0)
    scorer.gate.set()
    assert await first == [1.0]
    assert await waiting[0] == await waiting[2] == [1.0]
    assert ("1", "x") not in [pair for batch in scorer.batches for pair in batch]
    with pytest.raises(asyncio.CancelledError):
        await waiting[1]


def test_several_event_loops_share_one_scorer() -> None:
    batching = BatchingScorer(Lengths(seconds=0.005), max_wait=0.1)

    async def runs(first: int) -> list[list[float]]:
        numbers = range(first, first + 10)
        return await asyncio.gather(*(batching.ascore("q", responses_of(n)) for n in numbers))

    def in_own_loop(first: int) -> list[list[float]]:
        return asyncio.run(runs(first))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(in_own_loop, (0, 10, 20, 30)))
    assert [r for result in results for r in result] == [expected_of(n) for n in range(40)]
    assert batching.stats.mean_batch > 5


def test_workers_score_batches_side_by_side() -> None:
    class Together(Lengths):
        everyone = threading.Barrier(4)

        def score_pairs(self, pairs: Sequence[Pair]) -> list[float]:
            self.everyone.wait(60)  # an error unless four are here at once
            return super().score_pairs(pairs)

    batching = BatchingScorer(Together(), max_batch=1, max_wait=0.0, workers=4)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(batching.score, "abcd", [["x"]] * 4)) == [[1.0]] * 4
    assert batching.stats.batches == 4


def test_nothing_to_score() -> None:
    batching = BatchingScorer(Lengths())
    assert batching.score("query", []) == []
    assert asyncio.run(batching.ascore("query", [])) == []
    assert batching.stats.requests == 0
    assert batching.stats.mean_batch == 0.0


def scoring_threads() -> set[threading.Thread]:
    """List the scorers' threads alone: those of other tests come and go."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("tpo-scorer")}


def test_close_ends_the_threads_and_a_later_request_starts_them() -> None:
    before = scoring_threads()
    batching = BatchingScorer(Lengths())
    assert batching.score("query", ["x"]) == [1.0]
    assert scoring_threads() - before
    batching.close()
    assert not scoring_threads() - before
    assert batching.score("query", ["xx"]) == [2.0]
    batching.reset_stats()
    assert batching.stats.requests == 0


def test_copies_share_and_pickles_start_afresh() -> None:
    batching = BatchingScorer(Lengths(), max_batch=7, max_wait=0.5, workers=2)
    assert copy.deepcopy(batching) is batching
    assert copy.copy(batching) is batching
    batching.score("query", ["x"])
    again: BatchingScorer = pickle.loads(pickle.dumps(batching))
    assert (again.max_batch, again.max_wait, again.workers) == (7, 0.5, 2)
    assert again.stats.requests == 0
    assert again.score("query", ["xx"]) == [2.0]


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"workers": 0}, {"max_wait": float("nan")}])
def test_options_that_cannot_work(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        BatchingScorer(Lengths(), **options)  # pyright: ignore[reportArgumentType]
