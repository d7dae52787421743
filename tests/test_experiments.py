"""The paper's experiments on a scripted policy: known answers, files that resume, figures that can be read."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import dspy
import pytest
from typer.testing import CliRunner

from tpo_modules.cli import app
from tpo_modules.errors import ConfigurationError, MissingExtraError
from tpo_modules.experiments import costs, curves, generations, scaling
from tpo_modules.experiments.figures import check_matplotlib
from tpo_modules.experiments.finding import Finding, Setup
from tpo_modules.experiments.plots import draw
from tpo_modules.pool import Candidate
from tpo_modules.testing import Reply, ScriptedLM
from tpo_modules.trace import TPOTrace

QUERIES = [f"What is {i} plus {i}?" for i in range(6)]


def reward(query: str, response: str) -> float:
    return float(response.rpartition("=")[2])


def policy(gain: float = 1.0, model: str = "scripted/7B") -> ScriptedLM:
    """First samples earn 0, 0.1, 0.2 and so on; an update earns ``gain`` more than its draft."""
    serial, lock = itertools.count(), threading.Lock()

    def say(prompt: str) -> Reply:
        with lock:
            number = next(serial)
        drafts = re.findall(r"text\d+=(-?[\d.]+)", prompt)
        if "Write" not in prompt and "Rewrite" in prompt and drafts:
            return Reply(f"text{number}={float(drafts[0]) + gain:.3f}", tokens=20)
        if drafts:
            return Reply("Say more.", tokens=40)
        return Reply(f"text{number}={number % 3 / 10}", tokens=10)

    return ScriptedLM(say, model=model)


def setup(folder: Path, **changes: Any) -> Setup:
    common = {"scorer": reward, "width": 3, "seed": 1, "native_n": False}
    return replace(Setup(queries=QUERIES, out=folder, common=common), **changes)


class Judge:
    def __repr__(self) -> str:
        return "Judge()"

    def score(self, query: str, responses: list[str]) -> list[float]:
        return [min(reward(query, response), 1.0) for response in responses]


JOBS: dict[str, Callable[[Path], Finding]] = {
    "curve": lambda folder: curves.curve(setup(folder)),
    "prerequisite": lambda folder: curves.prerequisite(
        setup(folder), {"good": policy(1.0), "weak": policy(-1.0, "scripted/1B")}
    ),
    "width": lambda folder: scaling.width(setup(folder), widths=(2, 3), also=("D1-N3",)),
    "depth-vs-width": lambda folder: scaling.depth_vs_width(
        setup(folder, judge=Judge()), best_of=(9, 12)
    ),
    "ablations": lambda folder: scaling.ablations(
        setup(folder), methods=("tpo", "revision", "fused")
    ),
    "stability": lambda folder: generations.stability(setup(folder), generations=2),
    "cost": lambda folder: costs.cost_of_own_run(setup(folder), reward_parameters=0),
}


@pytest.mark.parametrize("name", JOBS)
def test_each_experiment_leaves_data_summary_and_figure_and_resumes(
    name: str, tmp_path: Path
) -> None:
    with dspy.context(lm=policy()):
        found = JOBS[name](tmp_path)
    assert found.name == name
    assert all(file.stat().st_size > 100 for file in found.write(tmp_path))
    head, *rows = map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
    assert head["experiment"] == name
    assert head["settings"]
    assert rows == json.loads(json.dumps(found.rows))
    assert json.loads((tmp_path / f"{name}.json").read_text())["settings"] == head["settings"]
    svg, png = draw(found, tmp_path)
    root = ElementTree.fromstring(svg.read_text())
    assert root.tag.endswith("svg")
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10
    assert png.read_bytes().startswith(b"\x89PNG")
    if name != "prerequisite":  # which brings its own LMs
        lm = policy()
        with dspy.context(lm=lm):
            again = JOBS[name](tmp_path)
        assert lm.requests == []
        assert again.rows == found.rows


def test_the_curve_rises_by_what_an_update_gains(tmp_path: Path) -> None:
    with dspy.context(lm=policy(1.0)):
        found = JOBS["curve"](tmp_path)
    at = {(row["method"], row["step"]): row for row in found.rows}
    assert set(at) == {(m, s) for m in ("tpo", "revision", "none") for s in range(3)}
    first = at["tpo", 0]
    assert first["mean_value"] == at["revision", 0]["mean_value"] == at["none", 0]["mean_value"]
    for step in (1, 2):  # every update earns 1 more than the best so far
        row = at["tpo", step]
        assert row["mean_value"] == pytest.approx(first["best_value"] + step)
        assert row["improved"] == 1.0
        assert row["copied"] == 0.0
        assert at["none", step]["gain_value"] == pytest.approx(0, abs=0.11)
        assert at["none", step]["copied"] is None
    assert at["tpo", 2]["best_over_none_low"] > 1.5
    assert found.summary["queries"] == 6


def test_a_policy_that_follows_rises_and_one_that_does_not_falls(tmp_path: Path) -> None:
    found = JOBS["prerequisite"](tmp_path)
    assert found.summary["verdicts"]["good"].startswith("rises")
    assert found.summary["verdicts"]["weak"].startswith("falls")
    assert found.settings["policies"] == {"good": "scripted/7B", "weak": "scripted/1B"}
    with pytest.raises(ConfigurationError, match="at least one policy"):
        curves.prerequisite(setup(tmp_path), {})


def trace(*steps: list[tuple[float, bool]]) -> TPOTrace:
    """Make a trace of rewards and whether each is a copy; every update's draft is the first candidate."""
    candidates: list[Candidate] = []
    for step, samples in enumerate(steps):
        for value, copies in samples:
            index = len(candidates)
            candidates.append(
                Candidate(index=index, step=step, response=str(index), reward=value,
                          parent=0 if step else None, copies_parent=copies)
            )  # fmt: skip
    return TPOTrace(method="tpo", label="", query="", inputs={}, candidates=candidates)


def test_figures_by_step_are_means_over_queries_of_means_over_samples() -> None:
    runs = {
        "a": {
            "x": trace([(1, False), (3, False)], [(1, True), (5, False)]),
            "y": trace([(0, False)], [(0, True), (-1, False), (4, False)]),
            "lost": trace([(0, False)]),
        },
        curves.NONE: {
            "x": trace([(1, False), (3, False)], [(2, False), (2, False)]),
            "y": trace([(0, False)], [(1, False)]),
            "lost": trace([(0, False)], [(0, False)]),
        },
    }
    figures, used, left_out = curves.step_figures(runs, 1)
    last = figures["a"][1]
    assert (used, left_out) == (2, ["lost"])
    assert last.mean.value == (3 + 1) / 2
    assert last.best.value == (5 + 4) / 2
    assert last.gain.value == ((3 - 2) + (1 - 0)) / 2
    assert last.best_gain is not None
    assert last.best_gain.value == ((5 - 3) + (4 - 1)) / 2
    assert last.copied == 2 / 5
    assert last.improved == 2 / 5
    with pytest.raises(ConfigurationError, match="every step from 0 to 5"):
        curves.step_figures(runs, 5)


def test_scatter_is_the_mean_over_queries_of_the_sample_standard_deviation() -> None:
    rewards = {
        "single": {"x": [0.0, 2.0], "y": [1.0, 1.0], "short": [1.0]},
        "tpo": {"x": [1.0, 2.0], "y": [3.0, 3.0], "short": [1.0, 2.0]},
    }
    rows, used, left_out = generations.scatter(rewards, 2)
    assert (used, left_out) == (["x", "y"], ["short"])
    assert rows[0]["sd_value"] == pytest.approx(math.sqrt(2) / 2)
    assert rows[1]["sd_value"] == pytest.approx(math.sqrt(0.5) / 2)
    assert rows[1]["gain_value"] == pytest.approx(-math.sqrt(0.5) / 2)
    assert rows[1]["reward_value"] == 2.25
    with pytest.raises(ConfigurationError, match="3 times"):
        generations.scatter(rewards, 3)


def test_generations_have_first_rounds_of_their_own(tmp_path: Path) -> None:
    lm = policy()
    with dspy.context(lm=lm):
        generations.stability(setup(tmp_path), generations=2, methods=("single",))
    assert len(lm.requests) == 2 * len(QUERIES) * 3
    assert len({request.config.seed for request in lm.requests}) == 2 * 3
    with pytest.raises(ConfigurationError, match="at least 2 generations"):
        generations.stability(setup(tmp_path), generations=1)


def test_width_has_each_shape_and_the_first_round_alone(tmp_path: Path) -> None:
    with dspy.context(lm=policy()):
        found = JOBS["width"](tmp_path)
    shapes = {(row["depth"], row["width"]): row for row in found.rows}
    assert set(shapes) == {(0, 2), (0, 3), (2, 2), (2, 3), (1, 3)}
    best = {n: shapes[0, n]["value"] for n in (2, 3)}
    assert shapes[2, 3]["value"] == pytest.approx(best[3] + 2)
    assert shapes[1, 3]["value"] == pytest.approx(best[3] + 1)
    assert shapes[2, 3]["gain_value"] == pytest.approx(best[3] - best[2])
    assert shapes[2, 3]["samples"] == 9
    with pytest.raises(ConfigurationError, match="a shape such as D3-N10"):
        scaling.width(setup(tmp_path), also=("3x10",))


def test_depth_against_width_counts_wins_by_reward_and_by_judge(tmp_path: Path) -> None:
    with dspy.context(lm=policy()):
        found = JOBS["depth-vs-width"](tmp_path)
    rates = {(row["samples"], row["by"]): row["win_rate_value"] for row in found.rows}
    assert rates == {(s, by): 1.0 for s in (9, 12) for by in ("reward", "judge")}
    assert found.summary["tpo"]["samples"] == 9
    with pytest.raises(ConfigurationError, match="from 1 to 180"):
        scaling.depth_vs_width(setup(tmp_path), best_of=(181,))


def test_width_and_depth_against_width_say_where_runs_were_cut_short(tmp_path: Path) -> None:
    critic = ScriptedLM(lambda prompt: dspy.LMInvalidRequestError("400: the prompt is too long"))
    made = setup(tmp_path)
    made = replace(made, common={**made.common, "critic_lm": critic})
    said = "Cut short by failures: {} on 6 of 6 queries"
    with dspy.context(lm=policy()):
        by_width = scaling.width(replace(made, out=tmp_path / "width"), widths=(2,))
        against = scaling.depth_vs_width(replace(made, out=tmp_path / "depth"), best_of=(6,))
    assert f"N2: {said.format('D2')}" in " ".join(by_width.notes)
    assert said.format("tpo") in " ".join(against.notes)


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dspy-tpo\[experiments\]'"):
        check_matplotlib()


def command(*words: str) -> Any:
    return CliRunner().invoke(app, ["experiment", *words])


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Let the command's LM be a script; return the options that every command needs."""

    def make_lm(spec: str, options: Any) -> ScriptedLM:
        return policy()

    monkeypatch.setattr("tpo_modules.cli.experiment.make_lm", make_lm)
    (tmp_path / "rewards.py").write_text(
        "def reward(query, response):\n    return float(response.rpartition('=')[2])\n"
        "def judge(query, response):\n    x = reward(query, response)\n    return 1 - abs(1 - x)\n"
    )
    (tmp_path / "q.json").write_text(json.dumps([f"Why {i}?" for i in range(12)]))
    return ["--data", f"{tmp_path}/q.json", "--reward", f"python:{tmp_path}/rewards.py:reward",
            "--width", "2", "--out", f"{tmp_path}/out", "--lm", "scripted"]  # fmt: skip


def test_the_command_runs_an_experiment(scripted: list[str], tmp_path: Path) -> None:
    done = command("curve", *scripted, "--depth", "1", "--limit", "3", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["queries"] == 3
    suffixes = {file.suffix for file in (tmp_path / "out").glob("curve.*")}
    assert suffixes == {".jsonl", ".json", ".md", ".svg", ".png"}


def test_the_command_follows_a_judge_and_warns(scripted: list[str], tmp_path: Path) -> None:
    judge = ["--judge", f"python:{tmp_path}/rewards.py:judge"]
    done = command("overoptimization", *scripted, *judge, "--depth", "3")
    assert done.exit_code == 0, done.output
    assert "warning: tpo, by step" in done.stderr
    runs = ["--run", f"{tmp_path}/out/runs"]
    again = command("overoptimization", *judge, *runs, "--out", f"{tmp_path}/else")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "else" / "overoptimization.svg").exists()


def test_compare_with_a_judge_draws_where_they_part(
    scripted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_lm(spec: str, options: Any) -> ScriptedLM:
        return policy()

    monkeypatch.setattr("tpo_modules.cli.compare.make_lm", make_lm)
    judge = ["--judge", f"python:{tmp_path}/rewards.py:judge"]
    done = CliRunner().invoke(app, ["compare", "bon", "tpo", *scripted, *judge, "--depth", "3"])
    assert done.exit_code == 0, done.output
    assert "warning: tpo, by step" in done.stderr
    assert "they part" in (tmp_path / "out" / "overoptimization.svg").read_text()


def test_compare_shows_its_tables_where_pools_are_too_small_to_follow_a_judge(
    scripted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_lm(spec: str, options: Any) -> ScriptedLM:
        return policy()

    monkeypatch.setattr("tpo_modules.cli.compare.make_lm", make_lm)
    (tmp_path / "rewards.py").write_text(
        "seen = {}\n"
        "def reward(query, response):\n"
        "    return 0.0 if seen.setdefault(query, response) == response else float('nan')\n"
        "def judge(query, response):\n    return 1.0\n"
    )
    judge = ["--judge", f"python:{tmp_path}/rewards.py:judge"]
    done = CliRunner().invoke(app, ["compare", "single", "bon", *scripted, *judge])
    assert done.exit_code == 0, done.output
    assert "gain over bon" in done.stdout
    assert "no figure by step and pool size: expected a run with at least two" in done.stderr


def test_cost_of_a_comparison_that_drew_one_round_only(tmp_path: Path) -> None:
    made = setup(tmp_path)
    with dspy.context(lm=policy()):
        made.compare(made.methods("single", "bon3"))
    found = costs.cost([made.folder()], policy_parameters=1e9, reward_parameters=0)
    assert [(row["run"], row["queries"]) for row in found.rows] == [("first", 6)]


def test_the_command_counts_the_cost_of_a_run_without_queries(
    scripted: list[str], tmp_path: Path
) -> None:
    with dspy.context(lm=policy()):
        JOBS["ablations"](tmp_path / "made")
    run = str(tmp_path / "made" / "runs" / "methods" / "tpo")
    done = command("cost", "--run", run, "--reward-params", "0", "--out", f"{tmp_path}/cost")
    assert done.exit_code == 0, done.output
    assert "72,840" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["curves"], "expected an experiment of curve, stability"),
        (["curve"], "expected --data FILE"),
        (["width", "--widths", "5,x"], "such as --widths 5,10"),
        (["overoptimization"], "expected --judge"),
        (["curve", "--lm", "a", "--lm", "b"], "only prerequisite compares policies"),
        (["prerequisite", "--lm", "x/a", "--lm", "y/a"], "policies of different names"),
    ],
)
def test_a_command_that_cannot_work_is_refused(words: list[str], says: str) -> None:
    done = command(*words)
    assert isinstance(done.exception, ConfigurationError)
    assert says in str(done.exception)
