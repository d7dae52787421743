"""The numbers that a scorer's server counts, in Prometheus's text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tpo_modules.scorers.batching import BatchStats

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts requests and responses; used from one event loop, so it needs no lock."""

    def __init__(self) -> None:
        self.pending = 0
        self._requests: Counter[int] = Counter()
        self._scored: Counter[str] = Counter()
        self._seconds: Counter[float] = Counter()
        self._seconds_sum = 0.0
        self._seconds_count = 0

    def answered(self, status: int) -> None:
        """Count one answered request."""
        self._requests[status] += 1

    def scored(self, rewards: Sequence[float], seconds: float) -> None:
        """Count the rewards of one request, and the seconds it took."""
        unscored = sum(reward != reward for reward in rewards)
        self._scored["nan"] += unscored
        self._scored["finite"] += len(rewards) - unscored
        self._seconds_sum += seconds
        self._seconds_count += 1
        for bound in _BUCKETS:
            self._seconds[bound] += seconds <= bound

    def render(self, batches: BatchStats) -> str:
        """Write everything in the text format, version 0.0.4."""
        return "\n".join([*self._lines(batches), ""])

    def _lines(self, batches: BatchStats) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Answered scoring requests by HTTP status.")
        for status, count in sorted(self._requests.items()):
            yield f'tpo_scorer_requests_total{{code="{status}"}} {count}'
        yield from _head("responses_total", "counter", "Rewards given, by kind (finite or nan).")
        for kind in ("finite", "nan"):
            yield f'tpo_scorer_responses_total{{reward="{kind}"}} {self._scored[kind]}'
        yield from _head("request_seconds", "histogram", "Seconds from a request to its rewards.")
        for bound in _BUCKETS:
            yield f'tpo_scorer_request_seconds_bucket{{le="{bound}"}} {self._seconds[bound]}'
        yield f'tpo_scorer_request_seconds_bucket{{le="+Inf"}} {self._seconds_count}'
        yield f"tpo_scorer_request_seconds_sum {self._seconds_sum}"
        yield f"tpo_scorer_request_seconds_count {self._seconds_count}"
        yield from _single("pending_responses", "gauge", "Being or to be scored.", self.pending)
        yield from _single("batches_total", "counter", "Batches scored.", batches.batches)
        yield from _single("batched_total", "counter", "Responses in batches.", batches.pairs)
        yield from _single("largest_batch", "gauge", "The largest batch.", batches.largest_batch)
        yield from _single(
            "longest_wait_seconds", "gauge", "The longest wait for company.", batches.longest_wait
        )


def _head(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# HELP tpo_scorer_{name} {words}"
    yield f"# TYPE tpo_scorer_{name} {kind}"


def _single(name: str, kind: str, words: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, words)
    yield f"tpo_scorer_{name} {value}"
