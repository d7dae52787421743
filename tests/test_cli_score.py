from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from tpo_modules.cli.score import score
from tpo_modules.errors import ConfigurationError, DataFileError
from tpo_modules.scorers.base import Query
from tpo_modules.scorers.preference_data import (
    PreferenceRow,
    ResponseRow,
    parse_transcript,
    read_rows,
)
from tpo_modules.scorers.preference_report import (
    accuracy,
    correlation,
    preference_report,
    reward_report,
    score_all,
    wilson,
)

USER = {"role": "user", "content": "q"}


def write(folder: Path, rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


# --- reading --------------------------------------------------------------------------------------


def test_responses_are_read_with_their_category_and_inputs(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            {"query": "q", "response": "r", "category": "chat"},
            {"prompt": [{"role": "system", "content": "s"}, USER], "response": "", "subset": "x"},
            {"messages": [USER, {"role": "assistant", "content": "r"}]},
            {"question": "2+2?", "response": "4", "answer": "4"},
        ],
    )
    rows = read_rows(path)
    assert rows[0] == ResponseRow("line 1", Query("q"), "r", "chat")
    assert rows[1].category == "x"
    assert [m["role"] for m in rows[1].query.messages] == ["system", "user"]
    assert (str(rows[2].query), rows[2].query.messages) == ("q", (USER,))
    assert rows[3].query.inputs == {"query": "2+2?", "answer": "4"}


PAIR = {"query": "q", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_preferences_are_read_from_plain_and_gzipped_lines(tmp_path: Path, name: str) -> None:
    [row] = read_rows(write(tmp_path, [PAIR], name))
    assert row == PreferenceRow("line 1", Query("q"), "good", "bad", None)


def test_a_json_list_and_blank_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps([PAIR, PAIR], indent=1))
    assert [row.where for row in read_rows(listed)] == ["row 1", "row 2"]
    spaced = tmp_path / "rows.jsonl"
    spaced.write_text(f"\n{json.dumps(PAIR)}\n\n{json.dumps(PAIR)}\n", encoding="utf-8-sig")
    assert [row.where for row in read_rows(spaced)] == ["line 2", "line 4"]


def test_inputs_and_answers_are_kept_in_rows_of_every_form(tmp_path: Path) -> None:
    answered = [USER, {"role": "assistant", "content": "r"}]
    given = {"answer": "4", "inputs": {"unit": "m"}}
    rows = [{"messages": answered, **given}]
    pairs = [
        {"chosen": answered, "rejected": [USER, {"role": "assistant", "content": "x"}], **given},
        {"chosen": HH, "rejected": HH, **given},
    ]
    for row in (*read_rows(write(tmp_path, rows)), *read_rows(write(tmp_path, pairs))):
        assert dict(row.query.inputs) == {"unit": "m", "answer": "4"}


def test_a_json_list_may_follow_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\n \n" + json.dumps([{"query": "q", "response": "r"}], indent=1))
    assert [row.where for row in read_rows(path)] == ["row 1"]


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    [row] = read_rows(write(tmp_path, [{"query": "q", "response": "a\u2028b\x85c"}]))
    assert isinstance(row, ResponseRow)
    assert row.response == "a\u2028b\x85c"


def test_the_limit_stops_before_later_rows_are_looked_at(tmp_path: Path) -> None:
    assert len(read_rows(write(tmp_path, [PAIR, PAIR, {"bad": 1}]), limit=2)) == 2


HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Weather?\n\nAssistant: "


def test_transcripts_share_their_query(tmp_path: Path) -> None:
    [row] = read_rows(write(tmp_path, [{"chosen": HH + "Sunny. ", "rejected": HH + "No."}]))
    assert isinstance(row, PreferenceRow)
    assert (row.chosen, row.rejected) == ("Sunny.", "No.")
    assert str(row.query) == "Weather?"
    assert [m["content"] for m in row.query.messages] == ["Hi", "Hello!", "Weather?"]


def test_transcripts_that_part_early_keep_the_rest_as_text(tmp_path: Path) -> None:
    chosen = "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: B\n\nAssistant: C"
    rejected = "\n\nHuman: Hi\n\nAssistant: D"
    [row] = read_rows(write(tmp_path, [{"chosen": chosen, "rejected": rejected}]))
    assert isinstance(row, PreferenceRow)
    assert row.query.messages == ({"role": "user", "content": "Hi"},)
    assert (row.chosen, row.rejected) == ("A\n\nHuman: B\n\nAssistant: C", "D")


def test_equal_transcripts_are_a_pair_with_equal_responses(tmp_path: Path) -> None:
    [row] = read_rows(write(tmp_path, [{"chosen": HH + "Yes", "rejected": HH + "Yes"}]))
    assert isinstance(row, PreferenceRow)
    assert (str(row.query), row.chosen, row.rejected) == ("Weather?", "Yes", "Yes")


def test_message_lists_with_and_without_a_prompt(tmp_path: Path) -> None:
    def ending(text: str) -> list[dict[str, str]]:
        return [USER, {"role": "assistant", "content": text}]

    rows = read_rows(
        write(
            tmp_path,
            [
                {"prompt": "q", "chosen": ending("a"), "rejected": ending("b")},
                {"prompt": "q", "chosen": ending("a")[1:], "rejected": ending("b")[1:]},
                {"chosen": ending("a"), "rejected": ending("b")},
            ],
        )
    )
    for row in rows:
        assert isinstance(row, PreferenceRow)
        assert (str(row.query), row.chosen, row.rejected) == ("q", "a", "b")


def test_a_text_that_is_no_transcript() -> None:
    assert parse_transcript("Just text\n\nHuman: hi") == []
    assert parse_transcript("Human: hi") == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"query": "q", "response": "r"}, {"query": "q"}],
            "line 2: lacks 'response'; it has 'query'",
        ),
        ([{"response": "r"}], "line 1: lacks 'query'; it has 'response'"),
        (
            [PAIR, {"query": "q", "chosen": "c"}],
            "line 2: lacks 'rejected'; it has 'query', 'chosen'",
        ),
        ([PAIR, {"query": "q", "response": "r"}], "line 2: lacks 'chosen'"),
        ([{"chosen": "c", "rejected": "r"}], "line 1: lacks 'query'"),
        ([{"query": "q", "response": 3}], "line 1: expected 'response' to be text, got int"),
        ([{"query": "q", "chosen": "c", "rejected": [USER]}], "both text, or both lists"),
        ([{"chosen": HH, "rejected": "\n\nHuman: Bye\n\nAssistant: x"}], "share no query"),
        ([{"chosen": [USER], "rejected": [USER]}], "expected the assistant's response"),
        (
            [{"query": 5, "response": "r"}],
            "line 1: expected 'query' to be text, or a list.*; got 5",
        ),
        ([{"query": [], "response": "r"}], r"line 1: expected 'query' to be text.*; got \[\]"),
        ([{"query": None, "response": "r"}], "line 1: lacks 'query'; it has 'response'"),
        (
            [{"messages": [{"role": "user", "content": ["q"]}], "response": "r"}],
            "line 1: expected 'messages' to be text, or a list of messages",
        ),
        ([{"messages": [USER]}], "to end with the assistant's response"),
        ([PAIR, ["q", "r"]], "line 2: expected a JSON object, got list"),
        ([["q", "r"]], "row 1: expected a JSON object, got str"),
        ([], "at least one row"),
    ],
)
def test_bad_rows_name_the_line_and_what_is_missing(
    tmp_path: Path, rows: list[Any], words: str
) -> None:
    path = write(tmp_path, rows)
    with pytest.raises(DataFileError, match=words) as caught:
        read_rows(path)
    assert str(tmp_path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="cannot be read"):
        read_rows(tmp_path / "missing.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(PAIR) + "\n{oops\n")
    with pytest.raises(DataFileError, match="line 2: no JSON"):
        read_rows(bad)
    bad.write_bytes(b'{"query": "\xff"}')
    with pytest.raises(DataFileError, match="cannot be read"):
        read_rows(bad)
    for content in (b"no gzip", gzip.compress(b'{"query": "q", "response": "r"}\n' * 9999)[:60]):
        zipped = tmp_path / "bad.jsonl.gz"
        zipped.write_bytes(content)
        with pytest.raises(DataFileError, match="cannot be read"):
            read_rows(zipped)


# --- computing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        (0, 10, (0.0, 0.2775)),
        (5, 10, (0.2366, 0.7634)),
        (10, 10, (0.7225, 1.0)),
        (780, 1300, (0.5731, 0.6263)),
    ],
)
def test_wilson_equals_published_values(
    successes: int, trials: int, interval: tuple[float, float]
) -> None:
    share, low, high = wilson(successes, trials)
    assert share == successes / trials
    assert (low, high) == pytest.approx(interval, abs=1e-4)


def test_wilson_without_trials() -> None:
    share, low, high = wilson(0, 0)
    assert math.isnan(share)
    assert (low, high) == (0, 1)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(counts: tuple[int, int]) -> None:
    share, low, high = wilson(*counts)
    assert 0 <= low <= share <= high <= 1


def test_ties_count_half_and_nan_is_left_out() -> None:
    found = accuracy([1.0, -1.0, 0.0, 2.0, math.nan])
    assert (found.pairs, found.wins, found.ties, found.unscored) == (4, 2, 1, 1)
    assert found.value == 2.5 / 4


def test_correlation() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 2, 3, 4], [1, -1, -1, 1]) == pytest.approx(0)
    assert correlation([1], [1]) is None
    assert correlation([0.1] * 3, [1, 2, 3]) is None
    assert correlation([1, 2, 3], [0.1 + 0.2] * 3) is None


def preference(
    query: str, chosen: str, rejected: str, category: str | None = None
) -> PreferenceRow:
    return PreferenceRow("line 1", Query(query), chosen, rejected, category)


def test_a_preference_report_by_category_with_its_length_bias() -> None:
    rows = [
        preference("a", "long one", "x", "chat"),
        preference("b", "x", "long one", "chat"),
        preference("c", "x", "longest of all", "code"),
        preference("d", "xx", "yy", "code"),
        preference("e", "x", "yy", None),
    ]
    rewards = [(2.0, 1.0), (1.0, 3.0), (1.0, 1.0), (5.0, 4.0), (math.nan, 0.0)]
    report = preference_report(rows, rewards)
    assert (report.overall.pairs, report.overall.value, report.overall.unscored) == (4, 2.5 / 4, 1)
    assert {name: found.value for name, found in report.by_category.items()} == {
        "(none)": pytest.approx(math.nan, nan_ok=True),
        "chat": 0.5,
        "code": 0.75,
    }
    assert report.mean_margin == 0
    assert report.length.longer_wins == pytest.approx((1 + 1 + 0.5) / 3)
    assert report.length.longer_chosen == pytest.approx(1 / 3)


def test_within_query_correlation_ignores_what_differs_between_queries() -> None:
    rows = [
        ResponseRow("line 1", Query(query), "x" * length)
        for query, length in [("easy", 1), ("easy", 3), ("hard", 101), ("hard", 103)]
    ]
    report = reward_report(rows, [9.0, 10.0, -10.0, -9.0])
    assert report.length.within_query == pytest.approx(1)
    assert report.length.correlation is not None
    assert report.length.correlation < -0.9
    assert report.overall.mean == 0
    assert report.by_category == {}


def test_all_chunks_are_scored_in_order_and_progress_is_told() -> None:
    class Length:
        def score(self, query: str, responses: Sequence[str]) -> list[float]:
            return [float(len(response)) for response in responses]

    done: list[int] = []
    pairs = [(f"q{i % 2}", "x" * i) for i in range(10)]
    rewards = score_all(
        Length(), pairs, chunk=4, workers=2, on_progress=lambda r: done.append(len(r))
    )
    assert rewards == [float(i) for i in range(10)]
    assert done == [4, 8, 10]


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def scorer(tmp_path: Path) -> str:
    file = tmp_path / "by_length.py"
    file.write_text(
        "from tpo_modules.scorers.base import Reward\n"
        "def reward(query, response):\n"
        "    return Reward(len(response), feedback='long' if len(response) > 3 else None)\n"
    )
    return f"python:{file}:reward"


def tpo_score(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(score)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_preferences_print_a_table(tmp_path: Path, scorer: str) -> None:
    rows = [
        {**PAIR, "category": "chat"},
        {**PAIR, "category": "chat"},
        {**PAIR, "chosen": "x", "category": "code"},
    ]
    result = tpo_score(write(tmp_path, rows), "--reward", scorer)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[:4] == [
        "category pairs accuracy 95 % interval ties unscored",
        "chat 2 100.0 % 34.2 % to 100.0 % 0 0",
        "code 1 0.0 % 0.0 % to 79.3 % 0 0",
        "all 3 66.7 % 20.8 % to 93.9 % 0 0",
    ]
    text = " ".join(" ".join(lines).split())
    assert "the longer response wins 100.0 % of the pairs" in text
    assert "is the chosen one in 66.7 %" in text
    assert "correlation of reward with length: 1.000 over all responses, 1.000 within" in text


def test_preferences_as_json_and_to_a_file(tmp_path: Path, scorer: str) -> None:
    out = tmp_path / "out.jsonl"
    path = write(tmp_path, [PAIR, {**PAIR, "rejected": "very bad"}])
    result = tpo_score(path, "--reward", scorer, "--json", "--out", out, "--limit", 2)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["overall"]["value"] == 0.5
    assert report["by_category"] == {}
    assert report["length"]["longer_wins"] == 1.0
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {
            "where": "line 1",
            "chosen_reward": 4.0,
            "rejected_reward": 3.0,
            "chosen_feedback": "long",
        },
        {
            "where": "line 2",
            "chosen_reward": 4.0,
            "rejected_reward": 8.0,
            "chosen_feedback": "long",
            "rejected_feedback": "long",
        },
    ]


def test_responses_print_their_rewards(tmp_path: Path, scorer: str) -> None:
    path = write(
        tmp_path, [{"query": "q", "response": "[b]bold[/b]\nx"}, {"query": "q", "response": ""}]
    )
    result = tpo_score(path, "--reward", scorer)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["line", "1", "13.0000", "[b]bold[/b]", "x"]
    assert lines[1] == ["line", "2", "0.0000"]


def test_responses_as_json(tmp_path: Path, scorer: str) -> None:
    rows = [{"query": "q", "response": "abcd"}, {"query": "q", "response": "ab"}]
    result = tpo_score(write(tmp_path, rows), "--reward", scorer, "--json")
    report = json.loads(result.stdout)
    assert report["rewards"] == [
        {"where": "line 1", "reward": 4.0, "feedback": "long"},
        {"where": "line 2", "reward": 2.0},
    ]
    assert report["overall"]["mean"] == 3.0
    assert report["length"]["within_query"] == pytest.approx(1)


def test_errors_come_before_any_scoring(tmp_path: Path, scorer: str) -> None:
    result = tpo_score(write(tmp_path, [PAIR, {"query": "q"}]), "--reward", scorer)
    assert isinstance(result.exception, DataFileError)
    assert result.stdout == ""
    result = tpo_score(write(tmp_path, [PAIR]), "--reward", scorer, "--chunk", 0)
    assert isinstance(result.exception, ConfigurationError)


@pytest.fixture
def failing(tmp_path: Path) -> str:
    file = tmp_path / "failing.py"
    file.write_text(
        "import numpy as np\n"
        "from tpo_modules.scorers.base import Reward\n"
        "class Scorer:\n"
        "    def score(self, query, responses):\n"
        "        if 'end' in responses:\n"
        "            raise ConnectionError('the server is gone')\n"
        "        notes = ['cut by 3 tokens']\n"
        "        return [Reward(float('nan'), notes=notes) if r == 'odd' else np.float32(len(r))\n"
        "                for r in responses]\n"
        "scorer = Scorer()\n"
    )
    return f"python:{file}:scorer"


def test_what_was_scored_outlives_a_failure(tmp_path: Path, failing: str) -> None:
    rows = [{"query": f"q{i}", "response": "r" * i} for i in range(5)]
    rows.append({"query": "q5", "response": "end"})
    out = tmp_path / "new" / "out.jsonl"
    result = tpo_score(write(tmp_path, rows), "--reward", failing, "--out", out, "--chunk", 2)
    assert isinstance(result.exception, Exception)
    assert "4 of 6 rows were scored" in " ".join(result.stderr.split())
    assert [json.loads(line)["reward"] for line in out.read_text().splitlines()] == [0, 1, 2, 3]


def test_a_file_that_cannot_be_written_is_told_before_any_scoring(tmp_path: Path) -> None:
    path = write(tmp_path, [PAIR])
    for out in (tmp_path, path / "out.jsonl"):
        result = tpo_score(path, "--reward", "python:nowhere:reward", "--out", out)
        assert isinstance(result.exception, ConfigurationError)
        assert "--out" in str(result.exception)


def test_numbers_of_any_kind_and_what_was_said_of_both_responses(
    tmp_path: Path, failing: str
) -> None:
    out = tmp_path / "out.jsonl"
    path = write(tmp_path, [{**PAIR, "rejected": "odd"}])
    result = tpo_score(path, "--reward", failing, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["overall"]["unscored"] == 1
    assert json.loads(out.read_text()) == {
        "where": "line 1",
        "chosen_reward": 4.0,
        "rejected_reward": None,
        "rejected_notes": ["cut by 3 tokens"],
    }
