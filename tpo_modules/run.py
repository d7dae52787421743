"""`Run`: one query on its way through a loop, with its pool, its trace, and what can go wrong."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from tpo_modules.drawing import Drawn, TraceEntry, jsonable
from tpo_modules.drive import Announce, Score, Work
from tpo_modules.errors import NoCandidateError, RewardError, TPOError, explain
from tpo_modules.pool import Candidate, CandidatePool
from tpo_modules.scorers.base import Query, Response, Reward
from tpo_modules.scorers.function import as_reward
from tpo_modules.selection import Pair, Selection
from tpo_modules.step import Step
from tpo_modules.trace import (
    Call,
    Completion,
    Failure,
    Scoring,
    SelectedPair,
    TPOTrace,
    finite_or_none,
)

if TYPE_CHECKING:
    from tpo_modules.policy import PolicyModule

OFFERED_PAIR = (
    "chosen_response",
    "rejected_response",
    "chosen_reward",
    "rejected_reward",
    "reward_gap",
    "chosen_feedback",
    "rejected_feedback",
    "ranked_responses",
    "past_gradients",
    "step",
)
"""What the loop offers to every step but the policy, beside the policy's inputs and ``query``."""

NO_REJECTED = "(There is no second answer: every answer so far reads the same as the first.)"
"""What ``rejected_response`` says while the pool holds a single text, as it does at width 1."""


@dataclass(frozen=True, slots=True)
class Event:
    """A record as it is made, for progress and journals.

    Attributes:
        trace: The trace so far, the record included.
        record: What is new in it.
        replayed: Whether it was taken over from the trace that this run resumes.
    """

    trace: TPOTrace
    record: Call | Scoring | Failure
    replayed: bool


Observer = Callable[[Event], None]

_observers: ContextVar[tuple[Observer, ...]] = ContextVar("tpo_observers", default=())


@contextlib.contextmanager
def observe(observer: Observer) -> Generator[None]:
    """Call ``observer`` with every `Event` of the runs started inside the block, in their threads or tasks.

    An observer that raises ends the run it was told of.
    """
    token = _observers.set((*_observers.get(), observer))
    try:
        yield
    finally:
        _observers.reset(token)


class StepFailedError(Exception):
    """A step that the loop cannot go on without gave nothing usable; recorded already."""


class Run:
    """One query's run: what the loop of a `PolicyModule` acts on.

    Args:
        module: The module whose loop it is.
        query: The query, with the policy's inputs.
        earlier: A trace to take recorded calls and scorings over from, instead of making them again.
    """

    def __init__(self, module: PolicyModule, query: Query, earlier: TPOTrace | None) -> None:
        self.module = module
        self.query = query
        self.pool = CandidatePool()
        self.trace = TPOTrace(
            method=module.method,
            label=module.label,
            query=str(query),
            inputs=jsonable(query.inputs),
            config=module.config(),
        )
        self.past_gradients: list[str] = []
        self._earlier = earlier
        self._replaying = False
        self._observers = _observers.get()
        self._outer_trace: list[TraceEntry] | None = dspy.settings.trace
        self._start = time.perf_counter()

    def sample(
        self, step: Step, number: int, values: Mapping[str, Any], parent: Candidate | None = None
    ) -> Work[None]:
        """Draw the module's width of samples from a step, score them, and add them to the pool.

        Raises:
            StepFailedError: Not one sample could be scored.
        """
        drawn = yield from self._draw(step, number, values, self.module.width)
        usable = self._usable(drawn.call, parent)
        rewards: list[Reward] = []
        if usable:
            rewards = yield from self._score(number, usable)
        added = self._add(number, usable, rewards, parent)
        if not added:
            raise StepFailedError(f"step {number} gave no response that could be scored")
        best = max(added, key=lambda candidate: candidate.reward)
        self._tell_optimizers(drawn.lines[usable_index(drawn.call, best)])
        rewards_text = " ".join(f"{candidate.reward:.2f}" for candidate in added)
        yield Announce(
            f"step {number}: rewards {rewards_text}, best so far {self.pool.chosen.reward:.2f}"
        )

    def ask(self, step: Step, number: int, values: Mapping[str, Any]) -> Work[str]:
        """Ask a critique step once for its text.

        Raises:
            StepFailedError: The call failed, or its text is empty.
        """
        drawn = yield from self._draw(step, number, values, 1)
        (completion,) = drawn.call.completions
        if not completion.text.strip():
            what = f"the {step.name} of step {number}"
            if drawn.call.failures:
                raise StepFailedError(f"{what} failed: {drawn.call.failures[-1].type}")
            self.fail(number, step.name, None, "EmptyResponse", _why_empty(completion))
            raise StepFailedError(f"{what} is empty")
        self._tell_optimizers(drawn.lines[0] if drawn.lines else [])
        return completion.text

    def select(self, selection: Selection, number: int) -> Pair:
        """Select the pair that a step compares.

        Raises:
            StepFailedError: The selection raised, or returned something that is no pair of candidates.
        """
        try:
            given: Any = selection(self.pool)
            chosen, rejected = given
            if not isinstance(chosen, Candidate) or not isinstance(rejected, Candidate | None):
                raise TypeError(f"expected a Pair of candidates, got {given!r:.200}")
        except Exception as error:
            self.fail(number, "selection", None, type(error).__name__, explain(error))
            raise StepFailedError(
                f"the selection failed at step {number}: {explain(error)}"
            ) from error
        return Pair(chosen, rejected)

    def offer(self, pair: Pair, number: int) -> dict[str, Any]:
        """Collect everything that the loop offers to a step after the first round, by name."""
        chosen, rejected = pair
        self.trace.pairs.append(
            SelectedPair(
                step=number, chosen=chosen.index, rejected=rejected.index if rejected else None
            )
        )
        lowest = rejected.reward if rejected else chosen.reward
        return {
            **self.query.inputs,
            "query": str(self.query),
            "chosen_response": chosen.response,
            "rejected_response": rejected.response if rejected else NO_REJECTED,
            "chosen_reward": chosen.reward,
            "rejected_reward": lowest,
            "reward_gap": chosen.reward - lowest,
            "chosen_feedback": chosen.feedback or "",
            "rejected_feedback": (rejected.feedback if rejected else None) or "",
            "ranked_responses": [candidate.response for candidate in self.pool.ranked],
            "past_gradients": list(self.past_gradients),
            "step": number,
        }

    def fail(
        self, step: int, where: str, index: int | None, kind: str, message: str, response: str = ""
    ) -> None:
        """Record a failure."""
        failure = Failure(
            step=step,
            where=where,
            index=index,
            type=kind,
            message=message,
            response=response or None,
        )
        self._record(failure, replayed=self._replaying)

    def stop(self, reason: str) -> None:
        """Mark the run as stopped early, as its stop rule asked."""
        self.trace.status, self.trace.stop_reason = "stopped", reason

    def finish(self, failure: Exception | None = None) -> dspy.Prediction:
        """Close the trace and return the pool's best as a prediction.

        Raises:
            NoCandidateError: The pool is empty; or the first round's own `TPOError`.
        """
        self.trace.seconds = round(time.perf_counter() - self._start, 4)
        if failure is not None:
            self.trace.status, self.trace.stop_reason = "failed", str(failure)
        elif self.trace.status == "running":
            self.trace.status = "complete"
        if not len(self.pool):
            raise self._nothing(failure)
        best = self.pool.chosen
        fields = {
            **self.module.policy.restore(best.fields),
            self.module.policy.output: best.response,
            "reward": best.reward,
            "trace": self.trace,
        }
        return dspy.Prediction(**fields)

    def _nothing(self, failure: Exception | None) -> TPOError:
        if isinstance(failure, TPOError):
            return failure
        reasons = dict.fromkeys(f"{f.type}: {f.message}" for f in self.trace.failures)
        error = NoCandidateError(
            f"expected at least one scored response in the first round of {self.module.width}, got none: "
            + ("; ".join(reasons) or str(failure)),
            kinds=(f.type for f in self.trace.failures),
        )
        error.__cause__ = failure
        return error

    def _draw(self, step: Step, number: int, values: Mapping[str, Any], n: int) -> Work[Drawn]:
        call = self._recorded(self._earlier.calls if self._earlier else [], number, step.name)
        if call is not None and self._failed_at(call):
            call = None  # what a run failed at is tried again
        if call is not None:
            drawn = Drawn(call=call, lines=[[] for _ in call.completions])
        else:
            drawn = yield self.module.draw(step, number, values, n)
        self._record(drawn.call, replayed=call is not None)
        for failure in drawn.call.failures:
            self._record(failure, replayed=call is not None)
        return drawn

    def _failed_at(self, call: Call) -> bool:
        """Say whether this is the call that ended the earlier run."""
        assert self._earlier is not None  # noqa: S101  it is where the call comes from
        last = self._earlier.status == "failed" and call is self._earlier.calls[-1]
        return last and is_blank(call)

    def _score(self, number: int, usable: Sequence[_Usable]) -> Work[list[Reward]]:
        scorings = self._earlier.scorings if self._earlier else []
        recorded = next(
            (
                s
                for s in scorings
                if s.step == number and len(s.rewards) == len(usable) and not is_blank(s)
            ),
            None,
        )
        self._replaying = recorded is not None
        if recorded is None:
            recorded = yield from self._ask_scorer(number, usable)
            self._record(recorded, replayed=False)
        else:
            self._record(recorded, replayed=True)
        columns = zip(recorded.rewards, recorded.feedback, recorded.notes, strict=True)
        return [Reward(math.nan if r is None else r, f, n) for r, f, n in columns]

    def _ask_scorer(self, number: int, usable: Sequence[_Usable]) -> Work[Scoring]:
        """Ask for the rewards of responses that are new to the pool; equal ones are asked for once."""
        start = time.perf_counter()
        known = {u.key: self._known_reward(u) for u in usable}
        new = [key for key, reward in known.items() if reward is None]
        first = {u.key: u for u in reversed(usable)}
        if new:
            responses = [first[key].to_response(self.module.policy) for key in new]
            try:
                raw = yield Score(self.module.scorer, self.query, responses)
                known.update(zip(new, check_rewards(raw, len(new)), strict=True))
            except Exception as error:
                self.fail(number, "score", None, type(error).__name__, explain(error))
                if isinstance(error, TPOError):
                    raise
                raise StepFailedError(
                    f"the scorer failed at step {number}: {explain(error)}"
                ) from error
        rewards = [_or_nan(known[u.key]) for u in usable]
        return Scoring(
            step=number,
            rewards=[finite_or_none(reward) for reward in rewards],
            feedback=[reward.feedback for reward in rewards],
            notes=[reward.notes for reward in rewards],
            asked=len(new),
            seconds=round(time.perf_counter() - start, 4),
        )

    def _known_reward(self, usable: _Usable) -> Reward | None:
        candidate = self.pool.find(usable.completion.text, usable.fields)
        return candidate and Reward(candidate.reward, candidate.feedback, candidate.notes)

    def _usable(self, call: Call, parent: Candidate | None) -> list[_Usable]:
        failed = {failure.index for failure in call.failures} | (
            {0} if call.failures and len(call.completions) == 1 else set()
        )
        usable: list[_Usable] = []
        for index, completion in enumerate(call.completions):
            if index in failed:
                continue
            if not completion.text.strip():
                self.fail(call.step, call.name, index, "EmptyResponse", _why_empty(completion))
                continue
            fields = parent.fields if parent else completion.fields
            usable.append(_Usable(index=index, completion=completion, fields=fields))
        return usable

    def _add(
        self,
        number: int,
        usable: Sequence[_Usable],
        rewards: Sequence[Reward],
        parent: Candidate | None,
    ) -> list[Candidate]:
        added: list[Candidate] = []
        for sample, reward in zip(usable, rewards, strict=True):
            if not math.isfinite(reward):
                self.fail(
                    number,
                    "score",
                    sample.index,
                    "NonFiniteReward",
                    "expected a finite reward, got NaN or infinity; the response was left out of the pool"
                    + "".join(f" ({note})" for note in reward.notes),
                    sample.completion.text,
                )
                continue
            candidate = sample.candidate(len(self.pool) + len(added), number, reward, parent)
            added.append(candidate)
        self.pool.add(added)
        self.trace.candidates.extend(added)
        return added

    def _recorded(self, calls: Sequence[Call], number: int, name: str) -> Call | None:
        return next((call for call in calls if (call.step, call.name) == (number, name)), None)

    def _record(self, record: Call | Scoring | Failure, *, replayed: bool) -> None:
        self._replaying = replayed
        if isinstance(record, Call):
            self.trace.calls.append(record)
        elif isinstance(record, Scoring):
            self.trace.scorings.append(record)
        else:
            self.trace.failures.append(record)
        for observer in self._observers:
            observer(Event(trace=self.trace, record=record, replayed=replayed))

    def _tell_optimizers(self, lines: Sequence[TraceEntry]) -> None:
        if self._outer_trace is not None:
            self._outer_trace.extend(lines)
            excess = len(self._outer_trace) - dspy.settings.max_trace_size
            del self._outer_trace[: max(0, excess)]


@dataclass(frozen=True, slots=True)
class _Usable:
    """A completion that can be scored, and the policy's other output fields that go with it."""

    index: int
    completion: Completion
    fields: dict[str, Any]

    @property
    def key(self) -> str:
        return repr((self.completion.text, sorted(self.fields.items())))

    def to_response(self, policy: Step) -> Response:
        text = self.completion.text
        fields = {**policy.restore(self.fields), policy.output: text}
        return Response(text, dspy.Prediction(**fields))

    def candidate(
        self, index: int, step: int, reward: Reward, parent: Candidate | None
    ) -> Candidate:
        completion = self.completion
        same = parent is not None and completion.text.split() == parent.response.split()
        return Candidate(
            index=index,
            step=step,
            response=completion.text,
            reward=float(reward),
            fields=self.fields,
            parent=parent.index if parent else None,
            copies_parent=same,
            finish_reason=completion.finish_reason,
            tokens=completion.tokens,
            thinking=completion.thinking,
            feedback=reward.feedback,
            notes=reward.notes,
        )


def is_blank(record: Call | Scoring) -> bool:
    """Say whether a record holds nothing to go on with: no text, or no finite reward; it is made again."""
    if isinstance(record, Call):
        return not any(completion.text.strip() for completion in record.completions)
    return all(reward is None for reward in record.rewards)


def _or_nan(reward: Reward | None) -> Reward:
    return Reward(math.nan) if reward is None else reward  # a reward of 0.0 is a reward


def check_rewards(rewards: Any, count: int) -> list[Reward]:
    """Check what a scorer returned.

    Raises:
        RewardError: It is no list, has another length than the responses, or holds something that is no number.
    """
    unordered = isinstance(rewards, str | bytes | Mapping | Set)
    if unordered or not hasattr(rewards, "__len__"):
        raise RewardError(
            f"expected a list of {count} rewards from the scorer, got {type(rewards).__name__}"
        )
    if len(rewards) != count:
        raise RewardError(
            f"expected one reward per response ({count}), in the same order, got {len(rewards)}"
        )
    return [as_reward(reward) for reward in rewards]


def usable_index(call: Call, candidate: Candidate) -> int:
    """Find which of a call's completions became a candidate (the first of equal ones)."""
    own = (
        candidate.parent is None
    )  # an updated candidate has its parent's other fields, not the update's
    return next(
        index
        for index, completion in enumerate(call.completions)
        if completion.text == candidate.response
        and (not own or completion.fields == candidate.fields)
    )


def _why_empty(completion: Completion) -> str:
    if completion.thinking and completion.finish_reason == "length":
        return "the token limit came before the end of the thinking block; raise max_tokens"
    if completion.finish_reason == "length":
        return "the token limit left no room for an answer; raise max_tokens"
    return "the LM returned an empty completion"
