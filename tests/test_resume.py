"""A trace is a journal: cut anywhere, the continued run equals the uncut one and repeats nothing."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest

from signatures import RewardAwareLoss
from tpo_modules import BestOfNModule, Event, RevisionModule, StopRule, TPOModule, TPOTrace, observe
from tpo_modules.errors import TraceError
from tpo_modules.testing import Reply, ScriptedLM
from tpo_modules.trace import Call, Scoring


def of_prompt(salt: str = "") -> Callable[[str], Any]:
    """Reply by how often a prompt was seen, so that the n-th sample of a prompt is always the same."""
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def reply(prompt: str) -> Any:
        with lock:
            number = seen[prompt] = seen.get(prompt, -1) + 1
        return Reply(f"{salt}{len(prompt)}.{number}", tokens=3)

    return reply


class Rewards:
    """Rewards by text, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __repr__(self) -> str:
        return "Rewards()"

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        self.asked += [str(response) for response in responses]
        return [float(sum(map(ord, response)) % 17) for response in responses]


def module(kind: Any = None, **options: Any) -> Any:
    kind = kind or TPOModule
    own: dict[str, Any] = {"depth": 2} if kind is not BestOfNModule else {}
    return kind(scorer=Rewards(), width=3, native_n=True, **{**own, **options})


def journal(work: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Run something and keep the trace as JSON after every record."""
    lines: list[str] = []

    def keep(event: Event) -> None:
        lines.append(event.trace.model_dump_json())

    with observe(keep):
        result = work()
    return result, lines


def essence(trace: TPOTrace) -> dict[str, Any]:
    """Return everything in a trace but the clock."""
    found = trace.model_dump()
    found["seconds"] = 0
    for record in (*found["calls"], *found["scorings"]):
        record["seconds"] = 0
    return found


KINDS = [
    (TPOModule, {}),
    (RevisionModule, {}),
    (BestOfNModule, {}),
    (TPOModule, {"gradient": None, "loss": RewardAwareLoss, "selection": "median"}),
    (TPOModule, {"stop": StopRule(token_budget=12), "depth": 4}),
    (TPOModule, {"policy": "question, context -> answer, title", "response_field": "answer"}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_run_cut_after_any_record_continues_to_the_same_end(
    kind: Any, options: dict[str, Any], way: str
) -> None:
    inputs = {"question": "Why?", "context": "So."} if "policy" in options else {"query": "Why?"}
    full = module(kind, **options)
    with dspy.context(lm=scripted(options)):
        whole, lines = journal(lambda: full(**inputs))
    assert len(lines) == len(whole.trace.calls) + len(whole.trace.scorings) + len(
        whole.trace.failures
    )
    for line in lines:
        cut = TPOTrace.from_json(line)
        rest, lm = module(kind, **options), scripted(options, skip=cut)
        with dspy.context(lm=lm):
            again = rest.resume(cut) if way == "sync" else asyncio.run(rest.aresume(cut))
        assert essence(again.trace) == essence(whole.trace)
        assert (again.reward, dict(again)["trace"].status) == (whole.reward, whole.trace.status)
        made = sum(len(c.completions) for c in whole.trace.calls[len(cut.calls) :])
        assert len(lm.requests) == made
        assert len(rest.scorer.asked) == sum(
            s.asked for s in whole.trace.scorings[len(cut.scorings) :]
        )


def scripted(options: dict[str, Any], skip: TPOTrace | None = None) -> ScriptedLM:
    """Make the LM of a run, as it is after the calls of a trace."""
    reply = of_prompt()

    def says(prompt: str) -> Any:
        said = reply(prompt)
        if "[[ ## answer ## ]]" in prompt:
            return (
                f"[[ ## answer ## ]]\n{said.text}\n\n[[ ## title ## ]]\nT\n\n[[ ## completed ## ]]"
            )
        return said

    for call in skip.calls if skip else []:
        assert call.messages is not None
        for _ in call.completions:
            says(call.messages[-1]["content"])
    return ScriptedLM(says)


class Rough(Rewards):
    """Gives NaN for every third text, so that some candidates fail."""

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        return [
            math.nan if response.endswith("1") else reward
            for response, reward in zip(responses, super().score(query, responses), strict=True)
        ]


def rough_lm(skip: TPOTrace | None = None) -> ScriptedLM:
    """An LM whose second sample is empty, and whose third fails in the first round."""
    reply = of_prompt()

    def says(prompt: str) -> Any:
        said = reply(prompt)
        return Reply("", finish_reason="length") if said.text.endswith(".2") else said

    for call in skip.calls if skip else []:
        assert call.messages is not None
        for _ in call.completions:
            says(call.messages[-1]["content"])
    return ScriptedLM(says)


def test_failed_candidates_are_continued_too() -> None:
    def make() -> TPOModule:
        return TPOModule(scorer=Rough(), width=4, depth=2, native_n=True)

    with dspy.context(lm=rough_lm()):
        whole, lines = journal(lambda: make()("Why?"))
    assert {f.type for f in whole.trace.failures} == {"EmptyResponse", "NonFiniteReward"}
    assert 0 < len(whole.trace.candidates) < 12
    for line in lines:
        cut = TPOTrace.from_json(line)
        with dspy.context(lm=rough_lm(cut)):
            assert essence(make().resume(cut).trace) == essence(whole.trace)


def test_a_finished_trace_replays_without_any_call() -> None:
    with dspy.context(lm=scripted({})):
        whole = module()("Why?")
    events: list[Event] = []
    rest, lm = module(), ScriptedLM([])
    with dspy.context(lm=lm), observe(events.append):
        again = rest.resume(TPOTrace.from_json(whole.trace.model_dump_json()))
    assert essence(again.trace) == essence(whole.trace)
    assert lm.requests == []
    assert rest.scorer.asked == []
    assert all(event.replayed for event in events)


def test_records_taken_over_are_told_from_new_ones() -> None:
    with dspy.context(lm=rough_lm()):
        scorer = Rough()
        _, lines = journal(
            lambda: TPOModule(scorer=scorer, width=4, depth=1, native_n=True)("Why?")
        )
    events: list[Event] = []
    for line in lines:
        cut = TPOTrace.from_json(line)
        events.clear()
        with dspy.context(lm=rough_lm(cut)), observe(events.append):
            TPOModule(scorer=Rough(), width=4, depth=1, native_n=True).resume(cut)
        replayed = [event.record for event in events if event.replayed]
        assert [r for r in replayed if isinstance(r, Call)] == cut.calls
        assert [r for r in replayed if isinstance(r, Scoring)] == cut.scorings
        assert [event.replayed for event in events] == sorted(
            (event.replayed for event in events), reverse=True
        )


def test_a_larger_depth_extends_a_run() -> None:
    with dspy.context(lm=scripted({})):
        short = module(depth=1)("Why?")
    with dspy.context(lm=scripted({})):
        long = module(depth=3)("Why?")
    rest, lm = module(depth=3), scripted({}, skip=short.trace)
    with dspy.context(lm=lm):
        extended = rest.resume(short.trace)
    assert essence(extended.trace) == essence(long.trace)
    assert len(lm.requests) == 2 * (2 + 3)
    assert extended.trace.label == "D3-N3"


def test_a_run_that_failed_is_tried_again_where_it_failed() -> None:
    def fails_at(number: int) -> Callable[[str], Any]:
        reply, serial = of_prompt(), itertools.count()

        def says(prompt: str) -> Any:
            said = reply(prompt)
            return dspy.LMServerError("gone") if next(serial) == number else said

        return says

    with dspy.context(lm=scripted({})):
        whole = module()("Why?")
    with dspy.context(lm=ScriptedLM(fails_at(4))):
        failed = module()("Why?")
    assert failed.trace.status == "failed"
    assert failed.trace.failures[0].where == "gradient"
    cut = TPOTrace.from_json(failed.trace.model_dump_json())
    known = cut.model_copy(update={"calls": cut.calls[:-1]})
    lm = scripted({}, skip=known)
    with dspy.context(lm=lm):
        again = module().resume(cut)
    assert essence(again.trace) == essence(whole.trace)
    assert len(lm.requests) == 1 + 3 + 2 + 3


def flat(query: str, response: str) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"width": 4}, "width: 3 there, 4 here"),
        ({"seed": 1}, "seed: None there, 1 here"),
        ({"loss": RewardAwareLoss}, "prompts: "),
        ({"gradient": None}, "prompts: "),
        ({"selection": "median"}, "selection: 'extreme' there, 'median' here"),
        ({"stop": StopRule(patience=1)}, "stop: "),
        ({"native_n": False}, "native_n: True there, False here"),
        ({"scorer": flat}, "scorer: 'Rewards()' there"),
    ],
)
def test_another_configuration_is_refused_by_its_differences(
    options: dict[str, Any], named: str
) -> None:
    with dspy.context(lm=scripted({})):
        trace = module(depth=1)("Why?").trace
    given: dict[str, Any] = {"scorer": Rewards(), "width": 3, "native_n": True, **options}
    other, lm = TPOModule(**given), ScriptedLM([])
    with dspy.context(lm=lm), pytest.raises(TraceError) as caught:
        other.resume(trace)
    assert named in str(caught.value)
    assert "depth" not in str(caught.value)


def test_another_method_or_lm_is_refused() -> None:
    with dspy.context(lm=scripted({})):
        trace = module(depth=1)("Why?").trace
        with pytest.raises(TraceError, match="method: 'tpo' there, 'revision' here"):
            module(RevisionModule).resume(trace)
    with (
        dspy.context(lm=ScriptedLM([], model="other/lm")),
        pytest.raises(TraceError, match="prompts: "),
    ):
        module().resume(trace)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 2}', b"\xff"])
def test_what_is_no_trace_is_refused(text: str | bytes) -> None:
    with pytest.raises(TraceError, match="expected a TPO trace of version 1 as JSON"):
        TPOTrace.from_json(text)


def test_typed_inputs_come_back_from_the_trace() -> None:
    history = dspy.History(messages=[{"role": "user", "content": "Hi"}])

    def make() -> BestOfNModule:
        return BestOfNModule(
            "history: dspy.History, facts: list[str], question -> answer",
            scorer=Rewards(), width=2, native_n=True,
        )  # fmt: skip

    with dspy.context(lm=scripted({})):
        whole = make()(question="Why?", facts=["a", "b"], history=history)
    cut = TPOTrace.from_json(whole.trace.model_dump_json()).model_copy(
        update={"calls": [], "scorings": []}
    )
    with dspy.context(lm=scripted({})):
        again = make().resume(cut)
    assert essence(again.trace) == essence(whole.trace)
