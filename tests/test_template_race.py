"""Hand-written prompts raced on recorded first rounds, in a scripted world where some wordings pay."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest

from optimizers.candidates import DroppedInputWarning
from optimizers.race_result import RaceResult, credit_of
from optimizers.template_race import Budget, RaceSettings, TemplateRace
from signatures import RewardAwareLoss
from tpo_modules import BestOfNModule, RevisionModule, TPOModule
from tpo_modules.errors import BudgetError, ConfigurationError, RunFolderError, SignatureError
from tpo_modules.runs.results import QueryResult
from tpo_modules.runs.saved_run import SavedRun
from tpo_modules.testing import ScriptedLM

GAINS = {"GOOD": 2.0, "BAD": -3.0, "OK": 0.0}
CANDIDATES = {"good": "Give GOOD advice.", "bad": "Give BAD advice."}
QUERIES = [f"Question {i}?" for i in range(20)]


def world() -> ScriptedLM:
    """Answer with a number; the update's depends on what the loss was told to give.

    Luck depends on the prompt and on how often it came, so that no order of the calls changes a result.
    """
    asked: Counter[str] = Counter()
    lock = threading.Lock()

    def reply(prompt: str) -> str:
        with lock:
            asked[prompt] += 1
            number = zlib.crc32(f"{asked[prompt]} {prompt}".encode())
        luck = random.Random(number).gauss(0, 0.5)
        if told := re.search(r"ADVICE (\w+)", prompt):
            return f"update {number} {GAINS[told.group(1)] + luck:.3f}"
        for word in ("GOOD", "BAD", "EMPTY"):
            if word in prompt:
                return "" if word == "EMPTY" else f"ADVICE {word}"
        if "better grade" in prompt:  # numbered, so that wordings do not share luck
            return f"ADVICE OK {number}"
        return f"answer {number} {luck:.3f}"

    return ScriptedLM(reply)


def earned(query: str, response: str) -> float:
    return float(response.split()[-1])


def module(**options: Any) -> TPOModule:
    given: dict[str, Any] = {"scorer": earned, "width": 2, "gradient": None, **options}
    return TPOModule(**given)


def race(
    candidates: Any = None,
    *,
    out: Path | None = None,
    lm: ScriptedLM | None = None,
    student: TPOModule | None = None,
    queries: Sequence[Any] = QUERIES,
    valset: Sequence[Any] | None = None,
    step: str = "loss",
    **settings: Any,
) -> tuple[RaceResult, TPOModule]:
    made = TemplateRace(
        step,
        CANDIDATES if candidates is None else candidates,
        settings=RaceSettings(**settings),
        out=out,
    )
    with dspy.context(lm=lm or world()):
        compiled = made.compile(student or module(), trainset=queries, valset=valset)
    assert made.result is not None
    return made.result, compiled


def names(result: RaceResult) -> list[str]:
    return [standing.name for standing in result.ranking]


# --- a race -----------------------------------------------------------------------------------------


def test_the_better_wording_wins_and_is_put_into_a_copy() -> None:
    student = module(depth=2)
    result, compiled = race(student=student)
    assert (result.verdict, result.recommended) == ("best", "good")
    assert names(result) == ["good", "default", "bad"]
    assert result.evaluations < result.evaluations_of_all == 60
    assert result.saved == 1 - result.evaluations / 60
    assert result.tokens < result.tokens_of_all
    assert compiled.loss is not None
    assert compiled.loss.signature is not None
    assert compiled.loss.signature.instructions == "Give GOOD advice."
    assert (compiled.depth, compiled.gradient) == (2, None)
    assert student.loss is not None
    assert "better grade" in str(student.loss.signature and student.loss.signature.instructions)


def test_wordings_that_do_the_same_leave_the_default() -> None:
    same = {
        f"c{i}": f"Give some advice of kind {i}; the first got the better grade." for i in (1, 2)
    }
    result, compiled = race(same)
    assert (result.verdict, result.recommended) == ("no difference", "default")
    assert "No difference found: keep the default." in result.recommendation
    assert compiled.loss is not None
    assert "Compare them" in str(compiled.loss.signature and compiled.loss.signature.instructions)


def test_every_candidate_starts_from_the_same_first_rounds_and_only_its_own_calls_are_made(
    tmp_path: Path,
) -> None:
    lm = world()
    result, _ = race(out=tmp_path, lm=lm, queries=QUERIES[:8])
    firsts = SavedRun(tmp_path / "first").results
    for name in ("default", "good", "bad"):
        for identity, run in SavedRun(tmp_path / "candidates" / name).results.items():
            assert run.rewards_by_step[0] == firsts[identity].rewards_by_step[0]
    sequences = 8 * 2 + result.evaluations * 3  # first rounds; then a loss and two updates each
    assert len(lm.requests) == sequences
    assert sum(s.requests for s in result.ranking) == result.evaluations * 3


def test_the_winner_is_compared_on_other_queries_at_full_depth(tmp_path: Path) -> None:
    others = [dspy.Example(query=f"Other {i}?", id=f"o{i}").with_inputs("query") for i in range(5)]
    result, _ = race(out=tmp_path, student=module(depth=2), valset=others)
    found = result.validation
    assert found is not None
    assert (found.name, found.difference.n) == ("good", 5)
    assert found.difference.low is not None
    assert found.difference.low > 0
    runs = SavedRun(tmp_path / "validation" / "good").results
    assert set(runs) == {"o0", "o1", "o2", "o3", "o4"}
    assert {run.label for run in runs.values()} == {"D2-N2"}
    assert RaceResult.model_validate_json((tmp_path / "race.json").read_text()) == result


@pytest.mark.parametrize("step", ["gradient", "update"])
def test_other_steps_race_too(step: str) -> None:
    own = {"gradient": "{textual_loss} Give GOOD advice.", "update": "{query} ADVICE GOOD"}[step]
    student = module(gradient="textual_loss -> advice")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DroppedInputWarning)
        result, compiled = race({"good": own}, student=student, step=step, queries=QUERIES[:8])
    assert set(names(result)) == {"good", "default"}
    assert compiled.steps()[step].predict is not student.steps()[step].predict


def test_it_works_inside_a_running_loop_and_keeps_the_steps_own_lm() -> None:
    own = world()
    student = module()
    assert student.loss is not None
    student.loss.set_lm(own)

    async def inside() -> TPOModule:
        return race(student=student, queries=QUERIES[:8])[1]

    compiled = asyncio.run(inside())
    assert compiled.loss is not None
    assert compiled.loss.get_lm() is own


def test_a_step_may_be_left_out_by_a_candidate() -> None:
    student = module(gradient="textual_loss -> advice")
    with pytest.warns(DroppedInputWarning, match="is not shown textual_loss"):
        result, _ = race({"without": None}, student=student, step="gradient", queries=QUERIES[:3])
    assert set(names(result)) == {"without", "default"}


# --- taking it up again -----------------------------------------------------------------------------


def test_a_finished_race_is_read_again_without_a_call(tmp_path: Path) -> None:
    first, _ = race(out=tmp_path)
    silent = ScriptedLM([])
    again, compiled = race(out=tmp_path, lm=silent)
    assert again == first
    assert silent.requests == []
    assert compiled.loss is not None


def test_a_race_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, calls = race(out=tmp_path / "whole")[0], world()
    limit = 60

    def dies(prompt: str) -> Any:
        if len(lm.requests) > limit:
            raise KeyboardInterrupt
        return calls._script_engine._script(prompt)  # type: ignore[reportPrivateUsage,operator]

    lm = ScriptedLM(dies)
    with pytest.raises(KeyboardInterrupt):
        race(out=tmp_path / "cut", lm=lm, max_in_flight=1)
    rest = world()
    result, _ = race(out=tmp_path / "cut", lm=rest)
    assert result.recommended == whole.recommended == "good"
    assert len(rest.requests) <= 20 * 2 + result.evaluations * 3 - limit + 3


def test_a_folder_of_another_race_is_refused_with_the_difference(tmp_path: Path) -> None:
    race(out=tmp_path, queries=QUERIES[:3])
    with pytest.raises(RunFolderError, match="Give BETTER advice"):
        race({"good": "Give BETTER advice."}, out=tmp_path, queries=QUERIES[:3])
    with pytest.raises(RunFolderError, match="queries"):
        race(out=tmp_path, queries=QUERIES[1:4])


# --- budgets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(tokens=300), r"3 candidates on 10 queries cost about \d+ tokens here, got 300"),
        (Budget(requests=50), r"cost about 110 requests here, got 50"),
        (Budget(evaluations=29), r"cost about 30 evaluations here, got 29"),
    ],
)
def test_a_budget_below_one_round_says_what_one_costs(budget: Budget, said: str) -> None:
    with pytest.raises(BudgetError, match=said):
        race(budget=budget)


def test_a_race_ends_at_its_budget_and_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    same = {f"c{i}": f"Advice of kind {i}; the first got the better grade." for i in (1, 2)}
    result, _ = race(same, out=tmp_path, budget=Budget(evaluations=45))
    assert result.stop_reason.startswith("budget: 30 of 45 evaluations spent")
    assert (result.rounds, result.verdict) == ([10], "no difference")
    more, _ = race(same, out=tmp_path, budget=Budget(evaluations=60))
    assert more.rounds == [10, 20]


# --- what a candidate earns -------------------------------------------------------------------------


def test_a_candidate_whose_runs_fail_does_not_win_by_it() -> None:
    result, _ = race({"empty": "Give EMPTY advice."}, queries=QUERIES[:10])
    empty = next(s for s in result.ranking if s.name == "empty")
    assert (empty.failures, empty.queries) == (10, 10)
    assert result.recommended == "default"


@pytest.mark.parametrize(
    ("changes", "update", "pool"),
    [
        ({}, (2.0 + 4.0) / 2 - 1.0, 3.0),
        ({"rewards_by_step": [[0.0, 1.0], [2.0], [3.0, 4.0]]}, 3.5 - 2.0, 3.0),
        ({"rewards_by_step": [[0.0, 1.0]], "status": "failed", "reward": 1.0}, -1.0, 0.0),
        ({"rewards_by_step": [[0.0, 1.0]], "status": "stopped", "reward": 1.0}, 0.0, 0.0),
    ],
)
def test_credit(changes: dict[str, Any], update: float, pool: float) -> None:
    run: Any = {"rewards_by_step": [[0.0, 1.0], [2.0, 4.0]], "reward": 4.0, "status": "complete"}
    result = QueryResult.model_construct(**(run | changes))
    assert (credit_of(result, "update"), credit_of(result, "pool")) == (update, pool)


# --- bad input --------------------------------------------------------------------------------------


class Same(dspy.Signature):
    """Give GOOD advice."""

    query: str = dspy.InputField(desc="what the user asked")
    chosen_response: str = dspy.InputField(desc="the answer with the better grade")
    rejected_response: str = dspy.InputField(desc="the answer with the worse grade")
    textual_loss: str = dspy.OutputField(desc="strengths, weaknesses and gaps")


@pytest.mark.parametrize(
    ("candidates", "options", "error", "said"),
    [
        ({}, {}, ConfigurationError, "at least one candidate"),
        (CANDIDATES, {"step": "policy"}, ConfigurationError, "loss.*got 'policy'.*tpo compare"),
        (CANDIDATES, {"step": "lost"}, ConfigurationError, "got 'lost'"),
        ({"default": "x"}, {}, ConfigurationError, "the student's own"),
        ([RewardAwareLoss, RewardAwareLoss], {}, ConfigurationError, "'RewardAwareLoss' twice"),
        (
            {"a": CANDIDATES["good"], "b": Same},
            {},
            ConfigurationError,
            "'b' is the same prompt as 'a'",
        ),
        ({"a": "{textual_los}"}, {}, SignatureError, "candidate 'a'.*textual_los"),
        ({"a": " "}, {}, SignatureError, "candidate 'a'.*empty"),
        ({"a": None}, {"step": "update"}, ConfigurationError, "cannot be left out"),
        ([Path("nowhere.txt")], {}, ConfigurationError, "candidate 'nowhere'.*nowhere.txt"),
        (CANDIDATES, {"queries": []}, ConfigurationError, "trainset, got none"),
        (CANDIDATES, {"queries": [dspy.Example(q="x")]}, ConfigurationError, r"lacks \['query'\]"),
        (CANDIDATES, {"queries": [1]}, ConfigurationError, "got 1"),
        (CANDIDATES, {"credit": "luck"}, ConfigurationError, "'luck'"),
        (CANDIDATES, {"min_queries": 0}, ConfigurationError, "min_queries"),
    ],
)
def test_what_cannot_work_is_refused_before_any_call(
    candidates: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    lm = world()
    settings = {k: v for k, v in options.items() if k in ("credit", "min_queries")}
    step, queries = options.get("step", "loss"), options.get("queries", QUERIES)
    with pytest.raises(error, match=said):
        race(candidates, lm=lm, step=step, queries=queries, **settings)
    assert lm.requests == []


def test_only_a_tpo_module_has_steps_to_race() -> None:
    student: Any = BestOfNModule(scorer=earned)
    with pytest.raises(ConfigurationError, match="expected a TPOModule"):
        TemplateRace("loss", CANDIDATES).compile(student, trainset=QUERIES)


def test_revision_refuses_a_candidate_that_asks_for_a_rejected_response() -> None:
    student = RevisionModule(scorer=earned)
    with pytest.raises(SignatureError, match=r"'both'.*rejected_response"):
        TemplateRace("loss", {"both": "{rejected_response}"}).prepare(student)
    made: Mapping[str, Any] = {"own": "Give GOOD advice."}
    assert [c.name for c in TemplateRace("loss", made).prepare(student)] == ["default", "own"]


def test_a_dropped_input_is_warned_of_with_the_prompt() -> None:
    with pytest.warns(DroppedInputWarning) as caught:
        found = TemplateRace("loss", {"a": "Praise {chosen_response}."}).prepare(module())
    assert found[1].drops == ("query", "rejected_response")
    assert "is not shown query, rejected_response" in str(caught[0].message)
    assert "Praise {chosen_response}." in str(caught[0].message)
