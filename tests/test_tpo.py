"""The loop and its laws."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signatures import DraftFreeUpdate, FusedCritique, PoolUpdate, RewardAwareLoss, TextualLoss
from tpo_modules import (
    BestOfNModule,
    CandidatePool,
    Event,
    FunctionScorer,
    Pair,
    RevisionModule,
    Reward,
    Sampling,
    StopRule,
    TPOModule,
    observe,
)
from tpo_modules.errors import ConfigurationError, InputError, SignatureError
from tpo_modules.run import NO_REJECTED
from tpo_modules.testing import Reply, ScriptedLM, TableScorer


def numbered(prefix: str = "answer") -> Callable[[str], str]:
    """Reply something else every time, at any order of the requests."""
    serial, lock = itertools.count(), threading.Lock()

    def reply(prompt: str) -> str:
        with lock:
            return f"{prefix} {next(serial)}"

    return reply


def by_number(query: str, response: str) -> float:
    return float(response.rsplit(" ", 1)[-1])


def in_order(*texts: str) -> ScriptedLM:
    return ScriptedLM(list(texts))


def run(module: dspy.Module, lm: Any, query: str = "Why?") -> dspy.Prediction:
    with dspy.context(lm=lm):
        return module(query)


REWARDS = st.sampled_from([-1.0, 0.0, 0.5, 0.5000001, 2.0])
WORDS = st.sampled_from(
    ["red", "green", "blue", " blue ", "a longer answer", "<think>x</think> red"]
)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), depth=st.integers(0, 3), width=st.integers(1, 4))
@pytest.mark.parametrize("kind", [TPOModule, RevisionModule])
def test_state_laws(kind: type[TPOModule], data: st.DataObject, depth: int, width: int) -> None:
    texts = iter(data.draw(st.lists(WORDS, min_size=30, max_size=30)))
    rewards = {word: data.draw(REWARDS) for word in ("red", "green", "blue", "a longer answer")}
    scorer = TableScorer(rewards)
    lock = threading.Lock()

    def reply(prompt: str) -> str:
        with lock:
            return next(texts)

    pools: list[list[Any]] = []
    with observe(lambda event: pools.append(list(event.trace.candidates))):
        prediction = run(kind(scorer=scorer, depth=depth, width=width), ScriptedLM(reply))
    trace = prediction.trace
    pools.append(list(trace.candidates))

    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(pools))
    assert [c.index for c in trace.candidates] == list(range(width * (depth + 1)))
    assert [len(step) for step in trace.rewards_by_step] == [width] * (depth + 1)
    chosen = [trace.candidates[pair.chosen].reward for pair in trace.pairs]
    assert [*chosen, prediction.reward] == sorted([*chosen, prediction.reward])
    for pair in trace.pairs:
        seen = [c for c in trace.candidates if c.step < pair.step]
        assert trace.candidates[pair.chosen] == CandidatePool(seen).chosen
        assert trace.candidates[pair.chosen].reward == max(c.reward for c in seen)
        others = [c for c in seen if c.response != trace.candidates[pair.chosen].response]
        if others:
            assert pair.rejected is not None
            assert trace.candidates[pair.rejected].reward == min(c.reward for c in others)
        else:
            assert pair.rejected is None
    assert prediction.reward == max(c.reward for c in trace.candidates)
    assert rewards[prediction.response] == prediction.reward
    assert prediction.reward >= max(trace.rewards_by_step[0])
    asked = list(itertools.chain(*scorer.asked))
    assert len(asked) == len(set(asked)) == len({c.response for c in trace.candidates})
    assert trace.status == "complete"


@settings(deadline=None, max_examples=15)
@given(texts=st.lists(WORDS, min_size=3, max_size=3), rewards=st.tuples(*[REWARDS] * 4))
def test_depth_0_equals_best_of_n(texts: list[str], rewards: tuple[float, ...]) -> None:
    names = ("red", "green", "blue", "a longer answer")
    scorer = TableScorer(dict(zip(names, rewards, strict=True)))
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (TPOModule, {"depth": 0}),
        (RevisionModule, {"depth": 0}),
        (BestOfNModule, {}),
    ]
    found = [
        run(kind(scorer=scorer, width=3, native_n=True, **more), ScriptedLM(texts))
        for kind, more in kinds
    ]
    assert len({(p.response, p.reward) for p in found}) == 1
    assert found[0].trace.candidates == found[1].trace.candidates == found[2].trace.candidates
    assert [p.trace.label for p in found] == ["D0-N3"] * 3


def test_revision_never_shows_a_rejected_response() -> None:
    lm = ScriptedLM(numbered("marker"))
    trace = run(RevisionModule(scorer=by_number, width=3, depth=3), lm).trace
    texts = {c.index: c.response for c in trace.candidates}
    chosen = {pair.step: texts[pair.chosen] for pair in trace.pairs}
    for call in trace.calls:
        if call.step == 0:
            continue
        shown = "\n".join(m["content"] for m in call.messages)
        named = {t for t in texts.values() if f"{t}\n" in f"{shown}\n"}
        assert named == {chosen[call.step]}, call.name
        assert not any("rejected" in name or "ranked" in name for name in call.inputs)
    assert len(lm.prompts) == 3 + 3 * 5
    assert not any(NO_REJECTED in prompt for prompt in lm.prompts)


@pytest.mark.parametrize(
    "steps",
    [
        {"loss": TextualLoss},
        {"loss": RewardAwareLoss},
        {"loss": "query, reward_gap -> textual_loss"},
        {"gradient": "textual_loss, rejected_reward -> textual_gradient"},
        {"gradient": "textual_loss, rejected_feedback -> textual_gradient"},
        {"update": PoolUpdate},
        {"update": "rejected_response -> response"},
    ],
)
def test_revision_refuses_a_step_that_asks_for_a_rejected_response(steps: dict[str, Any]) -> None:
    with pytest.raises(SignatureError, match="not offered to it; offered are 'query'"):
        RevisionModule(scorer=by_number, **steps)


# --- ties, duplicates, one candidate, width 1


def test_a_tie_gives_the_first_best_and_the_last_worst() -> None:
    scorer = TableScorer({"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0})
    module = TPOModule(scorer=scorer, width=4, depth=1, native_n=True)
    lm = in_order("a", "c", "b", "d", "loss", "gradient", "a", "b", "c", "d")
    prediction = run(module, lm)
    (pair,) = prediction.trace.pairs
    assert (pair.chosen, pair.rejected) == (0, 3)
    assert prediction.response == "a"


def test_equal_rewards_still_give_two_different_responses() -> None:
    scorer = TableScorer(dict.fromkeys("abcdef", 0.0))
    trace = run(
        TPOModule(scorer=scorer, width=2, depth=1, native_n=True),
        in_order("a", "b", "loss", "gradient", "c", "d"),
    ).trace
    assert (trace.pairs[0].chosen, trace.pairs[0].rejected) == (0, 1)


def test_a_response_is_scored_once_however_often_it_comes() -> None:
    scorer = TableScorer({"a": 1.0, "b": Reward(0.0, feedback="dull"), "c": 2.0})
    lm = in_order("a", "b", "a", "loss", "gradient", "b", "c", "c")
    trace = run(TPOModule(scorer=scorer, width=3, depth=1, native_n=True), lm).trace
    assert scorer.asked == [["a", "b"], ["c"]]
    assert [s.asked for s in trace.scorings] == [2, 1]
    assert trace.rewards_by_step == [[1.0, 0.0, 1.0], [0.0, 2.0, 2.0]]
    assert [c.feedback for c in trace.candidates] == [None, "dull", None, "dull", None, None]


def test_a_step_of_known_responses_alone_asks_the_scorer_nothing() -> None:
    scorer = TableScorer({"a": 1.0, "b": 0.0})
    lm = in_order("a", "b", "loss", "gradient", "a ", "a\n")
    trace = run(TPOModule(scorer=scorer, width=2, depth=1, native_n=True), lm).trace
    assert scorer.asked == [["a", "b"]]
    assert trace.copied_updates == (2, 2)


def test_width_1_has_nothing_to_reject_and_says_so() -> None:
    lm = in_order("a", "loss", "gradient", "b")
    prediction = run(TPOModule(scorer=TableScorer({"a": 0.0, "b": 1.0}), width=1, depth=1), lm)
    assert prediction.trace.pairs[0].rejected is None
    assert prediction.trace.calls[1].inputs["rejected_response"] == NO_REJECTED
    assert NO_REJECTED in lm.prompts[1]
    assert prediction.response == "b"
    assert prediction.trace.label == "D1-N1"


# --- what the steps are shown


class SeesAll(dspy.Signature):
    """Say something."""

    query: str = dspy.InputField()
    question: str = dspy.InputField()
    context: list[str] = dspy.InputField()
    chosen_response: str = dspy.InputField()
    rejected_response: str = dspy.InputField()
    chosen_reward: float = dspy.InputField()
    rejected_reward: float = dspy.InputField()
    reward_gap: float = dspy.InputField()
    chosen_feedback: str = dspy.InputField()
    rejected_feedback: str = dspy.InputField()
    ranked_responses: list[str] = dspy.InputField()
    past_gradients: list[str] = dspy.InputField()
    step: int = dspy.InputField()
    textual_loss: str = dspy.InputField()
    textual_gradient: str = dspy.InputField()
    response: str = dspy.OutputField()


def test_every_offered_value_reaches_a_step_that_names_it() -> None:
    table = {
        "good": Reward(2.5, feedback="clear"),
        "bad": Reward(-1.0, feedback="wrong"),
        "new": 1.0,
        "newer": 0.5,
    }
    module = TPOModule(
        "question, context: list[str] -> answer",
        scorer=TableScorer(table), update=SeesAll, width=2, depth=2, native_n=True,
    )  # fmt: skip
    lm = in_order("good", "bad", "L1", "G1", "new", "newer", "L2", "G2", "good", "new")
    with dspy.context(lm=lm):
        trace = module(question="Why?", context=["one", "two"]).trace
    query = "Question:\nWhy?\n\nContext:\n[1]\none\n\n[2]\ntwo"
    first, second = (call.inputs for call in trace.calls if call.name == "update")
    assert first == {
        "query": query,
        "question": "Why?",
        "context": ["one", "two"],
        "chosen_response": "good",
        "rejected_response": "bad",
        "chosen_reward": 2.5,
        "rejected_reward": -1.0,
        "reward_gap": 3.5,
        "chosen_feedback": "clear",
        "rejected_feedback": "wrong",
        "ranked_responses": ["good", "bad"],
        "past_gradients": [],
        "step": 1,
        "textual_loss": "L1",
        "textual_gradient": "G1",
    }
    assert second["past_gradients"] == ["G1"]
    assert second["ranked_responses"] == ["good", "new", "newer", "bad"]
    assert second["step"] == 2


def test_a_step_that_asks_for_what_is_not_offered_is_refused_with_what_is() -> None:
    with pytest.raises(SignatureError) as caught:
        TPOModule(scorer=by_number, loss="query, chosen_answer, mood -> textual_loss")
    assert str(caught.value) == (
        "the loss step asks for 'chosen_answer', 'mood', which is not offered to it; offered are 'query', "
        "'chosen_response', 'rejected_response', 'chosen_reward', 'rejected_reward', 'reward_gap', "
        "'chosen_feedback', 'rejected_feedback', 'ranked_responses', 'past_gradients', 'step'. "
        "Rename the input, or leave it out"
    )


@pytest.mark.parametrize(
    ("steps", "asks_for"),
    [
        ({"loss": "query, textual_loss -> review"}, "textual_loss"),
        ({"loss": "query, textual_gradient -> review"}, "textual_gradient"),
        ({"loss": None}, "textual_loss"),
        ({"loss": None, "gradient": None}, "textual_gradient"),
        ({"gradient": "textual_gradient -> advice"}, "textual_gradient"),
    ],
)
def test_a_step_is_not_offered_what_comes_after_it(steps: dict[str, Any], asks_for: str) -> None:
    with pytest.raises(SignatureError, match=f"asks for '{asks_for}'"):
        TPOModule(scorer=by_number, **steps)


@pytest.mark.parametrize(
    ("steps", "names"),
    [
        ({"gradient": None}, ["loss", "update"]),
        ({"loss": FusedCritique, "gradient": None}, ["loss", "update"]),
        ({"loss": None, "gradient": "query, chosen_response -> advice"}, ["gradient", "update"]),
        ({"loss": None, "gradient": None, "update": "chosen_response -> response"}, ["update"]),
        ({"update": DraftFreeUpdate}, ["loss", "gradient", "update"]),
    ],
)
def test_steps_may_be_left_out(steps: dict[str, Any], names: list[str]) -> None:
    lm = ScriptedLM(numbered())
    trace = run(TPOModule(scorer=by_number, width=2, depth=2, **steps), lm).trace
    assert [call.name for call in trace.calls] == ["policy", *names, *names]
    assert trace.status == "complete"
    update = trace.calls[-1]
    if "textual_gradient" in update.inputs:
        assert update.inputs["textual_gradient"] == trace.calls[-2].completions[0].text


def test_steps_may_have_their_own_lm() -> None:
    policy, critic, special = (ScriptedLM(numbered()) for _ in range(3))
    module = TPOModule(scorer=by_number, width=2, depth=1, critic_lm=critic)
    run(module, policy)
    assert (len(policy.prompts), len(critic.prompts)) == (4, 2)
    assert module.loss is not None
    module.loss.set_lm(special)
    run(module, policy)
    assert (len(policy.prompts), len(critic.prompts), len(special.prompts)) == (8, 3, 1)
    module.set_lm(special)
    run(module, policy)
    assert (len(policy.prompts), len(critic.prompts), len(special.prompts)) == (8, 3, 7)


@pytest.mark.parametrize("step", ["policy", "loss", "gradient", "update"])
def test_render_shows_what_is_sent(step: str) -> None:
    module = TPOModule(scorer=by_number, width=2, depth=1)
    trace = run(module, ScriptedLM(numbered()), "Why {query} and {{x}}?").trace
    call = next(call for call in trace.calls if call.name == step)
    assert module.render(step, **call.inputs) == call.messages


# --- nothing is changed, nothing is mixed


def test_a_call_leaves_the_module_as_it_was() -> None:
    module = TPOModule(scorer=by_number, width=3, depth=2, critic_lm=ScriptedLM(numbered()))

    def look() -> dict[str, Any]:
        parts = {"module": module, **module.steps()}
        own = {
            f"{name}.{key}": repr(value)
            for name, part in parts.items()
            for key, value in vars(part).items()
            if key != "history"  # DSPy's own log of every module's calls
        }
        predictors = {name: repr(vars(p)) for name, p in module.named_predictors()}
        return {**own, **{k: v.split("'history'")[0] for k, v in predictors.items()}}

    before, config = look(), module.config()
    first = run(module, ScriptedLM(numbered()))
    second = run(module, ScriptedLM(numbered()))
    asyncio.run(_acall(module, ScriptedLM(numbered())))
    assert look() == before
    assert module.config() == config
    assert first.trace is not second.trace


def run_async(module: dspy.Module, lm: Any) -> dspy.Prediction:
    return asyncio.run(_acall(module, lm))


class Rewrites(dspy.Module):
    """A predictor beside something that cannot be deep-copied."""

    def __init__(self) -> None:
        super().__init__()
        self.rewrite = dspy.Predict("query -> response")
        self.lock = threading.Lock()

    def forward(self, query: str) -> dspy.Prediction:
        return self.rewrite(query=query)


class InAList(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = [Rewrites()]

    def forward(self, query: str) -> dspy.Prediction:
        return self.stages[0](query=query)


@pytest.mark.parametrize("runs", [run, run_async])
def test_a_policy_that_shares_its_predictors_with_its_copies_is_refused(runs: Any) -> None:
    policy, lm = InAList(), ScriptedLM(numbered())
    module = BestOfNModule(policy, response_field="response", scorer=by_number, width=2)
    with pytest.raises(
        ConfigurationError, match=r"stages\[0\]\.rewrite' of InAList .*__deepcopy__"
    ):
        runs(module, lm)
    assert policy.stages[0].rewrite.lm is None
    assert lm.prompts == []


def test_a_policy_beside_a_lock_of_its_own_is_copied() -> None:
    policy, lm = (
        Rewrites(),
        ScriptedLM(lambda prompt: f"[[ ## response ## ]]\n{numbered()(prompt)}"),
    )
    module = BestOfNModule(policy, response_field="response", scorer=by_number, width=2)
    assert len(run(module, lm).trace.candidates) == 2
    assert policy.rewrite.lm is None


class SometimesNothing(dspy.Module):
    """Returns nothing but for the first of its samples."""

    def __init__(self, nothing: Any) -> None:
        super().__init__()
        self.results = iter([dspy.Prediction(response="answer 1")])
        self.nothing = nothing

    def __deepcopy__(self, memo: dict[int, Any]) -> SometimesNothing:
        return self

    def forward(self, query: str) -> Any:
        return next(self.results, self.nothing)


@pytest.mark.parametrize("nothing", [None, "answer 2", 3])
@pytest.mark.parametrize("runs", [run, run_async])
def test_a_program_without_a_prediction_costs_its_own_sample_only(runs: Any, nothing: Any) -> None:
    policy = SometimesNothing(nothing)
    module = BestOfNModule(policy, response_field="response", scorer=by_number, width=2)
    trace = runs(module, ScriptedLM([])).trace
    assert [candidate.response for candidate in trace.candidates] == ["answer 1"]
    assert [failure.type for failure in trace.failures] == ["TypeError"]
    assert (
        trace.failures[0].message
        == f"expected the program to return a dspy.Prediction, got {nothing!r}"
    )


def all_alike(query: str, response: str) -> float:
    return 1.0


HALVES = "<think>half \ud83d</think>whole \ud83d\ude00, half \ud83d"


def test_half_characters_are_replaced_in_text_thinking_and_other_outputs() -> None:
    thinks = run(BestOfNModule(scorer=all_alike, width=1), ScriptedLM([HALVES]))
    (completion,) = thinks.trace.calls[0].completions
    assert completion.text == "whole \U0001f600, half \ufffd"
    assert completion.thinking == "half \ufffd"
    program = SometimesNothing(None)
    outputs = {"response": "r \ud83d", "tags": ["t \ud83d"], "about": {"a": "b \ud83d"}}
    program.results = iter([dspy.Prediction(**outputs)])
    module = BestOfNModule(program, response_field="response", scorer=all_alike, width=1)
    trace = run(module, ScriptedLM([])).trace
    (completion,) = trace.calls[0].completions
    assert completion.text == "r \ufffd"
    assert completion.fields == {"tags": ["t \ufffd"], "about": {"a": "b \ufffd"}}
    assert trace.model_dump_json()


async def _acall(module: dspy.Module, lm: Any, query: str = "Why?") -> dspy.Prediction:
    with dspy.context(lm=lm):
        return await module.acall(query)


def echo(prompt: str) -> str:
    """Repeat the query's name, so that every text tells which run it belongs to."""
    return f"{prompt.split('<')[1].split('>')[0]} at {threading.get_ident()}-{next(_SERIAL)}"


_SERIAL = itertools.count()


def by_serial(query: str, response: str) -> float:
    return float(response.rsplit("-", 1)[1])


async def test_twenty_concurrent_calls_keep_their_traces_apart() -> None:
    module = TPOModule(scorer=FunctionScorer(by_serial), width=3)
    queries = [f"<query{i}>" for i in range(20)]
    with dspy.context(lm=ScriptedLM(echo)):
        found = await asyncio.gather(*(module.acall(query) for query in queries))
    for query, prediction in zip(queries, found, strict=True):
        check_own(query, prediction.trace)


def test_twenty_threads_keep_their_traces_apart() -> None:
    module = TPOModule(scorer=FunctionScorer(by_serial), width=3)
    queries = [f"<query{i}>" for i in range(20)]
    with dspy.context(lm=ScriptedLM(echo)):
        found = dspy.Parallel(num_threads=20, disable_progress_bar=True)(
            [(module, dspy.Example(query=query).with_inputs("query")) for query in queries]
        )
    for query, prediction in zip(queries, found, strict=True):
        check_own(query, prediction.trace)


def check_own(query: str, trace: Any) -> None:
    assert trace.query == query
    assert len(trace.calls) == 7
    assert len(trace.candidates) == 9
    name = query.strip("<>")
    assert {c.response.split(" ")[0] for c in trace.candidates} == {name}
    assert all(query in str(call.messages) for call in trace.calls)


async def test_observers_hear_their_own_runs_only() -> None:
    module = TPOModule(scorer=by_number, width=2, depth=1)
    heard: dict[str, list[Event]] = {"a": [], "b": []}

    async def one(name: str) -> None:
        with observe(heard[name].append), dspy.context(lm=ScriptedLM(numbered())):
            await module.acall(name)

    await asyncio.gather(one("a"), one("b"))
    for name, events in heard.items():
        assert {event.trace.query for event in events} == {name}
        assert [type(event.record).__name__ for event in events] == [
            "Call", "Scoring", "Call", "Call", "Call", "Scoring",
        ]  # fmt: skip


# --- early stop and selections


def test_patience_stops_after_steps_without_a_better_reward() -> None:
    scorer = TableScorer({"a": 1.0, "b": 0.0, "c": 2.0})
    replies = ["a", "b", "l", "g", "c", "b", "l", "g", "a", "b", "l", "g", "a", "a"]
    module = TPOModule(scorer=scorer, width=2, depth=9, stop=StopRule(patience=2), native_n=True)
    trace = run(module, in_order(*replies)).trace
    assert trace.status == "stopped"
    assert trace.stop_reason == "patience: no new best reward in 2 steps"
    assert max(c.step for c in trace.candidates) == 3


def test_a_small_gap_stops() -> None:
    scorer = TableScorer({"a": 1.0, "b": 0.95})
    module = TPOModule(scorer=scorer, width=2, stop=StopRule(min_gap=0.1), native_n=True)
    trace = run(module, in_order("a", "b")).trace
    assert (trace.status, trace.stop_reason) == ("stopped", "reward gap: 0.050 is below 0.1")


def test_a_token_budget_stops_before_the_next_step() -> None:
    lm = ScriptedLM(lambda prompt: Reply(f"answer {next(_SERIAL)}", tokens=10))
    module = TPOModule(scorer=by_number, width=2, depth=5, stop=StopRule(token_budget=60))
    trace = run(module, lm).trace
    assert trace.status == "stopped"
    assert trace.stop_reason == "token budget: 60 of 60 tokens generated"
    assert trace.generated_tokens == 20 + 40


@pytest.mark.parametrize("rule", [{"patience": 0}, {"patience": -1}, {"token_budget": 0}])
def test_a_stop_rule_that_cannot_work_is_refused(rule: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="whole number of at least 1"):
        StopRule(**rule)


def third_alone(pool: CandidatePool) -> Pair:
    return Pair(pool[2], None)


def plain_tuple(pool: CandidatePool) -> Any:
    return (pool[1], pool[0])


@pytest.mark.parametrize(
    ("selection", "pairs"),
    [
        ("extreme", [(0, 1), (6, 1)]),
        ("median", [(0, 2), (6, 7)]),
        ("within-step", [(0, 1), (6, 4)]),
        (third_alone, [(2, None), (2, None)]),
        (plain_tuple, [(1, 0), (1, 0)]),
    ],
)
def test_selections(selection: Any, pairs: list[tuple[int, int | None]]) -> None:
    table = {"p0": 4.0, "p1": 0.0, "p2": 2.0, "p3": 3.0, "u4": 1.0, "u5": 2.5, "u6": 9.0, "u7": 2.2}
    replies = ["p0", "p1", "p2", "p3", "l", "g", "u4", "u5", "u6", "u7", "l", "g", *["p0"] * 4]
    module = TPOModule(
        scorer=TableScorer(table), width=4, depth=2, selection=selection, native_n=True
    )
    prediction = run(module, in_order(*replies))
    assert [(p.chosen, p.rejected) for p in prediction.trace.pairs] == pairs
    assert prediction.response == "u6"


def raises(pool: CandidatePool) -> Pair:
    raise LookupError("no pair to my liking")


def selects_none(pool: CandidatePool) -> Any:
    return None


def selects_texts(pool: CandidatePool) -> Any:
    return ("a", "b")


def selects_all(pool: CandidatePool) -> Any:
    return pool.ranked


@pytest.mark.parametrize(
    ("selection", "kind", "message"),
    [
        (raises, "LookupError", "no pair to my liking"),
        (selects_none, "TypeError", "cannot unpack"),
        (selects_texts, "TypeError", "expected a Pair of candidates"),
        (selects_all, "ValueError", "too many values"),
    ],
)
def test_a_selection_that_fails_ends_the_run_with_its_best(
    selection: Any, kind: str, message: str
) -> None:
    module = TPOModule(scorer=by_number, width=3, selection=selection)
    prediction = run(module, ScriptedLM(numbered()))
    assert prediction.response == "answer 2"
    assert prediction.trace.status == "failed"
    assert message in prediction.trace.stop_reason
    (failure,) = prediction.trace.failures
    assert (failure.step, failure.where, failure.type) == (1, "selection", kind)


# --- bad input: a clear error before any LM call


BAD_QUERIES: Sequence[tuple[Any, str]] = [
    ("", "got an empty one"),
    (" \n\t", "got an empty one"),
    (None, "to be a string, got NoneType"),
    (5, "to be a string, got int"),
    (["Why?"], "to be a string, got list"),
    ({"query": "Why?"}, "to be a string, got dict"),
    (b"Why?", "to be a string, got bytes"),
    ("half \ud83d", "valid Unicode"),
]


@pytest.mark.parametrize(("query", "message"), BAD_QUERIES)
def test_a_query_that_is_none_is_refused(query: Any, message: str) -> None:
    lm = in_order()
    with pytest.raises(InputError, match=message):
        run(TPOModule(scorer=by_number), lm, query)
    with pytest.raises(InputError, match=message):
        asyncio.run(_acall(TPOModule(scorer=by_number), lm, query))
    assert lm.prompts == []


@pytest.mark.parametrize(
    ("args", "inputs", "message"),
    [
        ((), {}, r"missing: \['question', 'context'\]"),
        ((), {"question": "Why?"}, r"missing: \['context'\]"),
        ((), {"question": "Why?", "context": "x", "mood": "y"}, r"unknown: \['mood'\]"),
        (("Why?",), {}, "by name, got 1 without a name"),
        ((), {"question": "", "context": ""}, "got an empty one"),
        ((), {"question": "Why?", "context": 7}, "'context' to be a string, got int"),
    ],
)
def test_inputs_of_a_policy_with_several(args: Any, inputs: Any, message: str) -> None:
    module = BestOfNModule("question, context -> answer", scorer=by_number)
    with dspy.context(lm=in_order()), pytest.raises(InputError, match=message):
        module(*args, **inputs)


def one_argument(response: str) -> float:
    return 1.0


def three_arguments(query: str, response: str, mood: str) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width to be a whole number of at least 1, got 0"),
        ({"width": -3}, "width"),
        ({"width": 2.0}, "width"),
        ({"width": True}, "width"),
        ({"width": "5"}, "width"),
        ({"depth": -1}, "depth to be a whole number of at least 0, got -1"),
        ({"depth": 1.5}, "depth"),
        ({"scorer": None}, "expected a scorer"),
        ({"scorer": 3.0}, "expected a scorer"),
        ({"scorer": TableScorer}, "expected a scorer"),
        ({"scorer": one_argument}, "two arguments"),
        ({"scorer": three_arguments}, "two arguments"),
        ({"policy": "question, answer"}, "signature as 'input, ... -> output'"),
        ({"policy": 7}, "expected a signature string"),
        ({"policy": "query -> score: float"}, "expected one str output of the policy"),
        ({"policy": "query -> title, body"}, "response_field="),
        ({"policy": "query -> title, body", "response_field": "text"}, "'title', 'body'"),
        ({"policy": "query, step -> response"}, "offers for itself"),
        ({"policy": "query, textual_loss -> response"}, "offers for itself"),
        ({"policy": "query -> response, reward", "response_field": "response"}, "reserved"),
        ({"policy": "query, config -> response"}, "reserved"),
        ({"selection": "worst"}, "expected a selection: one of"),
        ({"selection": 3}, "expected a selection"),
        ({"critic_lm": "openai/gpt-4o"}, "expected critic_lm to be a dspy.LM"),
        ({"loss": "query -> a, b"}, "one str output of the loss"),
        ({"update": None}, "as the update step"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"scorer": by_number, **options}
    with pytest.raises(ConfigurationError, match=message):
        TPOModule(**given)


def test_without_an_lm_it_says_how_to_get_one() -> None:
    with dspy.context(lm=None), pytest.raises(ConfigurationError, match=r"embedded_lm\(\)"):
        TPOModule(scorer=by_number)("Why?")
    module = TPOModule(scorer=by_number, critic_lm=ScriptedLM(numbered()))
    with (
        dspy.context(lm=None),
        pytest.raises(ConfigurationError, match="no LM for the policy step"),
    ):
        module("Why?")


def test_rewards_are_finite_in_every_trace() -> None:
    trace = run(TPOModule(scorer=by_number, width=2, depth=1), ScriptedLM(numbered())).trace
    assert all(math.isfinite(c.reward) for c in trace.candidates)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_tokens": 32}, "max_tokens goes into sampling=Sampling"),
        ({"wdith": 3}, "wdith may be width"),
        ({"deph": 3}, "deph may be depth"),
    ],
)
def test_an_unknown_option_says_what_it_could_have_been(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        TPOModule(scorer=TableScorer({}), **options)


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_tokens": 0}]
)
def test_sampling_that_no_endpoint_takes_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        Sampling(**options)
