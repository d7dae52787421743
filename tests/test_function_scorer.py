"""Functions as scorers: both forms, what they may return, and where they run."""

from __future__ import annotations

import asyncio
import functools
import math
import pickle
import threading
from collections.abc import Sequence
from typing import Any

import dspy
import pytest

from tpo_modules import FunctionScorer, Query, Response, Reward, TPOModule
from tpo_modules.errors import ConfigurationError, RewardError
from tpo_modules.scorers import as_scorer
from tpo_modules.testing import ScriptedLM


def text_form(query: str, response: str) -> float:
    return float(len(response))


def reward_fn(args: Any, pred: Any) -> float:
    return float(len(pred.response) + len(args["query"]))


def metric(example: Any, pred: Any, trace: Any = None) -> bool:
    return pred.response == example.query and trace is None


def gepa_metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None) -> dspy.Prediction:
    return dspy.Prediction(score=0.5, feedback=f"{gold.query}: {pred.response}")


async def async_form(query: str, response: str) -> float:
    await asyncio.sleep(0)
    return float(len(response))


class AsCallable:
    def __call__(self, query: str, response: str) -> float:
        return 2.0


def starred(*args: Any) -> float:
    return float(len(args))


@pytest.mark.parametrize(
    ("fn", "form", "rewards"),
    [
        (text_form, "text", [1.0, 2.0]),
        (reward_fn, "prediction", [2.0, 3.0]),
        (metric, "prediction", [1.0, 0.0]),
        (gepa_metric, "prediction", [0.5, 0.5]),
        (async_form, "text", [1.0, 2.0]),
        (AsCallable(), "text", [2.0, 2.0]),
        (functools.partial(text_form), "text", [1.0, 2.0]),
        (starred, "text", [2.0, 2.0]),
        (max, "text", None),
    ],
)
def test_forms(fn: Any, form: str, rewards: Any) -> None:
    scorer = FunctionScorer(fn)
    assert scorer.form == form
    if rewards is None:
        return
    assert scorer.score("q", ["q", "rr"]) == rewards
    assert asyncio.run(scorer.ascore("q", ["q", "rr"])) == rewards


def test_feedback_is_carried() -> None:
    (reward,) = FunctionScorer(gepa_metric).score("q", ["r"])
    assert isinstance(reward, Reward)
    assert reward.feedback == "q: r"
    copied = pickle.loads(pickle.dumps(reward))
    assert (copied, copied.feedback, copied.notes) == (0.5, "q: r", ())


@pytest.mark.parametrize(
    ("given", "feedback", "notes"),
    [
        (
            dspy.Prediction(score=1.0, feedback=["too long", "no source"]),
            "['too long', 'no source']",
            (),
        ),
        ({"score": 1.0, "feedback": {"missing": 2}}, "{'missing': 2}", ()),
        (Reward(1.0, feedback=None, notes=[3]), None, ("3",)),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_is_said_of_a_response_becomes_text(
    given: Any, feedback: str | None, notes: tuple[str, ...]
) -> None:
    lm = ScriptedLM(["yes"])

    def rate(query: str, response: str) -> Any:
        return given

    with dspy.context(lm=lm):
        trace = TPOModule(scorer=rate, depth=0, width=1)("Why?").trace
    assert [(c.reward, c.feedback, c.notes) for c in trace.candidates] == [(1.0, feedback, notes)]


def test_the_form_can_be_said() -> None:
    def odd(pred: Any, answer: Any) -> float:
        return float(hasattr(answer, "response"))

    assert FunctionScorer(odd).score("q", ["r"]) == [0.0]
    assert FunctionScorer(odd, form="prediction").score("q", ["r"]) == [1.0]


def test_a_metric_sees_the_policys_inputs_and_outputs() -> None:
    seen: list[Any] = []

    def look(example: Any, pred: Any) -> float:
        seen.append((dict(example), dict(example.inputs()), dict(pred)))
        return 1.0

    inputs = {"question": "Why?", "context": "So."}
    query = Query("Question:\nWhy?", inputs=inputs)
    response = Response("Because.", dspy.Prediction(answer="Because.", title="T"))
    assert FunctionScorer(look).score(query, [response]) == [1.0]
    assert seen == [(inputs, inputs, {"answer": "Because.", "title": "T"})]


@pytest.mark.parametrize("value", [None, "good", "7", [1.0], {}, {"feedback": "x"}, object()])
def test_what_is_no_number_is_refused(value: Any) -> None:
    def fn(query: str, response: str) -> Any:
        return value

    with pytest.raises(RewardError, match="expected a number as the reward of a response, got"):
        FunctionScorer(fn).score("q", ["r"])


def picky(query: str, response: str) -> Any:
    return {"good": 1.0, "none": None}[response]


async def picky_async(query: str, response: str) -> Any:
    return picky(query, response)


@pytest.mark.parametrize("fn", [picky, picky_async])
def test_a_function_that_fails_for_some_responses_loses_only_those(fn: Any) -> None:
    scorer = FunctionScorer(fn)
    for rewards in (
        scorer.score("q", ["bad", "good", "none"]),
        asyncio.run(scorer.ascore("q", ["bad", "good", "none"])),
    ):
        assert [math.isnan(reward) for reward in rewards] == [True, False, True]
        first, _, last = rewards
        assert isinstance(first, Reward)
        assert isinstance(last, Reward)
        assert first.notes == ("KeyError: 'bad'",)
        assert last.notes[0].startswith("RewardError: expected a number as the reward")
    with pytest.raises(KeyError, match="bad"):
        scorer.score("q", ["bad", "bad"])
    with pytest.raises(KeyError, match="bad"):
        asyncio.run(scorer.ascore("q", ["bad", "bad"]))
    module = TPOModule(scorer=fn, width=3, depth=0, native_n=True)
    with dspy.context(lm=ScriptedLM(["bad", "good", "none"])):
        trace = module("Why?").trace
    assert [c.response for c in trace.candidates] == ["good"]
    assert "(KeyError: 'bad')" in trace.failures[0].message


@pytest.mark.parametrize(("value", "reward"), [(True, 1.0), (3, 3.0), ({"score": 0.5}, 0.5)])
def test_what_is_a_number_is_taken(value: Any, reward: float) -> None:
    def fn(query: str, response: str) -> Any:
        return value

    assert FunctionScorer(fn).score("q", ["r"]) == [reward]


@pytest.mark.parametrize("scorer", [None, 1.0, "bundled", FunctionScorer, object()])
def test_what_is_no_scorer_is_refused(scorer: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected a scorer"):
        as_scorer(scorer)


async def test_a_metric_that_asks_an_lm_keeps_dspys_settings() -> None:
    def judge(query: str, response: str) -> float:
        assert dspy.settings.trace is None
        return float(dspy.Predict("response -> score: float")(response=response).score)

    lm = ScriptedLM(
        lambda prompt: "[[ ## score ## ]]\n4\n\n[[ ## completed ## ]]" if "score" in prompt else "x"
    )
    module = TPOModule(scorer=judge, width=2, depth=1)
    with dspy.context(lm=lm, trace=[]):
        prediction = await module.acall("Why?")
        assert len(dspy.settings.trace) == 4
    assert prediction.reward == 4.0


class Nested:
    """A scorer with a blocking method alone, around an async function."""

    def __init__(self) -> None:
        self.inner = FunctionScorer(async_form)

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        return self.inner.score(query, responses)


@pytest.mark.timeout(60)
async def test_async_functions_inside_blocking_scorers_do_not_lock_up() -> None:
    serials = iter(range(1000))
    module = TPOModule(scorer=Nested(), width=1, depth=0)
    with dspy.context(lm=ScriptedLM(lambda prompt: f"r {next(serials)}")):
        found = await asyncio.gather(*(module.acall(f"Why {i}?") for i in range(24)))
    assert len(found) == 24


async def test_a_blocking_scorer_does_not_hold_up_the_event_loop() -> None:
    started, go = threading.Event(), threading.Event()

    def slow(query: str, response: str) -> float:
        started.set()
        assert go.wait(20)
        return 1.0

    with dspy.context(lm=ScriptedLM(["r"])):
        task = asyncio.create_task(TPOModule(scorer=slow, width=1, depth=0).acall("Why?"))
        while not started.is_set():
            await asyncio.sleep(0.01)
        assert not task.done()
        go.set()
        assert (await task).reward == 1.0


def test_a_query_is_text_that_knows_more() -> None:
    query = Query("Why?", inputs={"question": "Why?"})
    assert query == "Why?"
    assert query.messages == ({"role": "user", "content": "Why?"},)
    with pytest.raises(TypeError):
        query.inputs["question"] = "x"  # type: ignore[index]
    copied = pickle.loads(pickle.dumps(query))
    assert (copied, copied.inputs, copied.messages) == (query, query.inputs, query.messages)
