"""`Outcome`: what one method made of one query, and what that cost, read off a trace."""

from __future__ import annotations

from dataclasses import dataclass

from tpo_modules.pool import Candidate
from tpo_modules.trace import Call, Completion, TPOTrace


@dataclass(frozen=True, slots=True)
class Drawn:
    """One response that was drawn, whether or not it could be scored.

    Attributes:
        call: The call that drew it.
        completion: What came.
        candidate: The candidate it became, or None.
    """

    call: Call
    completion: Completion
    candidate: Candidate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one method made of one query.

    Attributes:
        id: The query's id.
        response: The method's response.
        reward: By the scorer that the method optimised.
        judge: By the scorer that nobody optimised, where there is one.
        tokens: Tokens generated: every sequence, critiques included, cached or not.
        prompt_tokens: Prompt tokens as the endpoint counted them, cached calls not included.
        requests: Requests sent or answered from the cache.
        samples: Responses drawn.
        seconds: Of its calls and scorings, one after the other; while many queries share a server each call
            waits for others, so compare only methods of one run.
        length: Of the response, in words.
        cut_short: Whether a failure ended its run before all it was to do was done: the response is then that of
            a shorter run, of TPO without a critique that of best-of-N.
    """

    id: str
    response: str
    reward: float
    judge: float | None = None
    tokens: int
    prompt_tokens: int
    requests: int
    samples: int
    seconds: float
    length: int
    cut_short: bool = False


def drawn_responses(trace: TPOTrace) -> list[Drawn]:
    """List every response of a trace in the order of drawing, the lost ones too."""
    drawn: list[Drawn] = []
    for call in trace.calls:
        if call.name not in ("policy", "update"):
            continue
        scoring = next((s for s in trace.scorings if s.step == call.step), None)
        rewards = iter(scoring.rewards if scoring else ())
        candidates = iter([c for c in trace.candidates if c.step == call.step])
        for completion in call.completions:
            # A response with text was scored; one with a finite reward became a candidate.
            scored = next(rewards, None) if completion.text.strip() else None
            candidate = next(candidates, None) if scored is not None else None
            drawn.append(Drawn(call, completion, candidate))
    return drawn


def outcome_of(identity: str, trace: TPOTrace, *, last: bool = False) -> Outcome:
    """Sum up a whole run; ``last`` takes the response drawn last in place of the best."""
    pool = trace.pool
    best = pool[len(pool) - 1] if last else pool.chosen
    return Outcome(
        id=identity,
        response=best.response,
        reward=best.reward,
        tokens=trace.generated_tokens,
        prompt_tokens=trace.usage.get("prompt_tokens", 0),
        requests=sum(call.requests for call in trace.calls),
        samples=len(drawn_responses(trace)),
        seconds=sum(record.seconds for record in (*trace.calls, *trace.scorings)),
        length=words(best.response),
        cut_short=trace.status == "failed",
    )


def outcome_of_first(
    identity: str, trace: TPOTrace, *, samples: int | None = None, tokens: int | None = None
) -> Outcome | None:
    """Sum up best-of-N over a run's first samples.

    Args:
        identity: The query's id.
        trace: A best-of-N run.
        samples: How many samples; more only until one could be scored.
        tokens: How many generated tokens, at most: the sample that would go over it is left out.

    Returns:
        None if not one sample of the run could be scored.
    """
    taken: list[Drawn] = []
    spent = 0
    drawn = drawn_responses(trace)
    for one in drawn:
        spent += one.completion.tokens or 0
        full = len(taken) == samples or (tokens is not None and spent > tokens)
        if full and any(t.candidate for t in taken):
            break
        taken.append(one)
    candidates = [one.candidate for one in taken if one.candidate is not None]
    if not candidates:
        return None
    best = max(candidates, key=lambda candidate: candidate.reward)
    calls = {one.call.step: one.call for one in taken}
    share = {
        step: sum(one.call.step == step for one in taken) / len(call.completions)
        for step, call in calls.items()
    }
    scorings = [scoring for scoring in trace.scorings if scoring.step in calls]
    return Outcome(
        id=identity,
        response=best.response,
        reward=best.reward,
        tokens=sum(one.completion.tokens or 0 for one in taken),
        prompt_tokens=sum(call.usage.get("prompt_tokens", 0) for call in calls.values()),
        requests=sum(
            min(c.requests, round(share[s] * len(c.completions))) for s, c in calls.items()
        ),
        samples=len(taken),
        seconds=sum(call.seconds for call in calls.values()) + sum(s.seconds for s in scorings),
        length=words(best.response),
        cut_short=trace.status == "failed" and len(taken) == len(drawn) != samples,
    )


def first_sample_only(trace: TPOTrace) -> TPOTrace | None:
    """Cut a first round to its first usable sample: where a method of width 1 starts from; None if none is."""
    for index, one in enumerate(drawn_responses(trace)):
        if one.call.step > 0:
            break
        if one.candidate is None:
            continue
        scoring = next(s for s in trace.scorings if s.step == 0)
        place = sum(bool(c.text.strip()) for c in one.call.completions[:index])
        usage = {**one.call.usage, "completion_tokens": one.completion.tokens or 0}
        kept = slice(place, place + 1)
        call = one.call.model_copy(
            update={"completions": [one.completion], "failures": [], "requests": 1, "usage": usage}
        )
        scored = scoring.model_copy(
            update={
                "rewards": scoring.rewards[kept],
                "feedback": scoring.feedback[kept],
                "notes": scoring.notes[kept],
                "asked": 1,
            }
        )
        return trace.model_copy(
            update={"calls": [call], "scorings": [scored], "candidates": [], "failures": []}
        )
    return None


def words(text: str) -> int:
    """Count the words of a response."""
    return len(text.split())
