"""Loading, grading and failing graders."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from shared_data import shared

from tpo_modules.benchmarks import (
    BENCHMARKS,
    Answer,
    GraderOptions,
    Item,
    Mark,
    grade_runs,
)
from tpo_modules.benchmarks.alpaca_eval import run_package, write_outputs
from tpo_modules.benchmarks.base import query_rows
from tpo_modules.benchmarks.grading import mark_answers
from tpo_modules.benchmarks.published import COLUMNS, TABLE
from tpo_modules.benchmarks.rewarded import ScorerGrader, conversation
from tpo_modules.errors import ConfigurationError, DataFileError, MissingExtraError, ScorerError
from tpo_modules.testing import ScriptedLM, TableScorer
from tpo_modules.tpo import TPOModule

ROWS: dict[str, dict[str, Any]] = {
    "alpaca_eval": {
        "instruction": "Hi",
        "output": "Hello.",
        "generator": "gpt",
        "dataset": "koala",
    },
    "arena_hard": {"id": "a", "prompt": "Hi", "baseline": "Hello."},
    "hh_rlhf": {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bye\n\nAssistant: Bye."},
    "beavertails": {"prompt": "Hi", "category": "none"},
    "xstest": {"id": "1", "prompt": "Hi", "label": "safe"},
    "math500": {"problem": "1+1?", "answer": "2", "subject": "Algebra", "level": "1"},
}


def options(judge: str | None = None, scorer: Any = None) -> GraderOptions:
    def make(name: str) -> Any:
        return scorer

    return GraderOptions(judge=judge, make_judge_lm=make, make_scorer=make)


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_file_of_the_right_form_is_read(name: str, tmp_path: Path) -> None:
    items = BENCHMARKS[name].load(written(tmp_path / "data.jsonl", ROWS[name]))
    assert len(items) == 1
    assert items[0].query in ("Hi", "Bye", "1+1?")


@pytest.mark.parametrize("name", list(BENCHMARKS))
@pytest.mark.parametrize(
    ("bad", "says"),
    [({"text": "Hi"}, "line 2.*expected"), ("Hi", "line 2.*expected an object, got str")],
)
def test_a_row_of_the_wrong_form_is_named(name: str, bad: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=says):
        BENCHMARKS[name].load(written(tmp_path / "data.jsonl", ROWS[name], bad))


def test_what_is_no_file_of_rows_is_refused(tmp_path: Path) -> None:
    xstest = BENCHMARKS["xstest"]
    with pytest.raises(DataFileError, match="cannot read"):
        xstest.load(tmp_path / "missing.jsonl")
    (tmp_path / "text.jsonl").write_text("id,prompt\n", encoding="utf-8")
    with pytest.raises(DataFileError, match=r"line 1.*not JSON"):
        xstest.load(tmp_path / "text.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DataFileError, match="at least one row"):
        xstest.load(tmp_path / "empty.jsonl")
    with pytest.raises(DataFileError, match="unique"):
        xstest.load(written(tmp_path / "twice.jsonl", ROWS["xstest"], ROWS["xstest"]))


def test_a_baseline_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", {"prompt": "Hi"})
    with pytest.raises(DataFileError, match="needs the baseline's answer"):
        BENCHMARKS["alpaca_eval"].load(path)


def test_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"dspy-tpo\[benchmarks\]"):
        BENCHMARKS["xstest"].load()


def test_arena_hard_joins_prompts_and_answers_of_the_hub(tmp_path: Path) -> None:
    path = written(
        tmp_path / "both.jsonl",
        {"question_id": "q1", "turns": [{"content": "Why?"}]},
        {"uid": "q2", "prompt": "How?"},
        {"question_id": "q1", "choices": [{"turns": [{"content": "Because."}]}]},
        {"uid": "q2", "messages": [{"content": "x"}, {"content": {"answer": "So."}}]},
    )
    items = BENCHMARKS["arena_hard"].load(path)
    assert [(i.id, i.query, i.reference["baseline"]) for i in items] == [
        ("q1", "Why?", "Because."),
        ("q2", "How?", "So."),
    ]


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("alpaca_eval", "benchmarks/alpaca_eval.jsonl", 605),
        ("arena_hard", "benchmarks/arena_hard_v0.1.jsonl", 500),
        ("hh_rlhf", "preferences/hh_rlhf_harmless.jsonl.gz", 500),
        ("xstest", "benchmarks/xstest.jsonl", 450),
        ("math500", "benchmarks/math500.jsonl", 500),
    ],
)
def test_the_public_files_are_read(name: str, file: str, count: int) -> None:
    items = BENCHMARKS[name].load(shared(file))
    assert len(items) == count
    assert [item.id for item in BENCHMARKS[name].load(shared(file), limit=7)] == [
        item.id for item in items[:7]
    ]


async def test_a_transcript_is_answered_as_a_conversation(tmp_path: Path) -> None:
    hh = BENCHMARKS["hh_rlhf"]
    opening = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello."}
    items = hh.load(written(tmp_path / "data.jsonl", ROWS["hh_rlhf"], opening))
    lm = ScriptedLM(lambda _: "Farewell.")
    module = TPOModule(hh.policy, scorer=TableScorer({"Farewell.": 2.0}), width=1, depth=0)
    with dspy.context(lm=lm):
        for row in query_rows(items):
            assert module(**row.inputs).response == "Farewell."
    sent = [[(m.role, m.text) for m in request.messages] for request in lm.requests]
    assert sent[0] == [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    assert sent[1] == [("user", "Hi")]
    assert [m["content"] for m in conversation(items[0]).messages] == ["Hi", "Hello.", "Bye"]


class Flaky:
    """Fails on some responses."""

    def grade(self, item: Item, answer: Answer) -> Mark:
        if answer.response == "bad":
            raise ScorerError("no verdict")
        return Mark(answer.reward)


def test_what_a_grader_fails_on_is_left_out_of_all_runs_and_counted() -> None:
    items = [Item(str(i), {"query": "q"}) for i in range(4)]
    runs = {
        "one": {str(i): Answer("bad" if i == 1 else "fine", float(i)) for i in range(4)},
        "two": {str(i): Answer("fine", 10.0 + i) for i in range(3)},
    }
    report = grade_runs(BENCHMARKS["beavertails"], items, runs, Flaky(), workers=3)
    assert report.items == ("0", "2")
    assert report.left_out == 2
    assert [(run.failed, run.unanswered) for run in report.runs] == [(1, 0), (0, 1)]
    assert [run.metrics["mean reward"].value for run in report.runs] == [1.0, 11.0]
    assert report.runs[0].marks["1"] == Mark(None, "no verdict")


def test_a_grader_that_fails_on_everything_says_why() -> None:
    items = [Item("0", {"query": "q"})]
    with pytest.raises(ScorerError, match="no verdict"):
        grade_runs(BENCHMARKS["beavertails"], items, {"a": {"0": Answer("bad", 0.0)}}, Flaky())
    with pytest.raises(ScorerError, match="found none: a, b"):
        grade_runs(BENCHMARKS["beavertails"], items, {"a": {}, "b": {}}, Flaky())


def test_an_interrupted_grading_begins_no_other_answer() -> None:
    begun: list[str] = []

    class Interrupted:
        def grade(self, item: Item, answer: Answer) -> Mark:
            begun.append(item.id)
            if len(begun) == 1:
                raise KeyboardInterrupt
            time.sleep(0.02)
            return Mark(1.0)

    items = [Item(str(i), {"query": "q"}) for i in range(100)]
    with pytest.raises(KeyboardInterrupt):
        mark_answers(items, {item.id: Answer("a", 0.0) for item in items}, Interrupted(), 1)
    assert len(begun) < 100


def test_a_scorer_that_raises_costs_its_own_answer_only() -> None:
    class Numbers:
        def score(self, query: str, responses: Sequence[str]) -> list[float]:
            return [float(response) for response in responses]

    items = [Item(str(i), {"query": "q"}) for i in range(3)]
    answers = {str(i): Answer(text, 0.0) for i, text in enumerate(["1", "n/a", "2"])}
    marks = mark_answers(items, answers, ScorerGrader(Numbers()), workers=2)
    assert [mark.value for mark in marks.values()] == [1.0, None, 2.0]
    assert "ValueError: could not convert string to float: 'n/a'" in marks["1"].note


def test_a_held_out_scorer_grades_rewards() -> None:
    table = TableScorer({"good": 3.0, "odd": float("nan")})
    grader = BENCHMARKS["hh_rlhf"].graders["scorer"](options(judge="table", scorer=table))
    assert grader.grade(Item("0", {"query": "q"}), Answer("good", -1.0)) == Mark(3.0)
    with pytest.raises(ScorerError, match="finite"):
        grader.grade(Item("0", {"query": "q"}), Answer("odd", -1.0))
    own = BENCHMARKS["hh_rlhf"].graders["reward"](options())
    assert own.grade(Item("0", {"query": "q"}), Answer("good", -1.0)) == Mark(-1.0)
    with pytest.raises(ConfigurationError, match="--judge"):
        BENCHMARKS["beavertails"].graders["scorer"](options())


def test_outputs_are_what_alpaca_eval_reads(tmp_path: Path) -> None:
    items = BENCHMARKS["alpaca_eval"].load(written(tmp_path / "data.jsonl", ROWS["alpaca_eval"]))
    path = tmp_path / "model_outputs.json"
    write_outputs(path, items, {"0": Answer("Hey.", 1.0)}, "tpo-D2-N5")
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"instruction": "Hi", "output": "Hey.", "generator": "tpo-D2-N5", "dataset": "koala"}
    ]


def test_the_package_of_alpaca_eval_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "alpaca_eval", None)
    with pytest.raises(MissingExtraError, match=r"dspy-tpo\[alpaca-eval\]"):
        run_package([], {}, generator="x", folder=tmp_path)


def test_the_papers_table_is_whole() -> None:
    assert {column for b in BENCHMARKS.values() for column in b.published} == set(COLUMNS)
    assert all(len(row.values) == len(COLUMNS) for row in TABLE)
    best = next(row for row in TABLE if row.policy == "70B-SFT + TPO * D5-N20")
    assert (best.of("Arena-Hard"), best.of("MATH-500")) == (77.5, 71.8)
