"""`QueryResult`: what one query came to, as one line of JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from tpo_modules.errors import explain
from tpo_modules.trace import Failure, TPOTrace

if TYPE_CHECKING:
    import dspy


class QueryResult(BaseModel):
    """What one query came to; without its trace it is what reports and comparisons read.

    Attributes:
        id: The query's id in its file.
        query: The query as text.
        response: The response of the highest reward.
        reward: Its reward; higher is better.
        method: ``"tpo"``, ``"revision"`` or ``"bon"``.
        label: Depth and width, ``"D2-N5"``.
        step: The step that sampled the response; 0 is the first round.
        sample: Which of that step's scored samples it is, counted from 0.
        rewards_by_step: The rewards of each step's samples, in order.
        usage: Tokens billed, by step name: ``prompt_tokens``, ``completion_tokens``.
        generated_tokens: Completion tokens of every sequence, cached or not.
        requests: Requests sent or answered from the cache.
        copied_updates: Update samples that repeat the draft they were to improve.
        seconds: Wall time.
        status: ``"complete"``, ``"stopped"`` or ``"failed"``: see `TPOTrace`.
        stop_reason: Why it stopped early or failed.
        failures: Everything that went wrong on the way.
        trace: The whole record, where it was asked for.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    query: str
    response: str
    reward: float
    method: str
    label: str
    step: int
    sample: int
    rewards_by_step: list[list[float]]
    usage: dict[str, dict[str, int]]
    generated_tokens: int
    requests: int
    copied_updates: int
    seconds: float
    status: str
    stop_reason: str | None = None
    failures: list[Failure] = Field(default_factory=list[Failure])
    trace: TPOTrace | None = None

    @classmethod
    def of(cls, identity: str, prediction: dspy.Prediction, *, keep_trace: bool) -> QueryResult:
        """Sum up the prediction of a `PolicyModule`."""
        trace: TPOTrace = prediction.trace
        best = trace.pool.chosen
        return cls(
            id=identity,
            query=trace.query,
            response=best.response,
            reward=best.reward,
            method=trace.method,
            label=trace.label,
            step=best.step,
            sample=trace.pool.of_step(best.step).index(best),
            rewards_by_step=trace.rewards_by_step,
            usage=trace.usage_by_step,
            generated_tokens=trace.generated_tokens,
            requests=sum(call.requests for call in trace.calls),
            copied_updates=trace.copied_updates[0],
            seconds=trace.seconds,
            status=trace.status,
            stop_reason=trace.stop_reason,
            failures=trace.failures,
            trace=trace if keep_trace else None,
        )


class FailedQuery(BaseModel):
    """A query that gave no response at all, and why."""

    model_config = ConfigDict(frozen=True)

    id: str
    query: str
    status: str = "failed"
    error: str
    message: str

    @classmethod
    def of(cls, identity: str, inputs: dict[str, Any], error: Exception) -> FailedQuery:
        """Record the error that ended a query."""
        query = str(inputs.get("query", inputs))
        return cls(id=identity, query=query, error=type(error).__name__, message=explain(error))
