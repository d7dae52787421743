"""What goes wrong with an LM, a scorer or an endpoint: recorded, explained, and survived where it can be."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest
from fake_openai import LM_CLASSES, Body, Choice, Endpoint, Fault, fake_openai

from tpo_modules import BestOfNModule, Reward, TPOModule, TPOTrace
from tpo_modules.errors import NoCandidateError, RewardError, ScorerError
from tpo_modules.testing import Reply, ScriptedLM, TableScorer

LENGTHS = {"short": 1.0, "middle": 2.0, "long": 3.0, "longest": 4.0}


def run(module: dspy.Module, lm: Any, query: str = "Why?") -> dspy.Prediction:
    with dspy.context(lm=lm):
        return module(query)


def by_step(**replies: Sequence[Any]) -> Callable[[str], Any]:
    """Reply by the step that asks: each step has its own replies, in order."""
    left = {name: iter(replies.get(name, ())) for name in ("policy", "loss", "gradient", "update")}
    lock = threading.Lock()

    def reply(prompt: str) -> Any:
        if "how to change the draft" in prompt:
            name = "update"
        elif "the review):" in prompt:
            name = "gradient"
        else:
            name = "loss" if "worse grade" in prompt else "policy"
        with lock:
            return next(left[name])

    return reply


def kinds(trace: TPOTrace) -> list[tuple[int, str, int | None, str]]:
    return [(f.step, f.where, f.index, f.type) for f in trace.failures]


def round_trip(trace: TPOTrace) -> None:
    assert TPOTrace.from_json(trace.model_dump_json()) == trace


# --- single candidates


def test_a_failing_candidate_costs_only_itself() -> None:
    lm = ScriptedLM(by_step(policy=["short", dspy.LMServerError("boom"), "long"]))
    prediction = run(BestOfNModule(scorer=TableScorer(LENGTHS), width=3), lm)
    trace = prediction.trace
    assert prediction.response == "long"
    assert trace.status == "complete"
    assert {c.response for c in trace.candidates} == {"short", "long"}
    (failure,) = trace.failures
    assert (failure.step, failure.where, failure.type) == (0, "policy", "LMServerError")
    assert "boom" in failure.message
    assert failure.index is not None
    assert trace.calls[0].completions[failure.index].text == ""
    round_trip(trace)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "the LM returned an empty completion"),
        (" \n ", "the LM returned an empty completion"),
        ("<think>hm</think>", "the LM returned an empty completion"),
        (Reply("", finish_reason="length"), "the token limit left no room"),
        (Reply("<think>hm, so", finish_reason="length"), "before the end of the thinking block"),
    ],
)
def test_an_empty_candidate_is_recorded_with_its_reason(reply: Any, why: str) -> None:
    lm = ScriptedLM(["short", reply, "long"])
    module = BestOfNModule(scorer=TableScorer(LENGTHS), width=3, native_n=True)
    prediction = run(module, lm)
    assert prediction.response == "long"
    assert kinds(prediction.trace) == [(0, "policy", 1, "EmptyResponse")]
    assert why in prediction.trace.failures[0].message
    assert [c.response for c in prediction.trace.candidates] == ["short", "long"]
    round_trip(prediction.trace)


def test_a_candidate_cut_at_the_token_limit_is_kept_and_marked() -> None:
    lm = ScriptedLM(["short", Reply("long", finish_reason="length")])
    module = BestOfNModule(scorer=TableScorer(LENGTHS), width=2, native_n=True)
    prediction = run(module, lm)
    assert [c.finish_reason for c in prediction.trace.candidates] == ["stop", "length"]
    assert prediction.response == "long"
    assert prediction.trace.failures == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, Reward(math.nan, notes=["cut"])])
def test_a_reward_that_is_not_finite_never_wins(bad: float) -> None:
    lm = ScriptedLM(["short", "long", "middle"])
    scorer = TableScorer({**LENGTHS, "long": bad})
    prediction = run(BestOfNModule(scorer=scorer, width=3, native_n=True), lm)
    assert prediction.response == "middle"
    assert kinds(prediction.trace) == [(0, "score", 1, "NonFiniteReward")]
    failure = prediction.trace.failures[0]
    assert failure.response == "long"
    assert ("(cut)" in failure.message) == isinstance(bad, Reward)
    assert prediction.trace.scorings[0].rewards == [1.0, None, 2.0]
    round_trip(prediction.trace)


def test_thinking_is_split_off_and_kept() -> None:
    lm = ScriptedLM(["<think>first\nthis</think>\n\nlong", "opened by the template</think>short"])
    prediction = run(BestOfNModule(scorer=TableScorer(LENGTHS), width=2, native_n=True), lm)
    assert [(c.response, c.thinking) for c in prediction.trace.candidates] == [
        ("long", "first\nthis"),
        ("short", "opened by the template"),
    ]


# --- steps that cannot go on


BOOM = dspy.LMServerError("boom")


@pytest.mark.parametrize(
    ("replies", "where", "kind", "reason"),
    [
        (
            {"loss": ["l", BOOM]},
            "loss",
            "LMServerError",
            "the loss of step 2 failed: LMServerError",
        ),
        ({"loss": ["l", ""]}, "loss", "EmptyResponse", "the loss of step 2 is empty"),
        ({"gradient": ["g", BOOM]}, "gradient", "LMServerError", "gradient of step 2 failed: LM"),
        ({"gradient": ["g", " "]}, "gradient", "EmptyResponse", "gradient of step 2 is empty"),
        (
            {"update": ["long", "short", "", ""]},
            "update",
            "EmptyResponse",
            "step 2 gave no response",
        ),
        ({"update": ["long", "short", BOOM, BOOM]}, "update", "LMServerError", "step 2 gave no"),
        ({"update": ["long", "short", "nan", "nan"]}, "score", "NonFiniteReward", "step 2 gave no"),
    ],
)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_step_that_cannot_go_on_returns_the_best_so_far(
    replies: dict[str, Any], where: str, kind: str, reason: str, way: str
) -> None:
    script = {
        "policy": ["middle", "short"],
        "loss": ["l", "l"],
        "gradient": ["g", "g"],
        "update": ["long", "short", "longest", "short"],
        **replies,
    }
    lm, scorer = ScriptedLM(by_step(**script)), TableScorer({**LENGTHS, "nan": math.nan})
    module = TPOModule(scorer=scorer, width=2, depth=4)
    if way == "sync":
        prediction = run(module, lm)
    else:
        with dspy.context(lm=lm):
            prediction = asyncio.run(module.acall("Why?"))
    assert (prediction.response, prediction.reward) == ("long", 3.0)
    trace = prediction.trace
    assert trace.status == "failed"
    assert reason in trace.stop_reason
    assert {(f.step, f.where, f.type) for f in trace.failures} == {(2, where, kind)}
    assert len(trace.candidates) == 4
    round_trip(trace)


def test_a_critique_cut_at_the_token_limit_is_used_and_marked() -> None:
    script = by_step(
        policy=["middle", "short"], loss=[Reply("half a re", finish_reason="length")],
        gradient=["g"], update=["long", "short"],
    )  # fmt: skip
    trace = run(TPOModule(scorer=TableScorer(LENGTHS), width=2, depth=1), ScriptedLM(script)).trace
    assert trace.status == "complete"
    assert trace.calls[1].completions[0].finish_reason == "length"


# --- scorers that fail


class Broken:
    """Scores well for ``good`` calls, then returns or raises what it was given."""

    def __init__(self, bad: Any, good: int = 0) -> None:
        self.bad, self.good = bad, good
        self.calls = 0

    def score(self, query: str, responses: Sequence[str]) -> Any:
        self.calls += 1
        if self.calls <= self.good:
            return [float(len(response)) for response in responses]
        if isinstance(self.bad, Exception):
            raise self.bad
        return self.bad(responses) if callable(self.bad) else self.bad


def too_few(responses: Sequence[str]) -> Any:
    return [1.0] * (len(responses) - 1)


def strings(responses: Sequence[str]) -> Any:
    return ["7.5"] * len(responses)


def nones(responses: Sequence[str]) -> Any:
    return [None] * len(responses)


def keys(responses: Sequence[str]) -> Any:
    return dict.fromkeys(range(len(responses)), 1.0)


def unordered(responses: Sequence[str]) -> Any:
    return {float(i) for i in range(len(responses))}


BAD_RETURNS: list[tuple[Any, type[Exception], str]] = [
    (too_few, RewardError, r"one reward per response \(2\), in the same order, got 1"),
    (strings, RewardError, "expected a number as the reward of a response, got '7.5'"),
    (nones, RewardError, "expected a number as the reward of a response, got None"),
    (keys, RewardError, "expected a list of 2 rewards from the scorer, got dict"),
    (unordered, RewardError, "expected a list of 2 rewards from the scorer, got set"),
    ("77", RewardError, "expected a list of 2 rewards from the scorer, got str"),
    (None, RewardError, "expected a list of 2 rewards from the scorer, got NoneType"),
    (1.0, RewardError, "expected a list of 2 rewards from the scorer, got float"),
    (ScorerError("the server is down"), ScorerError, "the server is down"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), BAD_RETURNS)
def test_a_broken_scorer_is_an_error_in_the_first_round(
    bad: Any, kind: type[Exception], message: str
) -> None:
    scorer = Broken(bad)
    with pytest.raises(kind, match=message):
        run(TPOModule(scorer=scorer, width=2), ScriptedLM(["long", "short"]))
    assert scorer.calls == 1


def test_a_scorer_that_raises_in_the_first_round_is_named() -> None:
    with pytest.raises(NoCandidateError, match="ZeroDivisionError: by zero") as caught:
        run(TPOModule(scorer=Broken(ZeroDivisionError("by zero")), width=2), ScriptedLM(["a", "b"]))
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)  # type: ignore[union-attr]


@pytest.mark.parametrize("bad", [*(bad for bad, _, _ in BAD_RETURNS), ZeroDivisionError("by zero")])
def test_a_scorer_that_breaks_later_costs_the_later_steps_only(bad: Any) -> None:
    script = by_step(policy=["long", "short"], loss=["l"], gradient=["g"], update=["x", "y"])
    prediction = run(TPOModule(scorer=Broken(bad, good=1), width=2), ScriptedLM(script))
    assert prediction.response == "short"
    assert prediction.trace.status == "failed"
    assert [(f.step, f.where) for f in prediction.trace.failures] == [(1, "score")]
    assert prediction.trace.failures[0].message in prediction.trace.stop_reason
    round_trip(prediction.trace)


@pytest.mark.parametrize(
    ("replies", "rewards", "why"),
    [
        (["", ""], {}, "EmptyResponse: the LM returned an empty completion"),
        ([BOOM, BOOM], {}, "LMServerError: boom"),
        (["a", "a"], {"a": math.nan}, "NonFiniteReward: expected a finite reward"),
        (["", BOOM], {}, "LMServerError: boom.*EmptyResponse"),
    ],
)
def test_an_empty_first_round_says_why(replies: Any, rewards: Any, why: str) -> None:
    module = TPOModule(scorer=TableScorer(rewards), width=2)
    with pytest.raises(NoCandidateError, match=why) as caught:
        run(module, ScriptedLM(by_step(policy=replies)))
    assert "in the first round of 2, got none" in str(caught.value)


# --- endpoints


@pytest.fixture(params=LM_CLASSES)
def lm_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything with each LM that takes ``n`` in one request."""
    monkeypatch.setattr(Endpoint, "lm_class", request.param)


def length(query: str, response: str) -> float:
    return float(len(response))


def always(fault: Fault) -> Callable[[Body, int], Fault | None]:
    return lambda body, number: fault


CONTEXT = (
    "This model's maximum context length is 4096 tokens. However, you requested 5120 tokens (4608 in the "
    "messages, 512 in the completion). Please reduce the length of the messages or completion."
)
VLLM_CONTEXT = (
    "This model's maximum context length is 4096 tokens. However, your request has 4196 input tokens. "
    "Please reduce the length of the input messages."
)
LLAMA_CONTEXT = (
    "request (4200 tokens) exceeds the available context size (4096 tokens), try increasing it"
)
FAULTS: list[tuple[Fault, list[str]]] = [
    (Fault(401, "Incorrect API key provided"), ["LMAuthError", "Incorrect API key", "check the API key"]),
    (Fault(429, "slow down", headers={"retry-after": "0"}), ["LMRateLimitError", "slow down", "in flight"]),
    (Fault(500, "out of memory"), ["LMServerError", "out of memory", "look at its log"]),
    (Fault(503, "overloaded"), ["LMServerError", "overloaded"]),
    (Fault(404, "model fake-model does not exist"), ["does not exist"]),
    (Fault(200, raw="<html>I am a proxy</html>"), ["JSON|Expecting value", "check that api_base is"]),
    (Fault(200, raw='{"choices": []}'), ["completion"]),
    (Fault(400, CONTEXT), ["1024 tokens too many", "shorten the query"]),
    (Fault(400, VLLM_CONTEXT), ["100 tokens too many"]),
    (Fault(400, LLAMA_CONTEXT), ["104 tokens too many"]),
]  # fmt: skip


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
@pytest.mark.parametrize("native_n", [True, False])
@pytest.mark.parametrize(("fault", "says"), FAULTS, ids=[f"{f.status}-{s[0]}" for f, s in FAULTS])
def test_an_endpoint_that_fails_is_explained(fault: Fault, says: list[str], native_n: bool) -> None:
    module = TPOModule(scorer=length, width=3, native_n=native_n)
    with fake_openai(fault=always(fault)) as endpoint, dspy.context(lm=endpoint.lm()):
        with pytest.raises(NoCandidateError) as caught:
            module("Why?")
        with pytest.raises(NoCandidateError) as also:
            asyncio.run(module.acall("Why?"))
    for text in says:
        assert re.search(text, str(caught.value))
        assert re.search(text, str(also.value))
    assert len(endpoint.requests) <= 2 * 4  # at once, that is, whatever the machine's speed
    assert len(str(caught.value)) < 1500


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
@pytest.mark.parametrize("native_n", [True, False])
def test_an_endpoint_that_hangs_ends_with_its_timeout(native_n: bool) -> None:
    module = BestOfNModule(scorer=length, width=3, native_n=native_n)
    start = time.perf_counter()
    with (
        fake_openai(fault=always(Fault(hang=30))) as endpoint,
        dspy.context(lm=endpoint.lm(timeout=0.5)),
        pytest.raises(NoCandidateError, match=r"timeout|endpoint is up"),
    ):
        module("Why?")
    assert time.perf_counter() - start < 25


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
@pytest.mark.parametrize("native_n", [True, False])
def test_an_endpoint_that_is_down_is_explained(native_n: bool) -> None:
    with fake_openai() as endpoint:
        lm = endpoint.lm()
    module = BestOfNModule(scorer=length, width=3, native_n=native_n)
    with dspy.context(lm=lm), pytest.raises(NoCandidateError, match="api_base is right"):
        module("Why?")


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
def test_retries_are_few() -> None:
    module = BestOfNModule(scorer=length, width=3)
    fault = always(Fault(429, "slow down", headers={"retry-after": "0"}))
    with (
        fake_openai(fault=fault) as endpoint,
        dspy.context(lm=endpoint.lm(num_retries=1)),
        pytest.raises(NoCandidateError),
    ):
        module("Why?")
    assert len(endpoint.requests) == 2


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
def test_an_endpoint_that_recovers_is_retried() -> None:
    def first_two_fail(body: Body, number: int) -> Fault | None:
        return Fault(503, "starting up", headers={"retry-after": "0"}) if number < 1 else None

    module = BestOfNModule(scorer=length, width=3)
    with fake_openai(fault=first_two_fail) as endpoint, dspy.context(lm=endpoint.lm(num_retries=2)):
        trace = module("Why?").trace
    assert len(trace.candidates) == 3
    assert len(endpoint.requests) == 2


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
@pytest.mark.parametrize("native_n", [True, False])
def test_an_endpoint_that_goes_down_later_costs_the_later_steps_only(native_n: bool) -> None:
    module = TPOModule(scorer=length, width=3, native_n=native_n)
    first = 1 if native_n else 3

    def dies(body: Body, number: int) -> Fault | None:
        return Fault(500, "gone") if number > first else None

    with fake_openai(fault=dies) as endpoint, dspy.context(lm=endpoint.lm()):
        prediction = module("Why?")
    assert prediction.response.startswith("answer")
    assert prediction.trace.status == "failed"
    assert [(f.step, f.where, f.type) for f in prediction.trace.failures] == [
        (1, "gradient", "LMServerError")
    ]


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
@pytest.mark.parametrize("native_n", [True, False])
def test_what_an_endpoint_says_of_each_sequence_is_kept(native_n: bool) -> None:
    said = itertools.cycle(
        [
            Choice("plain"),
            Choice(None),
            Choice("", finish_reason="length"),
            Choice("cut sho", finish_reason="length"),
            Choice("answer", reasoning="hidden thoughts"),
            Choice("half \ud83d"),
        ]
    )
    module = BestOfNModule(scorer=length, width=6, native_n=native_n)
    with fake_openai(lambda body, serial: next(said)) as endpoint, dspy.context(lm=endpoint.lm()):
        trace = module("Why?").trace
    found = {c.response: (c.finish_reason, c.thinking) for c in trace.candidates}
    assert found == {
        "plain": ("stop", None),
        "cut sho": ("length", None),
        "answer": ("stop", "hidden thoughts"),
        "half \ufffd": ("stop", None),
    }
    assert sorted(f.message for f in trace.failures) == [
        "the LM returned an empty completion",
        "the token limit left no room for an answer; raise max_tokens",
    ]
    round_trip(trace)
