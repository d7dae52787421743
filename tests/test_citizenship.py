"""TPO among DSPy's own: evaluation, parallelism, optimizers, copies, files, streaming, histories."""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.streaming.messages import StatusMessage
from fake_openai import LM_CLASSES, Body, Endpoint, fake_openai
from pydantic import BaseModel

from signatures import DraftFreeUpdate, RateResponse, RewardAwareLoss
from tpo_modules import (
    BestOfNModule,
    PlainTextAdapter,
    RevisionModule,
    Sampling,
    Step,
    StopRule,
    TPOModule,
)
from tpo_modules.errors import ConfigurationError, InputError, SignatureError
from tpo_modules.scorers.judge import JudgeScorer
from tpo_modules.testing import ScriptedLM


class LastNumber:
    """Rewards a response by the number it ends with; holds a lock, as a scorer with a model would."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: list[str] = []

    def __repr__(self) -> str:
        return "LastNumber()"

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        with self.lock:
            self.asked += responses
        return [float(response.split()[-1]) for response in responses]


def numbered() -> ScriptedLM:
    serial, lock = itertools.count(), threading.Lock()

    def reply(prompt: str) -> str:
        with lock:
            return f"answer {next(serial)}"

    return ScriptedLM(reply)


def tpo(policy: Any = "question -> answer", **options: Any) -> TPOModule:
    given: dict[str, Any] = {"scorer": LastNumber(), "width": 3, "depth": 1, **options}
    return TPOModule(policy, **given)


EXAMPLES = [
    dspy.Example(question=f"Why {i}?", answer="x").with_inputs("question") for i in range(6)
]


def reward(example: Any, prediction: Any, trace: Any = None) -> float:
    return float(prediction.reward)


# --- evaluation and parallelism


@pytest.fixture(params=LM_CLASSES)
def lm_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything with each LM that takes ``n`` in one request."""
    monkeypatch.setattr(Endpoint, "lm_class", request.param)


def test_evaluate_runs_it_in_threads() -> None:
    evaluate = dspy.Evaluate(
        devset=EXAMPLES, metric=reward, num_threads=4, display_progress=False, max_errors=1
    )
    with dspy.context(lm=numbered()):
        result = evaluate(tpo())
    assert len(result.results) == 6
    for example, prediction, score in result.results:
        assert prediction.trace.query == example.question
        assert prediction.trace.status == "complete"
        assert score == prediction.reward == max(c.reward for c in prediction.trace.candidates)


def test_parallel_and_batch_keep_runs_apart() -> None:
    module = tpo()
    found: Any
    with dspy.context(lm=numbered()):
        found = dspy.Parallel(num_threads=3, disable_progress_bar=True)(
            [(module, example) for example in EXAMPLES]
        )
        batch: Any = module.batch(EXAMPLES, num_threads=3, disable_progress_bar=True)
    for predictions in (found, batch):
        assert [p.trace.query for p in predictions] == [e.question for e in EXAMPLES]
        assert all(len(p.trace.candidates) == 6 for p in predictions)


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
@pytest.mark.parametrize("native_n", [True, False])
@pytest.mark.parametrize("seed", [None, 5])
def test_attempts_of_best_of_n_around_it_differ(native_n: bool, seed: int | None) -> None:
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    seen: list[dspy.Prediction] = []

    def judge(args: Any, prediction: Any) -> float:
        seen.append(prediction)
        return float(prediction.reward)

    module = tpo(native_n=native_n, seed=seed, depth=1)
    outer = dspy.BestOfN(module, N=3, reward_fn=judge, threshold=1e9)
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm(cache=True)):
        best = outer(question="Why?")
        sent = len(endpoint.requests)
        assert outer(question="Why?").reward == best.reward
        assert len(endpoint.requests) == sent == 3 * (4 if native_n else 8)
    texts = [c.response for p in seen[:3] for c in p.trace.candidates]
    assert len(set(texts)) == 3 * 6
    assert best.reward == max(p.reward for p in seen)


def test_refine_gives_its_hints_where_the_adapter_is_configured() -> None:
    def reply(prompt: str) -> str:
        if "discussion" in prompt and "advice" in prompt:
            advice = {name: f"hint for {name}" for name in names}
            return f"[[ ## discussion ## ]]\nd\n\n[[ ## advice ## ]]\n{_json(advice)}\n\n[[ ## completed ## ]]"
        prompts.append(prompt)
        return f"answer {len(prompts)}"

    prompts: list[str] = []
    names = ["policy.predict", "loss.predict", "gradient.predict", "update.predict"]
    module = tpo(width=2)
    refine = dspy.Refine(module, N=2, reward_fn=own_reward, threshold=1e9)
    with dspy.context(lm=ScriptedLM(reply), adapter=PlainTextAdapter()):
        prediction = refine(question="Why?")
    assert prediction.reward == 12.0
    first, second = prompts[:6], prompts[6:]
    assert not any("hint for" in prompt for prompt in first)
    assert ["hint for" in prompt for prompt in second] == [True] * 6


def own_reward(args: Any, pred: Any) -> float:
    return float(pred.reward)


def no_reward(args: Any, pred: Any) -> float:
    return 0.0


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


# --- optimizers


def test_bootstrap_few_shot_learns_from_the_best_sample() -> None:
    student = tpo()
    compiled = dspy.BootstrapFewShot(
        metric=reward, max_bootstrapped_demos=2, max_labeled_demos=0
    ).compile
    with dspy.context(lm=numbered()):
        done = compiled(student, trainset=EXAMPLES[:3])
    demos = {name: p.demos for name, p in done.named_predictors()}
    assert {name: len(found) for name, found in demos.items()} == {
        "policy.predict": 2,
        "loss.predict": 2,
        "gradient.predict": 2,
        "update.predict": 2,
    }
    for i in range(2):
        policy, loss = demos["policy.predict"][i], demos["loss.predict"][i]
        gradient, update = demos["gradient.predict"][i], demos["update.predict"][i]
        assert set(policy.keys()) - {"augmented"} == {"question", "answer"}
        assert policy.answer == loss.chosen_response == update.chosen_response
        assert gradient.textual_loss == loss.textual_loss
        assert update.textual_gradient == gradient.textual_gradient
        assert float(update.response.split()[-1]) > float(policy.answer.split()[-1])
    assert not any(p.demos for p in student.predictors())
    lm = numbered()
    with dspy.context(lm=lm):
        done(question="Why now?")
    sent = lm.requests[0].messages
    assert [message.role for message in sent] == ["user", "assistant"] * 2 + ["user"]


def test_labeled_few_shot_rows_without_a_steps_output_are_left_out() -> None:
    done = dspy.LabeledFewShot(k=2).compile(tpo(), trainset=EXAMPLES)
    lm = numbered()
    with dspy.context(lm=lm):
        trace = done(question="Why?").trace
    assert [len(call.messages) for call in trace.calls] == [5, 1, 1, 1]


def test_the_outer_trace_holds_one_line_for_each_step() -> None:
    module = tpo(width=4, depth=2)
    with dspy.context(lm=numbered(), trace=[]):
        prediction = module(question="Why?")
        lines = list(dspy.settings.trace)
    own = {id(p): name for name, p in module.named_predictors()}
    assert [own[id(predictor)] for predictor, _, _ in lines] == [
        "policy.predict",
        *["loss.predict", "gradient.predict", "update.predict"] * 2,
    ]
    best = [max(step) for step in prediction.trace.rewards_by_step]
    sampled = [o for p, _, o in lines if own[id(p)] in ("policy.predict", "update.predict")]
    assert [float(str(next(iter(o.values()))).split()[-1]) for o in sampled] == best


def test_the_outer_trace_stays_within_dspys_limit() -> None:
    with dspy.context(lm=numbered(), trace=[], max_trace_size=3):
        for _ in range(3):
            tpo()(question="Why?")
        assert len(dspy.settings.trace) == 3


def test_a_chain_of_thought_policy_is_traced_as_itself() -> None:
    module = tpo(dspy.ChainOfThought("question -> answer"))
    with dspy.context(lm=chatty(), trace=[]):
        module(question="Why?")
        first = dspy.settings.trace[0]
    assert first[0] is module.policy.predict.predict  # type: ignore[attr-defined]
    assert "reasoning" in first[2]


# --- policies of every kind


def chatty() -> ScriptedLM:
    """Answer in DSPy's chat format where it is asked for, else in plain text."""
    serial, lock = itertools.count(), threading.Lock()

    def reply(prompt: str) -> str:
        with lock:
            number = next(serial)
        names = ("reasoning", "answer", "title", "items", "draft")
        asked = [name for name in names if f"`[[ ## {name} ## ]]`" in prompt]
        if not asked:
            return f"answer {number}"
        values = {"items": f'["item {number}"]'}
        parts = [f"[[ ## {n} ## ]]\n{values.get(n, f'{n} {number}')}" for n in asked]
        return "\n\n".join([*parts, "[[ ## completed ## ]]"])

    return ScriptedLM(reply)


class Item(BaseModel):
    name: str


class TwoSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.outline = dspy.Predict("question -> draft")
        self.write = dspy.Predict("question, draft -> answer")

    def forward(self, question: str, tone: str = "plain") -> dspy.Prediction:
        draft = self.outline(question=question).draft
        return dspy.Prediction(answer=self.write(question=question, draft=draft).answer, tone=tone)


class MakesPredictors(dspy.Module):
    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Predict("question -> answer")(question=question)


def both(module: dspy.Module, lm: Any, **inputs: Any) -> list[dspy.Prediction]:
    async def run() -> dspy.Prediction:
        with dspy.context(lm=lm):
            return await module.acall(**inputs)

    with dspy.context(lm=lm):
        return [module(**inputs), asyncio.run(run())]


def test_chain_of_thought_keeps_the_reasoning_of_each_candidate() -> None:
    for prediction in both(tpo(dspy.ChainOfThought("question -> answer")), chatty(), question="?"):
        first = [c for c in prediction.trace.candidates if c.step == 0]
        assert len({c.fields["reasoning"] for c in first}) == 3
        for c in first:
            assert c.fields["reasoning"].split()[-1] == c.response.split()[-1]
        best = prediction.trace.pool.chosen
        assert best.step == 1
        assert prediction.reasoning == prediction.trace.candidates[best.parent].fields["reasoning"]
        assert set(prediction.keys()) == {"reasoning", "answer", "reward", "trace"}


def test_a_program_of_two_predictors_needs_its_field_named() -> None:
    with pytest.raises(ConfigurationError, match="response_field="):
        tpo(TwoSteps())
    module = tpo(TwoSteps(), response_field="answer")
    assert (module.policy.inputs, module.policy.required) == (("question", "tone"), ("question",))
    for prediction in both(module, chatty(), question="Why?", tone="dry"):
        assert prediction.tone == "dry"
        assert len(prediction.trace.candidates) == 6
        assert prediction.trace.calls[0].requests == 6
        assert prediction.trace.status == "complete"
    with dspy.context(lm=chatty(), trace=[]):
        module(question="Why?")
        lines = dspy.settings.trace
    program: Any = module.policy.predict
    assert [line[0] for line in lines[:2]] == [program.outline, program.write]
    assert lines[0][2].draft == lines[1][1]["draft"]


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
def test_predictors_made_at_run_time_are_sampled_too() -> None:
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    module = BestOfNModule(MakesPredictors(), scorer=LastNumber(), width=3, response_field="answer")

    def says(body: Body, serial: int) -> str:
        return f"[[ ## answer ## ]]\nanswer {serial}\n\n[[ ## completed ## ]]"

    with fake_openai(says) as endpoint, dspy.context(lm=endpoint.lm(cache=True)):
        prediction = module(question="Why?")
    assert len(endpoint.requests) == 3
    assert len({c.response for c in prediction.trace.candidates}) == 3
    assert {body["temperature"] for body in endpoint.requests} == {0.7}
    assert sum(c.tokens or 0 for c in prediction.trace.candidates) == 21


def test_tpo_around_tpo() -> None:
    inner = tpo(width=2, depth=1)
    outer = BestOfNModule(inner, scorer=LastNumber(), width=2)
    for prediction in both(outer, numbered(), question="Why?"):
        assert prediction.trace.label == "D0-N2"
        assert prediction.trace.calls[0].requests == 2 * 6
        assert prediction.reward == max(c.reward for c in prediction.trace.candidates)
        assert [c.fields for c in prediction.trace.candidates] == [{}, {}]


def test_dspy_best_of_n_as_the_policy() -> None:
    inner = dspy.BestOfN(
        dspy.Predict("question -> answer"), N=2, reward_fn=no_reward, threshold=1.0
    )
    for prediction in both(
        BestOfNModule(inner, scorer=LastNumber(), width=2), chatty(), question="?"
    ):
        assert len(prediction.trace.candidates) == 2
        assert prediction.trace.failures == []


def test_several_inputs_are_one_query_to_scorers_and_steps() -> None:
    queries: list[Any] = []

    def score(query: str, response: str) -> float:
        queries.append(query)
        return 0.0

    module = BestOfNModule("question, context -> answer", scorer=score, width=1)
    with dspy.context(lm=numbered()):
        module(question="Why?", context="It is blue.")
    query: Any = queries[0]
    assert len(queries) == 1
    assert query == "Question:\nWhy?\n\nContext:\nIt is blue."
    assert dict(queries[0].inputs) == {"question": "Why?", "context": "It is blue."}


def test_several_outputs_are_kept_with_their_types() -> None:
    seen: list[Any] = []

    def score(args: Any, pred: Any) -> float:
        seen.append((args.question, pred.items_, pred.answer))
        return float(pred.answer.split()[-1])

    class Typed(dspy.Signature):
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()
        title: str = dspy.OutputField()
        items_: list[Item] = dspy.OutputField()

    def reply(prompt: str) -> str:
        number = next(serial)
        if "items_" not in prompt:
            return f"answer {number}"
        parts = [f"[[ ## answer ## ]]\nanswer {number}", f"[[ ## title ## ]]\ntitle {number}"]
        parts.append(f'[[ ## items_ ## ]]\n[{{"name": "item {number}"}}]')
        return "\n\n".join([*parts, "[[ ## completed ## ]]"])

    serial = itertools.count()
    with pytest.raises(ConfigurationError, match="'answer', 'title'"):
        tpo(Typed)
    module = TPOModule(Typed, scorer=score, width=1, depth=1, response_field="answer")
    with dspy.context(lm=ScriptedLM(reply)):
        prediction = module(question="Why?")
    assert prediction.answer == "answer 3"
    assert prediction.title == "title 0"
    assert prediction.items_ == [Item(name="item 0")]
    assert seen[0] == ("Why?", [Item(name="item 0")], "answer 0")


def test_a_program_may_return_fields_of_our_names() -> None:
    class Rewarded(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer="answer 3", reward=-1.0, trace="mine")

    module = BestOfNModule(Rewarded(), scorer=LastNumber(), width=1, response_field="answer")
    with dspy.context(lm=numbered()):
        prediction = module(question="Why?")
    assert (prediction.reward, prediction.trace.label) == (3.0, "D0-N1")


HISTORY = dspy.History(
    messages=[
        {"role": "system", "content": "Be kind."},
        {"question": "Hello?", "answer": "Hi."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
    ]
)


def test_a_conversation_passes_through() -> None:
    queries: list[Any] = []

    def score(query: str, response: str) -> float:
        queries.append(query)
        return float(response.split()[-1])

    module = TPOModule("history: dspy.History, question -> answer", scorer=score, width=2, depth=1)
    lm = numbered()
    with dspy.context(lm=lm):
        trace = module(question="Why?", history=HISTORY).trace
    sent = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "Why?"},
    ]
    assert trace.calls[0].messages == sent
    assert module.render("policy", question="Why?", history=HISTORY) == sent
    assert module.render("policy", question="Why?") == sent[-1:]
    assert list(queries[0].messages) == sent
    assert trace.query == (
        "User: Hello?\n\nAssistant: Hi.\n\nUser: Who?\n\nAssistant: Me.\n\nUser: Why?"
    )
    assert trace.calls[1].inputs["query"] == trace.query
    assert trace.status == "complete"
    with dspy.context(lm=lm):
        assert module(question="Why?").trace.query == "Why?"
        with pytest.raises(InputError, match=r"dspy\.History\(messages="):
            module(question="Why?", history=[{"role": "user", "content": "Hi"}])


# --- copies and files


def test_copies_share_the_scorer() -> None:
    module = tpo(critic_lm=numbered())
    for twin in (module.deepcopy(), copy.deepcopy(module), module.reset_copy()):
        assert twin is not module
        assert twin.scorer is module.scorer
        assert twin.loss is not module.loss
        assert twin.options() == module.options()
    holder: Any = dspy.Module()
    holder.inner = module
    assert holder.deepcopy().inner.scorer is module.scorer


def test_the_judges_lm_is_no_part_of_the_module() -> None:
    module = tpo(scorer=JudgeScorer(numbered(), signature=RateResponse))
    assert [name for name, _ in module.named_predictors()] == [
        "policy.predict", "loss.predict", "gradient.predict", "update.predict",
    ]  # fmt: skip


class Terse(dspy.Signature):
    """Be {mood}: answer the {question}."""

    question: str = dspy.InputField(desc="what to answer")
    mood: str = dspy.InputField(desc="how")
    facts: list[str] = dspy.InputField()
    answer: str = dspy.OutputField(desc="brief")
    title: str = dspy.OutputField()


def rich() -> TPOModule:
    module = TPOModule(
        Terse,
        scorer=LastNumber(),
        loss=RewardAwareLoss,
        gradient=None,
        update=DraftFreeUpdate,
        width=4,
        depth=3,
        selection="median",
        stop=StopRule(patience=2, min_gap=0.5, token_budget=900),
        sampling=Sampling(temperature=0.9, top_p=0.5, max_tokens=77),
        critique_sampling=Sampling(temperature=0.1, top_p=None),
        seed=11,
        native_n=False,
        response_field="answer",
    )
    assert module.loss is not None
    loss: Any = module.loss.predict
    loss.signature = loss.signature.with_instructions("A compiled prompt about {query}.")
    update: Any = module.update.predict
    update.demos = [dspy.Example(query="q", textual_gradient="g", response="r")]
    update.lm = dspy.LM("openai/update-model", temperature=0.3)
    return module


@pytest.mark.parametrize("make", [rich, tpo])
def test_save_and_load_keep_everything(make: Callable[[], TPOModule], tmp_path: Path) -> None:
    module, path = make(), tmp_path / "tpo.json"
    module.save(str(path))
    fresh = TPOModule(scorer=LastNumber(), policy="question -> answer" if make is tpo else "q -> r")
    fresh.load(str(path))
    assert fresh.options() == module.options()
    assert fresh.dump_state() == module.dump_state()
    with dspy.context(lm=numbered()):
        assert fresh.config() == module.config()
    for step in module.steps():
        assert fresh.render(step) == module.render(step)
    assert fresh.policy.output == "answer"
    assert fresh.label == module.label


def test_a_larger_program_saves_its_prompts_and_demos(tmp_path: Path) -> None:
    program, fresh = Program(), Program()
    for name, predictor in program.named_predictors():
        own: Any = predictor.signature
        predictor.signature = own.with_instructions(f"Words of {name}.")
        predictor.demos = [dspy.Example(question="q", answer="a")]
    program.save(str(tmp_path / "program.json"))
    fresh.load(str(tmp_path / "program.json"))
    assert fresh.dump_state() == program.dump_state()
    assert fresh.tpo.render("loss") == program.tpo.render("loss")
    assert "Words of tpo.loss.predict." in str(fresh.tpo.render("loss"))


def test_state_can_be_loaded_twice() -> None:
    state = rich().dump_state()
    before = copy.deepcopy(state)
    first, second = TPOModule(scorer=LastNumber()), TPOModule(scorer=LastNumber())
    first.load_state(state)
    second.load_state(state)
    assert state == before
    assert first.dump_state() == second.dump_state() == state


@pytest.mark.parametrize(
    "make",
    [
        lambda: BestOfNModule("question -> answer", scorer=LastNumber(), width=7),
        lambda: RevisionModule("question -> answer", scorer=LastNumber(), width=2, depth=4),
        lambda: tpo(TwoSteps(), response_field="answer"),
        lambda: tpo(dspy.ChainOfThought("question -> answer")),
        lambda: tpo("question -> answer, title", response_field="title"),
    ],
)
def test_other_modules_make_the_round_trip(make: Callable[[], Any], tmp_path: Path) -> None:
    module, fresh = make(), make()
    module.width = 9
    for predictor in module.predictors():
        predictor.signature = predictor.signature.with_instructions("Other words.")
    module.save(str(tmp_path / "module.json"))
    fresh.load(str(tmp_path / "module.json"))
    assert fresh.dump_state() == module.dump_state()
    assert fresh.width == 9


def test_steps_are_saved_alone(tmp_path: Path) -> None:
    step = rich().loss
    assert step is not None
    step.save(str(tmp_path / "loss.json"))
    other = Step("query -> textual_loss", name="loss")
    other.load(str(tmp_path / "loss.json"))
    assert other.dump_state() == step.dump_state()
    assert other.render() == step.render()


def first_alone(pool: Any) -> Any:
    return pool[0], None


def test_state_of_another_method_program_or_selection_is_refused() -> None:
    state = tpo().dump_state()
    with pytest.raises(ConfigurationError, match="state of a 'revision' module, got 'tpo'"):
        RevisionModule(scorer=LastNumber()).load_state(state)
    with pytest.raises(ConfigurationError, match=r"expected saved state of the policy step's"):
        tpo(dspy.ChainOfThought("question -> answer")).load_state(state)
    own = tpo(selection=first_alone).dump_state()
    with pytest.raises(ConfigurationError, match="saved state cannot carry"):
        tpo().load_state(own)
    typed = tpo("question: list[int] -> answer").dump_state()
    with pytest.raises(SignatureError, match="saved state cannot carry"):
        tpo().load_state(typed)


def test_a_whole_program_is_saved_and_loaded_elsewhere(tmp_path: Path) -> None:
    module = rich()
    module.update.set_lm(None)
    module.save(str(tmp_path / "program"), save_program=True)
    loaded: Any = dspy.load(str(tmp_path / "program"), allow_pickle=True)
    assert loaded.dump_state() == module.dump_state()
    assert loaded.config() == module.config()
    plain = TPOModule("question -> answer", scorer=_last_number, width=2, depth=1)
    plain.save(str(tmp_path / "plain"), save_program=True)
    code = (
        "import dspy, sys; from tpo_modules.testing import ScriptedLM; "
        f"m = dspy.load({str(tmp_path / 'plain')!r}, allow_pickle=True); "
        "dspy.configure(lm=ScriptedLM([f'a {i}' for i in range(6)])); "
        "m.native_n = True; p = m(question='Why?'); print(p.answer, p.reward)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout == "a 5 5.0\n", done.stderr


def _last_number(query: str, response: str) -> float:
    return float(response.split()[-1])


# --- usage, event loops, streaming


@pytest.mark.server
@pytest.mark.usefixtures("lm_class")
@pytest.mark.parametrize("native_n", [True, False])
@pytest.mark.parametrize("way", ["sync", "async"])
def test_tracked_usage_is_what_was_served(native_n: bool, way: str) -> None:
    module = tpo(native_n=native_n, width=3, depth=2)
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm(), track_usage=True):
        inputs = {"question": "Why?"}
        prediction = module(**inputs) if way == "sync" else asyncio.run(module.acall(**inputs))
        with dspy.track_usage() as tracker:
            module(question="Why else?")
    usage = (prediction.get_lm_usage() or {})["openai/fake-model"]
    again = tracker.get_total_tokens()["openai/fake-model"]
    for name, served in endpoint.served.items():
        assert usage[name] + again[name] == served
    assert prediction.trace.usage == {name: usage[name] for name in endpoint.served}


async def test_a_blocking_call_works_in_a_running_event_loop() -> None:
    async def grade(query: str, response: str) -> float:
        await asyncio.sleep(0)
        return float(response.split()[-1])

    module = tpo(scorer=grade)
    with dspy.context(lm=numbered()):
        prediction = module(question="Why?")
        other = await module.acall(question="Why?")
    assert len(prediction.trace.candidates) == len(other.trace.candidates) == 6


class Program(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tpo = tpo(width=5, depth=2)

    def forward(self, question: str) -> dspy.Prediction:
        return self.tpo(question=question)

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.tpo.acall(question=question)


@pytest.mark.parametrize("is_async", [True, False])
async def test_streamify_streams_the_steps_and_ends(is_async: bool) -> None:
    stream: Any = dspy.streamify(Program(), is_async_program=is_async)
    with dspy.context(lm=numbered()):
        parts = [part async for part in stream(question="Why?")]
    messages = [part.message for part in parts if isinstance(part, StatusMessage)]
    assert [m.split(":")[0] for m in messages if m.startswith("step")] == [
        "step 0", "step 1", "step 2",
    ]  # fmt: skip
    assert isinstance(parts[-1], dspy.Prediction)
    assert parts[-1].trace.status == "complete"


def test_history_follows_dspys_settings() -> None:
    lm, module = numbered(), tpo()
    with dspy.context(lm=lm):
        module(question="Why?")
    assert len(lm.history) == 3 + 2 + 3
    with dspy.context(lm=lm, disable_history=True):
        trace = module(question="Why?").trace
    assert len(lm.history) == 8
    assert trace.usage["completion_tokens"] == 2 * 8
