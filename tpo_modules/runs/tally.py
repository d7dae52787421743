"""`Tally`: the figures of a run while it runs, and the budgets that can end it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tpo_modules.errors import ConfigurationError
from tpo_modules.run import Event
from tpo_modules.runs.results import FailedQuery, QueryResult
from tpo_modules.trace import Call, Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Budgets of a whole run; None sets none. When one is reached no step is begun any more, and the queries
    under way end with their best so far.

    Attributes:
        tokens: Tokens billed, prompt and completion.
        requests: Requests sent.
        money: In the currency of the prices.
        seconds: Wall time.
        prices: Price per million prompt and completion tokens, by model; LiteLLM's list for others. A model
            without a price is refused where money is limited.
    """  # noqa: D205  one thought, one sentence more

    tokens: int | None = None
    requests: int | None = None
    money: float | None = None
    seconds: float | None = None
    prices: dict[str, tuple[float, float]] = field(default_factory=dict)


class Tally:
    """Counts what a run does.

    Args:
        limits: Its budgets.

    Attributes:
        finished: Queries that this process finished.
        failed: Queries that failed in this process.
    """

    def __init__(self, limits: Limits) -> None:
        self.finished = 0
        self.failed = 0
        self._limits = limits
        self._start = time.monotonic()
        self._shown = float("-inf")
        self._total = self._todo = 0
        self._requests = self._sequences = self._answers = self._rewards = 0
        self._tokens: Counter[str] = Counter()
        self._generated = 0
        self._money = 0.0
        self._reward_sums: dict[int, list[float]] = {}
        self._waits: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    @property
    def worked(self) -> bool:
        """Whether this process got so far as to a reward, by an LM's answer that was not there before."""
        return (self._answers > 0 and bool(self._reward_sums)) or self.finished > 0

    def begin(self, *, total: int, todo: int) -> None:
        """Say how many queries the run has, and how many of them are still to do."""
        self._total, self._todo = total, todo

    def record(self, event: Event) -> None:
        """Count a record of a query under way; one taken over from an earlier run costs nothing."""
        if event.replayed:
            return
        record = event.record
        if isinstance(record, Call):
            self._requests += record.requests - record.cached
            self._sequences += len(record.completions)
            self._answers += sum(bool(completion.text) for completion in record.completions)
            self._tokens.update(record.usage)
            self._generated += sum(c.tokens or 0 for c in record.completions)
            self._money += self._price(record)
        elif isinstance(record, Scoring):
            self._rewards += record.asked
            finite = [reward for reward in record.rewards if reward is not None]
            if not finite:
                return
            sums = self._reward_sums.setdefault(record.step, [0.0, 0.0])
            sums[0] += sum(finite)
            sums[1] += len(finite)

    def waiting(self, kind: str | None) -> None:
        """Count a query that waits for an error to pass."""
        self._waits[str(kind)] += 1

    def finish(self, result: QueryResult) -> None:
        """Count a finished query."""
        self.finished += 1
        self._failures.update(failure.type for failure in result.failures)

    def fail(self, failed: FailedQuery) -> None:
        """Count a failed query."""
        self.failed += 1
        self._failures[failed.error] += 1

    def reached(self) -> str | None:
        """Say which budget is spent, or None."""
        spent = {
            "tokens": self._tokens.total(),
            "requests": self._requests,
            "money": self._money,
            "seconds": time.monotonic() - self._start,
        }
        for name, amount in spent.items():
            limit = getattr(self._limits, name)
            if limit is not None and amount >= limit:
                return f"budget of the run: {amount:.6g} of {limit:.6g} {name} spent"
        return None

    def figures(self) -> dict[str, Any]:
        """Return the run's figures, JSON-serialisable."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        done = self.finished + self.failed
        rate = done / seconds
        return {
            "queries": self._total,
            "to_do": self._todo,
            "finished": self.finished,
            "failed": self.failed,
            "failures": dict(self._failures),
            "waits": dict(self._waits),
            "requests": self._requests,
            "sequences": self._sequences,
            "rewards": self._rewards,
            "prompt_tokens": self._tokens["prompt_tokens"],
            "completion_tokens": self._tokens["completion_tokens"],
            "money": round(self._money, 6),
            "seconds": round(seconds, 2),
            "queries_per_second": round(rate, 4),
            "tokens_per_second": round(self._generated / seconds, 2),
            "seconds_left": round((self._todo - done) / rate, 1) if rate else None,
            "mean_reward_by_step": {
                str(step): round(total / count, 4)
                for step, (total, count) in sorted(self._reward_sums.items())
                if count
            },
        }

    def figures_if_due(self, at_most_every: float) -> dict[str, Any] | None:
        """Return the figures, or None if they were shown less than so many seconds ago."""
        if time.monotonic() - self._shown < at_most_every:
            return None
        self._shown = time.monotonic()
        return self.figures()

    def _price(self, call: Call) -> float:
        if self._limits.money is None or not call.models:
            return 0.0
        prompt, completion = price_of(call.models[0], self._limits.prices)
        usage = call.usage
        return (
            usage.get("prompt_tokens", 0) * prompt + usage.get("completion_tokens", 0) * completion
        ) / 1e6


def price_of(model: str, own: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Find a model's price per million prompt and completion tokens.

    Raises:
        ConfigurationError: Neither the given prices nor LiteLLM's list have the model.
    """
    if model in own:
        return own[model]
    import litellm

    known: dict[str, Any] | None = litellm.model_cost.get(model) or litellm.model_cost.get(
        model.split("/", 1)[-1]
    )
    if known is None or known.get("input_cost_per_token") is None:
        raise ConfigurationError(
            f"expected a price for {model!r}, since money is limited, and LiteLLM's list has none; say it with "
            f"Limits(prices={{{model!r}: (per million prompt tokens, per million completion tokens)}}), or limit "
            "tokens instead"
        )
    return (
        1e6 * (known.get("input_cost_per_token") or 0.0),
        1e6 * (known.get("output_cost_per_token") or 0.0),
    )
