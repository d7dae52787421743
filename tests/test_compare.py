"""Comparisons: shared first samples, matched costs, paired figures, nothing run twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import dspy
import pytest
from typer.testing import CliRunner

from tpo_modules import BestOfNModule, RevisionModule, TPOModule
from tpo_modules.cli import app
from tpo_modules.errors import ConfigurationError, RunFolderError, ScorerError
from tpo_modules.experiments import CompareSettings, Comparison, Method, compare, make_methods
from tpo_modules.experiments.judging import Judged, judge_responses
from tpo_modules.experiments.outcomes import (
    Outcome,
    drawn_responses,
    first_sample_only,
    outcome_of_first,
)
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.runner import RunSettings
from tpo_modules.runs.saved_run import SavedRun
from tpo_modules.testing import Reply, ScriptedLM
from tpo_modules.trace import TPOTrace

QUERIES = [f"What is {i} plus {i}?" for i in range(6)]


def reward(query: str, response: str) -> float:
    return int(hashlib.sha256(response.encode()).hexdigest()[:4], 16) / 1000


COMMON: dict[str, Any] = {"scorer": reward, "width": 3, "seed": 1}


def say(prompt: str) -> Reply:
    """Say a word that is new every time; critiques are long, answers are short."""
    say.count = getattr(say, "count", 0) + 1  # type: ignore[attr-defined]
    critique = "rewrite" in prompt or "grade" in prompt or "Review" in prompt
    return Reply(f"word{say.count}", tokens=30 if critique else 10)  # type: ignore[attr-defined]


def run(
    folder: Path,
    specs: Sequence[str] = ("single", "bon", "revision", "tpo", "self-refine"),
    lm: ScriptedLM | None = None,
    queries: Sequence[str] = QUERIES,
    judge: Any = None,
    **settings: Any,
) -> Comparison:
    with dspy.context(lm=lm or ScriptedLM(say)):
        return compare(
            make_methods(specs, COMMON, depth=2),
            queries,
            out=folder,
            judge=judge,
            settings=CompareSettings(**settings),
        )


def test_all_methods_start_from_the_same_samples(tmp_path: Path) -> None:
    lm = ScriptedLM(say)
    run(tmp_path, lm=lm)
    first = {i: t.rewards_by_step[0] for i, t in SavedRun(tmp_path / "first").traces()}
    assert len(first) == 6
    for name in ("revision", "tpo", "bon"):
        traces = dict(SavedRun(tmp_path / "methods" / name).traces())
        assert {i: t.rewards_by_step[0] for i, t in traces.items()} == first
    alone = dict(SavedRun(tmp_path / "methods" / "self-refine").traces())
    assert {i: t.rewards_by_step[0] for i, t in alone.items()} == {
        i: rewards[:1] for i, rewards in first.items()
    }
    # First round 3; revision and tpo 2 x (2 critiques + 3 samples) each; self-refine 2 x 3; bon 6 more.
    assert len(lm.requests) == 6 * (3 + 10 + 10 + 6 + 6)


def test_best_of_n_gets_as_many_samples_as_tpo_draws(tmp_path: Path) -> None:
    found = {f.method: f for f in run(tmp_path).figures}
    assert found["bon"].samples == found["tpo"].samples == 9
    assert found["single"].samples == 1
    assert found["tpo"].tokens == 9 * 10 + 4 * 30
    assert found["bon"].tokens == 9 * 10


def test_best_of_n_gets_as_many_samples_as_tpo_s_tokens_buy(tmp_path: Path) -> None:
    found = {f.method: f for f in run(tmp_path, match="tokens").figures}
    assert found["tpo"].tokens == 210
    assert found["bon"].tokens == 210
    assert found["bon"].samples == 21


def test_matching_by_samples_and_then_by_tokens_draws_only_what_is_new(tmp_path: Path) -> None:
    run(tmp_path)
    lm = ScriptedLM(say)
    by_tokens = {f.method: f for f in run(tmp_path, lm=lm, match="tokens").figures}
    assert by_tokens["bon"].samples == 21
    assert len(lm.requests) == 6 * (24 - 9)  # eight rounds of three, of which three are there
    again = ScriptedLM(say)
    by_samples = {f.method: f for f in run(tmp_path, lm=again, match="samples").figures}
    assert by_samples["bon"].samples == 9
    assert again.requests == []


def test_the_same_call_again_runs_nothing_and_says_the_same(tmp_path: Path) -> None:
    first = run(tmp_path)
    lm = ScriptedLM(say)
    again = run(tmp_path, lm=lm)
    assert lm.requests == []
    assert again.summary() == first.summary()


def test_a_method_against_itself_gains_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, ("tpo", "twin=tpo"), baseline="tpo")
    twin = found.figures[1]
    assert twin.method == "twin"
    assert twin.gain.low <= 0 <= twin.gain.high  # other samples, the same method


def test_self_refine_takes_its_last_response_whatever_its_reward(tmp_path: Path) -> None:
    found = run(tmp_path, ("bon", "self-refine"))
    traces = dict(SavedRun(tmp_path / "methods" / "self-refine").traces())
    for outcome in found.outcomes["self-refine"]:
        assert outcome.response == traces[outcome.id].candidates[-1].response
        assert outcome.samples == 3


def test_a_query_the_judge_fails_on_is_left_out_of_all_methods(tmp_path: Path) -> None:
    class Judge:
        def __repr__(self) -> str:
            return "Judge()"

        def score(self, query: str, responses: Sequence[str]) -> list[float]:
            if query == QUERIES[2]:
                raise RuntimeError("no verdict")
            return [float(len(response)) for response in responses]

    found = run(tmp_path, ("bon", "tpo"), judge=Judge())
    assert found.queries == 5
    assert "no verdict" in found.excluded["2"]
    assert all(len(rows) == 5 for rows in found.outcomes.values())
    assert found.figures[1].judge_gain is not None
    assert "1 left out" in found.heading()


def test_what_the_judge_said_is_kept(tmp_path: Path) -> None:
    asked: list[str] = []

    class Judge:
        def __repr__(self) -> str:
            return "Judge()"

        def score(self, query: str, responses: Sequence[str]) -> list[float]:
            asked.extend(responses)
            return [1.0] * len(responses)

    run(tmp_path, ("bon", "tpo"), judge=Judge())
    assert asked
    asked.clear()
    run(tmp_path, ("bon", "tpo"), judge=Judge())
    assert asked == []


def test_a_query_that_fails_in_the_first_round_is_left_out(tmp_path: Path) -> None:
    def fail_on_one(prompt: str) -> Any:
        return Reply("") if QUERIES[3] in prompt else say(prompt)

    found = run(tmp_path, ("bon", "tpo"), lm=ScriptedLM(fail_on_one))
    assert found.queries == 5
    assert "NoCandidateError" in found.excluded["3"] or "EmptyResponse" in found.excluded["3"]


def test_runs_that_a_failure_cut_short_are_counted_and_said(tmp_path: Path) -> None:
    def refuse(prompt: str) -> Any:
        if QUERIES[0] in prompt:
            return say(prompt)
        return dspy.LMInvalidRequestError("400: maximum context length is 8192 tokens")

    methods = make_methods(["single", "bon", "tpo"], {**COMMON, "critic_lm": ScriptedLM(refuse)})
    with dspy.context(lm=ScriptedLM(say)):
        found = compare(methods, QUERIES, out=tmp_path)
    assert [f.cut_short for f in found.figures] == [0, 0, 5]
    assert "Cut short by failures: tpo on 5 of 6 queries" in found.heading()
    _, heads, rows = found.tables()[-1]
    assert (heads[-1], [row[-1] for row in rows]) == ("cut short", ["0", "0", "5"])
    lines = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert sum(line["cut_short"] for line in lines) == 5


def test_a_part_of_a_failed_run_of_samples_that_is_whole_is_not_cut_short() -> None:
    trace = bon_trace([Reply("one"), Reply("two")]).model_copy(update={"status": "failed"})
    cut = {n: outcome_of_first("x", trace, samples=n) for n in (1, 2, 3, None)}
    assert {n: one.cut_short for n, one in cut.items() if one} == {
        1: False, 2: False, 3: True, None: True,
    }  # fmt: skip


class NamelessJudge:
    """A judge without a ``__repr__`` of its own: every object's is another."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[str] = []
        self.seconds = seconds

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        self.asked.append(query)
        time.sleep(self.seconds)
        return [1.0] * len(responses)


def ask(judge: NamelessJudge, out: Path, count: int = 4) -> Judged:
    wanted = [(QueryRow(str(i), {"query": f"q{i}"}), [f"a{i}"]) for i in range(count)]
    return judge_responses(judge, wanted, policy=BestOfNModule(scorer=reward).policy, out=out)


def test_a_torn_judgement_is_asked_again_and_another_process_asks_nothing(tmp_path: Path) -> None:
    out = tmp_path / "judge.jsonl"
    ask(NamelessJudge(), out, 3)
    out.write_bytes(out.read_bytes()[:-9])
    resumed, later = NamelessJudge(), NamelessJudge()
    assert len(ask(resumed, out).rewards) == 4
    assert len(resumed.asked) == 2  # the torn one and the new one
    assert len(ask(later, out).rewards) == 4
    assert later.asked == []


def test_a_broken_judgement_is_told_by_its_line(tmp_path: Path) -> None:
    out = tmp_path / "judge.jsonl"
    ask(NamelessJudge(), out, 2)
    whole = out.read_bytes()
    for broken in (b"{broken\n", b'{"id": "7"}\n'):
        out.write_bytes(whole + broken)
        with pytest.raises(RunFolderError, match="line 3"):
            ask(NamelessJudge(), out)
        assert out.read_bytes() == whole + broken


def test_an_interrupted_judging_keeps_what_came_and_asks_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(job: Future[None], timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "judge.jsonl"
    judge = NamelessJudge(seconds=0.2)
    with monkeypatch.context() as patched:
        patched.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(judge, out, 60)
    assert len(out.read_bytes().splitlines()) == len(judge.asked) < 60
    assert len(ask(NamelessJudge(), out, 60).rewards) == 60


@pytest.mark.parametrize("rounds_there", [1, 2])
def test_a_query_whose_further_samples_cannot_be_scored_is_left_out(
    tmp_path: Path, rounds_there: int
) -> None:
    broken: list[str] = []

    def scores(query: str, response: str) -> float:
        if query in broken and int(response.removeprefix("word")) > last:
            raise ScorerError("HTTP 500: the reward server is full")
        return reward(query, response)

    def bon(count: int) -> Comparison:
        with dspy.context(lm=ScriptedLM(say)):
            methods = make_methods(["single", f"b=bon{count}"], {**COMMON, "scorer": scores})
            settings = CompareSettings(run=RunSettings(patience=0))
            return compare(methods, QUERIES, out=tmp_path, settings=settings)

    bon(3 * rounds_there)
    last = int(say("").text.removeprefix("word"))
    broken.append(QUERIES[2])
    found = bon(9)
    assert found.queries == 5
    assert list(found.excluded) == ["2"]
    assert found.excluded["2"].startswith("no further round of best-of-N: ")
    broken.clear()
    assert bon(9).queries == 6  # the same call tries it again


def test_rounds_of_a_known_number_are_drawn_in_one_run(tmp_path: Path) -> None:
    found = run(tmp_path, ("single", "b=bon20"))
    assert found.figures[1].samples == 20
    lines = (tmp_path / "methods/bon/traces.jsonl").read_text().splitlines()
    assert len(lines) == len(QUERIES)


def test_the_folder_holds_table_figures_and_outcomes(tmp_path: Path) -> None:
    found = run(tmp_path)
    settings = json.loads((tmp_path / "compare.json").read_text())
    assert settings["methods"]["single"] == {
        "label": "D0-N3", "take": "best", "samples": 1, "matched": False, "run": "methods/bon",
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert len(rows) == 5 * 6
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["queries"] == 6
    table = (tmp_path / "table.md").read_text()
    for method in found.outcomes:
        assert f"| {method} |" in table
    assert "best-of-N matched to tpo by samples" in table


def test_another_configuration_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, ("bon", "tpo"))
    with (
        dspy.context(lm=ScriptedLM(say)),
        pytest.raises(RunFolderError, match="seed: 1 there, 2 here"),
    ):
        compare(make_methods(["bon", "tpo"], {**COMMON, "seed": 2}), QUERIES, out=tmp_path)


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["tpo", "tpo"], "a name of its own for each method, got tpo more than once"),
        (["tpoo"], "expected a method of tpo, revision, bon"),
        (["a=tpo,width=3"], "expected depth=, selection=, loss="),
        (["a=tpo,depth=two"], "whole number for depth"),
        (["bon0"], "N of at least 1"),
        (["x=bon15,depth=4"], "no options for bon15, which has no steps, got depth=4"),
        (["x=single,loss=/no/such/file"], "no options for single"),
        (["x=bon,selection=nonsense,update=none"], "no options for bon"),
        (["../x=tpo"], "name of a method to be letters"),
    ],
)
def test_unusable_methods_are_refused(specs: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make_methods(specs, COMMON)


def test_a_template_file_names_its_step(tmp_path: Path) -> None:
    template = tmp_path / "loss_curt.txt"
    template.write_text("Be curt.")
    (method,) = make_methods([f"curt={template}"], COMMON)
    assert "Be curt." in str(method.module.render("loss"))
    nameless = tmp_path / "curt.txt"
    nameless.write_text("Be curt.")
    with pytest.raises(ConfigurationError, match="cannot tell which step"):
        make_methods([f"curt={nameless}"], COMMON)
    (method,) = make_methods([f"curt=revision,loss={nameless},depth=3"], COMMON)
    assert isinstance(method.module, RevisionModule)
    assert method.module.label == "D3-N3"


def test_a_critic_lm_writes_the_critiques_of_every_method_that_has_them(tmp_path: Path) -> None:
    critic = ScriptedLM(say)
    with dspy.context(lm=ScriptedLM(say)):
        compare(
            make_methods(
                ["single", "bon2", "bon", "tpo", "self-refine"], {**COMMON, "critic_lm": critic}
            ),
            QUERIES[:2],
            out=tmp_path,
        )
    assert (
        len(critic.requests) == 2 * 4 * 2
    )  # two queries, two critiques in each of two steps, two methods


def test_methods_that_cannot_share_a_first_round_are_refused(tmp_path: Path) -> None:
    methods = [
        Method(name="a", module=TPOModule(**COMMON)),
        Method(name="b", module=BestOfNModule(scorer=reward, width=3, seed=9)),
    ]
    with pytest.raises(ConfigurationError, match="b differs in seed"):
        compare(methods, QUERIES, out=tmp_path)
    with pytest.raises(ConfigurationError, match="at least one method"):
        compare([], QUERIES, out=tmp_path)
    with pytest.raises(ConfigurationError, match="baseline to be one of"):
        run(tmp_path, ("tpo",), baseline="bon")


def bon_trace(replies: Sequence[Reply], scores: Any = reward) -> TPOTrace:
    module = BestOfNModule(scorer=scores, width=len(replies), native_n=False)
    with dspy.context(lm=ScriptedLM(list(replies))):
        return module("What is it?").trace


def test_prefixes_of_samples_count_what_was_lost() -> None:
    def scores(query: str, response: str) -> float:
        return float("nan") if response == "bad" else float(response)

    replies = [
        Reply("1", tokens=5),
        Reply("", tokens=2),
        Reply("bad", tokens=4),
        Reply("3", tokens=6),
    ]
    trace = bon_trace(replies, scores)
    drawn = drawn_responses(trace)
    texts = [one.completion.text for one in drawn]
    by_text = {one.completion.text: one.candidate for one in drawn}
    assert sorted(texts) == ["", "1", "3", "bad"]
    assert by_text["bad"] is None
    assert by_text[""] is None
    assert (by_text["1"] and by_text["1"].reward) == 1
    assert (by_text["3"] and by_text["3"].reward) == 3
    whole = outcome_of_first("x", trace)
    assert whole is not None
    assert (whole.reward, whole.samples) == (3, 4)


def test_a_token_limit_leaves_out_the_sample_that_would_go_over_it() -> None:
    trace = bon_trace([Reply(f"w{i}", tokens=10) for i in range(5)])

    def take(tokens: int) -> Outcome:
        outcome = outcome_of_first("x", trace, tokens=tokens)
        assert outcome is not None
        return outcome

    assert (take(30).samples, take(30).tokens) == (3, 30)
    assert take(39).samples == 3
    assert take(1).samples == 1  # one sample at least
    assert take(1000).samples == 5


def test_the_first_usable_sample_is_a_run_of_its_own() -> None:
    trace = bon_trace([Reply("one", tokens=3), Reply("two", tokens=4)])
    alone = first_sample_only(trace)
    assert alone is not None
    assert [c.text for c in alone.calls[0].completions] == [trace.calls[0].completions[0].text]
    assert alone.scorings[0].rewards == trace.scorings[0].rewards[:1]


@pytest.mark.parametrize(
    ("skip", "says"), [("-1", "--skip to be 0 or more"), ("6", "leave a query of the 6")]
)
def test_skipping_more_than_there_is_is_refused(tmp_path: Path, skip: str, says: str) -> None:
    data = tmp_path / "queries.json"
    data.write_text(json.dumps(QUERIES))
    words = ["compare", "bon", "--data", str(data), "--skip", skip, "--reward", "math"]
    done = CliRunner().invoke(app, [*words, "--lm", "openai/scripted"])
    assert isinstance(done.exception, ConfigurationError)
    assert says in str(done.exception)


def test_the_command_leaves_table_figure_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "queries.json"
    data.write_text(json.dumps(QUERIES))
    (tmp_path / "reward.py").write_text(
        "def reward(query, response):\n    return float(len(response))\n"
    )

    def scripted(*given: Any) -> ScriptedLM:
        return ScriptedLM(say)

    monkeypatch.setattr("tpo_modules.cli.compare.make_lm", scripted)
    words = ["compare", "single", "bon", "tpo", "--data", str(data), "--out", str(tmp_path / "out")]
    words += ["--reward", f"python:{tmp_path / 'reward.py'}:reward", "--lm", "openai/scripted"]
    with pytest.raises(SystemExit) as ended:
        app(words)
    assert ended.value.code == 0
    for name in ("table.md", "rewards.svg", "rewards.png", "report.html", "outcomes.jsonl"):
        assert (tmp_path / "out" / name).stat().st_size > 0, name
    said = capsys.readouterr().out
    assert "gain over bon" in said
    assert "So few queries settle nothing" in said
