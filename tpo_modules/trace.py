"""`TPOTrace`: everything that happened to one query, as versioned JSON."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tpo_modules.errors import TraceError
from tpo_modules.pool import Candidate, CandidatePool

TRACE_VERSION = 1


class Completion(BaseModel):
    """One sequence that an LM returned, or the reason why there is none.

    Attributes:
        text: The output that the step is there for; empty when `error` says why.
        fields: The program's other outputs, JSON-serialisable.
        finish_reason: As the endpoint said it (``"stop"``, ``"length"``, ...), or None.
        tokens: Completion tokens: see `Candidate.tokens`.
        thinking: The thinking block that was split off, if any.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    fields: dict[str, Any] = Field(default_factory=dict)
    finish_reason: str | None = None
    tokens: int | None = None
    thinking: str | None = None


class Failure(BaseModel):
    """Something that went wrong without ending the run.

    Attributes:
        step: The step it happened in; 0 is the first round.
        where: ``"policy"``, ``"loss"``, ``"gradient"``, ``"update"``, ``"score"`` or ``"selection"``.
        index: Which of the step's samples, counted from 0, or None where it concerns the step.
        type: The class of the error, or ``"EmptyResponse"``, ``"NonFiniteReward"``.
        message: What it said, and how to mend it where that is known.
        response: The response that was lost, where there was one.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    where: str
    index: int | None = None
    type: str
    message: str
    response: str | None = None


class Call(BaseModel):
    """One step's call of an LM: what it was shown, what it said, what it cost.

    Attributes:
        step: The step; 0 is the first round.
        name: ``"policy"``, ``"loss"``, ``"gradient"`` or ``"update"``.
        inputs: The values that the step's signature declares, by name.
        messages: The exact messages of the (first) request; None where a program hides them.
        completions: In order, one per sequence asked for; a failed one is empty.
        failures: What went wrong, by sequence.
        models: The LMs that answered.
        requests: Requests sent or answered from the cache.
        cached: How many of these came from DSPy's cache.
        usage: Tokens billed, summed: ``prompt_tokens``, ``completion_tokens``; cache hits cost nothing.
        seconds: Wall time.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    name: str
    inputs: dict[str, Any]
    messages: list[dict[str, Any]] | None = None
    completions: list[Completion]
    failures: list[Failure] = Field(default_factory=list[Failure])
    models: list[str] = Field(default_factory=list)
    requests: int = 1
    cached: int = 0
    usage: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0


class Scoring(BaseModel):
    """One step's call of the scorer.

    Attributes:
        step: The step whose samples were scored.
        rewards: One per sample that was scored, in order; None for one that was not finite.
        feedback: What the scorer said of each, or None.
        notes: Facts from the scorer about each.
        asked: How many responses the scorer was given (repeats of known responses are not).
        seconds: Wall time.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    rewards: list[float | None]
    feedback: list[str | None]
    notes: list[tuple[str, ...]]
    asked: int
    seconds: float = 0.0


class SelectedPair(BaseModel):
    """The pair that a step compared, as indices into the candidates."""

    model_config = ConfigDict(frozen=True)

    step: int
    chosen: int
    rejected: int | None


class TPOTrace(BaseModel):
    """The record of one query: resume, report and replay it from this alone.

    Attributes:
        version: Version of this format, 1.
        method: ``"tpo"``, ``"revision"`` or ``"bon"``.
        label: Depth and width, ``"D2-N5"``.
        query: The query as text.
        inputs: The policy's inputs by name, JSON-serialisable.
        config: What determines the result: prompts in full, sampling, seed, selection, LMs, scorer.
        candidates: The pool, in the order of sampling.
        calls: Every LM call, in order.
        scorings: Every call of the scorer, in order.
        pairs: The pair compared at each step from 1.
        failures: Everything that went wrong, in order.
        status: ``"running"`` until the run ends, then ``"complete"``, ``"stopped"`` (an early stop that
            was asked for) or ``"failed"`` (a step could not go on; the best so far was returned).
        stop_reason: Why it stopped early or failed, in words.
        seconds: Wall time of the run, without the parts that a resumed run took over.
    """

    version: Literal[1] = TRACE_VERSION
    method: str
    label: str
    query: str
    inputs: dict[str, Any]
    config: dict[str, Any] = Field(default_factory=dict)
    candidates: list[Candidate] = Field(default_factory=list[Candidate])
    calls: list[Call] = Field(default_factory=list[Call])
    scorings: list[Scoring] = Field(default_factory=list[Scoring])
    pairs: list[SelectedPair] = Field(default_factory=list[SelectedPair])
    failures: list[Failure] = Field(default_factory=list[Failure])
    status: Literal["running", "complete", "stopped", "failed"] = "running"
    stop_reason: str | None = None
    seconds: float = 0.0

    @classmethod
    def from_json(cls, text: str | bytes) -> TPOTrace:
        """Read a trace that ``trace.model_dump_json()`` wrote.

        Raises:
            TraceError: The text is no trace of a version that this release reads.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise TraceError(
                f"expected a TPO trace of version {TRACE_VERSION} as JSON, got something else: "
                f"{error.errors()[0]['msg']} at {error.errors()[0]['loc']}"
            ) from error

    @property
    def pool(self) -> CandidatePool:
        """The candidates as a `CandidatePool`."""
        return CandidatePool(self.candidates)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens billed over all calls: ``prompt_tokens``, ``completion_tokens``."""
        return add_usage(*(call.usage for call in self.calls))

    @property
    def usage_by_step(self) -> dict[str, dict[str, int]]:
        """Tokens billed by the name of the step: policy, loss, gradient, update."""
        names = dict.fromkeys(call.name for call in self.calls)
        return {
            name: add_usage(*(call.usage for call in self.calls if call.name == name))
            for name in names
        }

    @property
    def generated_tokens(self) -> int:
        """Completion tokens of every sequence, cached or not: what methods are matched by."""
        return sum(c.tokens or 0 for call in self.calls for c in call.completions)

    @property
    def rewards_by_step(self) -> list[list[float]]:
        """The rewards of each step's samples, in order; the outer index is the step."""
        steps = 1 + max((candidate.step for candidate in self.candidates), default=-1)
        return [[c.reward for c in self.candidates if c.step == step] for step in range(steps)]

    @property
    def copied_updates(self) -> tuple[int, int]:
        """How many update samples repeat the draft they were to improve, and of how many."""
        updated = [candidate for candidate in self.candidates if candidate.step > 0]
        return sum(candidate.copies_parent for candidate in updated), len(updated)


def add_usage(*usages: dict[str, int]) -> dict[str, int]:
    """Sum token counts by name."""
    total: dict[str, int] = {}
    for usage in usages:
        for name, count in usage.items():
            total[name] = total.get(name, 0) + count
    return total


def finite_or_none(value: float) -> float | None:
    """Map NaN and infinities to None, which JSON can carry."""
    return value if math.isfinite(value) else None
