from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tpo_modules.errors import ConfigurationError, InputError, MissingExtraError
from tpo_modules.scorers.base import Query, Reward
from tpo_modules.scorers.verifiable import (
    ExactMatchScorer,
    JSONSchemaScorer,
    MathScorer,
    RegexScorer,
    VerifiableScorer,
)


def judge(scorer: VerifiableScorer, response: str, query: str = "q") -> Reward:
    [reward] = scorer.score(query, [response])
    assert isinstance(reward, Reward)
    return reward


# --- where the reference comes from ---------------------------------------------------------------


def test_the_reference_comes_from_the_constructor_a_mapping_or_the_inputs() -> None:
    with_input = Query("capital?", inputs={"query": "capital?", "answer": "Paris"})
    assert judge(ExactMatchScorer("Paris"), "Paris") == 1
    assert judge(ExactMatchScorer({"capital?": "Paris"}), "Paris", "capital?") == 1
    assert judge(ExactMatchScorer(), "Paris", with_input) == 1
    assert judge(ExactMatchScorer(), "Rome", with_input) == 0


def test_a_missing_reference_is_named() -> None:
    with pytest.raises(
        InputError, match=r"no input 'answer' with the query 'q'; it has \['query'\]"
    ):
        judge(ExactMatchScorer(), "x")
    with pytest.raises(InputError, match="for 1 queries, but none for 'q'"):
        judge(ExactMatchScorer({"other": "x"}), "x")


# --- exact match ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "response", "reward"),
    [
        ({}, "  new\n york ", 1),
        ({}, "York", 0),
        ({"ignore_case": False}, "new york", 0),
        ({"extract": r"Answer: (.+)"}, "Answer: Rome\nNo.\nAnswer: New York", 1),
        ({"extract": r"Answer: (.+)"}, "New York", 0),
        ({"extract": r"[A-Z]\w+ [A-Z]\w+"}, "It is New York.", 1),
    ],
)
def test_exact_match(options: dict[str, Any], response: str, reward: float) -> None:
    assert judge(ExactMatchScorer("New York", **options), response) == reward


def test_exact_match_tells_the_right_answer_only_when_asked() -> None:
    assert judge(ExactMatchScorer("Paris"), "Rome").feedback == "The answer 'Rome' is wrong."
    assert (
        judge(ExactMatchScorer("Paris", reveal=True), "Rome").feedback
        == "The answer 'Rome' is wrong; the right answer is 'Paris'."
    )


# --- regular expressions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "response", "reward"),
    [
        ({}, "call 555-1234 now", 1),
        ({}, "call me", 0),
        ({"whole": True}, "call 555-1234 now", 0),
        ({"whole": True}, "555-1234", 1),
    ],
)
def test_regular_expressions(options: dict[str, Any], response: str, reward: float) -> None:
    assert judge(RegexScorer(r"\d{3}-\d{4}", **options), response) == reward


def test_a_requirement_in_words_is_the_feedback() -> None:
    scorer = RegexScorer("^yes$", flags=re.IGNORECASE, requirement="to say yes and nothing else")
    assert judge(scorer, "YES").feedback == (
        "The response was asked to say yes and nothing else, and does."
    )
    assert "to match the pattern '^yes$'" in str(judge(RegexScorer("^yes$"), "no").feedback)


def test_a_bad_expression_is_found_early() -> None:
    with pytest.raises(ConfigurationError, match=r"regular expression, got '\('"):
        RegexScorer("(")
    with pytest.raises(ConfigurationError, match="regular expression"):
        RegexScorer({"q": "["})
    with pytest.raises(ConfigurationError, match="regular expression"):
        ExactMatchScorer("x", extract="*")


# --- mathematics ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maths() -> Iterator[MathScorer]:
    pytest.importorskip("math_verify", reason="needs the extra 'verify'")
    scorer = MathScorer(timeout=20)
    yield scorer
    scorer.close()


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        ("6+9i", r"\boxed{6+9i}", 1),
        ("6+9i", r"\boxed{6+8i}", 0),
        (r"2\sqrt{5}", r"It is \boxed{2\sqrt{5}}.", 1),
        (r"2\sqrt{5}", r"\boxed{2}", 0),
        ("1/2", r"So the result is \boxed{\frac{2}{4}}.", 1),
        ("0.5", "The answer is 1/2", 1),
        (r"\frac{1}{2}", r"\boxed{0.51}", 0),
        ("(1,2)", r"\boxed{(1, 2)}", 1),
        ("x^2+2x+1", r"$(x+1)^2$", 1),
        ("42", "First 41, then the final answer is $42$.", 1),
        ("42", "I do not know.", 0),
        (7, r"\boxed{7}", 1),
    ],
)
def test_maths(maths: MathScorer, answer: Any, response: str, reward: float) -> None:
    query = Query("q", inputs={"answer": answer})
    assert judge(maths, response, query) == reward


def test_maths_says_what_it_found(maths: MathScorer) -> None:
    query = Query("q", inputs={"answer": "42"})
    assert judge(maths, r"\boxed{41}", query).feedback == "The final answer 41 is wrong."
    assert "No final answer" in str(judge(maths, "Hm.", query).feedback)


def test_maths_works_in_threads_and_after_pickling(maths: MathScorer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    query = Query("q", inputs={"answer": "6"})

    def boxed(number: int) -> Reward:
        return judge(maths, f"\\boxed{{{number}}}", query)

    with ThreadPoolExecutor(4) as pool:
        rewards = list(pool.map(boxed, range(5, 9)))
    assert rewards == [0, 1, 0, 0]
    copy: MathScorer = pickle.loads(pickle.dumps(maths))
    assert judge(copy, r"\boxed{6}", query) == 1
    copy.close()


def test_an_endless_comparison_is_stopped_and_the_next_one_works(
    maths: MathScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = Query("q", inputs={"answer": "6"})
    monkeypatch.setattr(maths._worker, "_timeout", 0.3)  # pyright: ignore[reportPrivateUsage]
    endless = judge(maths, r"\boxed{9^{9^{9^{9^9}}} + \int_0^1 x^{x^{x^x}} dx}", query)
    monkeypatch.undo()
    assert endless == 0
    assert "could not be checked" in str(endless.feedback)
    assert judge(maths, r"\boxed{6}", query) == 1


def test_a_reference_that_is_no_maths_is_an_error(maths: MathScorer) -> None:
    with pytest.raises(InputError, match=r"cannot read the reference answer '\?\?\?'"):
        judge(maths, "1", Query("q", inputs={"answer": "???"}))


def test_maths_refuses_a_timeout_of_zero() -> None:
    with pytest.raises(ConfigurationError, match="timeout to be positive"):
        MathScorer("1", timeout=0)


# --- JSON -----------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "required": ["name", "age"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
}


@pytest.mark.parametrize(
    ("response", "reward", "words"),
    [
        ('{"name": "Ada", "age": 36}', 1, "keeps to the schema"),
        ('```json\n{"name": "Ada", "age": 36}\n```', 1, "keeps to the schema"),
        ('{"name": "Ada"}', 1 / 2, "'age' is a required property"),
        ('{"name": 1, "age": -1}', 1 / 3, r"\$\.age: .*; \$\.name: "),
        ("name: Ada", 0, "is no JSON"),
        ("", 0, "is no JSON"),
        ("[" * 100_000, 0, "nested too deeply|is no JSON"),
        ('{"name": "Ada", "age": NaN}', 0, "is no JSON: NaN is no number"),
        ('{"name": "Ada", "age": -Infinity}', 0, "is no JSON: -Infinity is no number"),
    ],
)
def test_json(response: str, reward: float, words: str) -> None:
    pytest.importorskip("jsonschema", reason="needs the extra 'verify'")
    found = judge(JSONSchemaScorer(SCHEMA), response)
    assert found == pytest.approx(reward)
    assert re.search(words, str(found.feedback))


@pytest.mark.parametrize(
    ("schema", "response", "words"),
    [
        ({"items": {"$ref": "#"}}, "[" * 400 + "]" * 400, "nested too deeply to be checked"),
        ({"multipleOf": 0.5}, "1e999", "number too large to be checked"),
    ],
)
def test_json_that_cannot_be_checked_breaks_nothing(
    schema: dict[str, Any], response: str, words: str
) -> None:
    pytest.importorskip("jsonschema", reason="needs the extra 'verify'")
    found = judge(JSONSchemaScorer(schema), response)
    assert found == 0
    assert words in str(found.feedback)


def test_json_without_grades_and_with_a_schema_from_the_inputs() -> None:
    pytest.importorskip("jsonschema", reason="needs the extra 'verify'")
    assert judge(JSONSchemaScorer(SCHEMA, graded=False), '{"name": "Ada"}') == 0
    query = Query("q", inputs={"schema": '{"type": "integer"}'})
    assert judge(JSONSchemaScorer(), "3", query) == 1


@pytest.mark.parametrize("schema", [{"type": "dog"}, {"minimum": "3"}])
def test_a_bad_schema_is_found_early(schema: dict[str, Any]) -> None:
    pytest.importorskip("jsonschema", reason="needs the extra 'verify'")
    with pytest.raises(ConfigurationError, match="valid JSON schema"):
        JSONSchemaScorer(schema)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingExtraError, match=r"JSONSchemaScorer .*dspy-tpo\[verify\]"):
        JSONSchemaScorer(SCHEMA)
    monkeypatch.setattr("importlib.util.find_spec", dict[str, Any]().get)
    with pytest.raises(MissingExtraError, match=r"MathScorer .*dspy-tpo\[verify\]"):
        judge(MathScorer("1"), "1")
