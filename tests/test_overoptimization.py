"""Over-optimisation: the rule on synthetic rewards that part and that do not, and on recorded runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tpo_modules import BestOfNModule
from tpo_modules.errors import ConfigurationError, RunFolderError
from tpo_modules.experiments.held_out import follow_comparison, overoptimization
from tpo_modules.experiments.parting import parting_of
from tpo_modules.experiments.plots import draw
from tpo_modules.pool import Candidate
from tpo_modules.trace import TPOTrace


def rising(rng: np.random.Generator, means: Sequence[float], n: int = 60) -> list[list[float]]:
    query = rng.normal(0, 2, n)
    return [list(query + mean + rng.normal(0, 0.5, n)) for mean in means]


def test_a_judge_that_rises_and_then_falls_parts_from_the_peak_on() -> None:
    rng = np.random.default_rng(1)
    found = parting_of(rising(rng, [0, 1, 2, 3]), rising(rng, [0, 1.5, 0.8, 0.2]))
    assert found.verdict == "part"
    assert found.since == 1
    assert found.judge_gain.high < 0 < found.reward_gain.low


def test_a_judge_that_follows_does_not_part() -> None:
    rng = np.random.default_rng(2)
    found = parting_of(rising(rng, [0, 1, 2, 3]), rising(rng, [0, 0.6, 1.0, 1.1]))
    assert (found.verdict, found.since) == ("together", None)


@pytest.mark.parametrize("n", [1, 5, 12, 40])
def test_a_judge_that_stays_level_is_seldom_called_falling_however_few_the_queries(n: int) -> None:
    rng = np.random.default_rng(n)
    rewards = rising(rng, range(6), n=n)
    verdicts = [parting_of(rewards, rising(rng, [0.0] * 6, n=n)).verdict for _ in range(40)]
    assert verdicts.count("part") <= 4  # of 40, where 1 is expected at most
    if n == 40:
        assert verdicts.count("not confirmed") >= 35


def test_a_dozen_queries_show_a_clear_fall() -> None:
    rng = np.random.default_rng(6)
    assert parting_of(rising(rng, [0, 1, 3], 12), rising(rng, [0, 2, 0], 12)).since == 1


def test_nothing_parts_where_the_reward_does_not_rise() -> None:
    rng = np.random.default_rng(4)
    assert parting_of(rising(rng, [0, 0, 0]), rising(rng, [1, 1, 0])).verdict == "together"


def test_one_point_is_no_series() -> None:
    with pytest.raises(ConfigurationError, match="at least two points"):
        parting_of([[1.0]], [[1.0]])


class Judge:
    """Likes what is right, up to a reward of ``peak``; the text holds the reward."""

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self.asked = 0

    def __repr__(self) -> str:
        return f"Judge({self.peak})"

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        if "impossible" in query:
            raise RuntimeError("no verdict")
        self.asked += len(responses)
        return [self.peak - abs(self.peak - float(text)) for text in responses]


def runs(queries: int = 20) -> dict[str, dict[str, TPOTrace]]:
    """Make pools whose rewards rise with steps: 2 samples a step, 4 steps."""
    rng = np.random.default_rng(5)

    def trace(index: int) -> TPOTrace:
        start = rng.normal(0, 0.3)
        rewards = [start + step + rng.normal(0, 0.1) for step in range(4) for _ in range(2)]
        text = f"query {index}" if index else "impossible"
        return TPOTrace(
            method="tpo",
            label="D3-N2",
            query=text,
            inputs={"query": text},
            candidates=[
                Candidate(index=i, step=i // 2, response=str(reward), reward=reward)
                for i, reward in enumerate(rewards)
            ],
        )

    return {"tpo": {str(i): trace(i) for i in range(queries)}}


MODULE = BestOfNModule(scorer=Judge(0))


def test_runs_that_overshoot_the_judge_are_warned_of_on_screen_and_on_the_figure(
    tmp_path: Path,
) -> None:
    found = overoptimization(runs(), Judge(1.2), module=MODULE, out=tmp_path)
    by_step, by_size = found.summary["verdicts"]
    assert (by_step["axis"], by_step["verdict"], by_step["since"]) == ("step", "part", 1)
    assert by_size["axis"] == "pool size"
    assert len(found.warnings) == 2
    assert "over-optimised" in found.warnings[0]
    assert "0" in found.summary["left_out"]  # the query the judge failed on
    assert found.rows[0]["reward_n"] == 19
    draw(found, tmp_path)
    svg = (tmp_path / "overoptimization.svg").read_text()
    ElementTree.fromstring(svg)
    assert svg.count("they part: the judge falls") == 2


def test_runs_that_the_judge_follows_are_not_warned_of(tmp_path: Path) -> None:
    found = overoptimization(runs(), Judge(100), module=MODULE, out=tmp_path)
    assert [v["verdict"] for v in found.summary["verdicts"]] == ["together", "together"]
    assert found.warnings == []
    draw(found, tmp_path)
    assert "they part" not in (tmp_path / "overoptimization.svg").read_text()


def test_the_judge_scores_what_was_once_the_best_and_only_once(tmp_path: Path) -> None:
    made = runs(6)
    judge = Judge(2)
    overoptimization(made, judge, module=MODULE, out=tmp_path)
    records = 0
    for identity, trace in made["tpo"].items():
        rewards = [candidate.reward for candidate in trace.candidates]
        best = {max(rewards[: i + 1]) for i in range(len(rewards))}
        records += len(best) if identity != "0" else 0
    assert judge.asked <= records  # sizes that are not looked at are not asked for
    again = Judge(2)
    overoptimization(made, again, module=MODULE, out=tmp_path)
    assert again.asked == 0


@pytest.mark.parametrize(("thin", "sizes"), [(2, 8), (4, 8), (5, 2)])
def test_a_few_thin_pools_are_left_out_and_counted(tmp_path: Path, thin: int, sizes: int) -> None:
    made = runs()["tpo"]
    for identity in list(made)[-thin:]:
        trace = made[identity]
        made[identity] = trace.model_copy(update={"candidates": trace.candidates[:2]})
    found = overoptimization({"tpo": made}, Judge(1.2), module=MODULE, out=tmp_path)
    by_step, by_size = found.summary["verdicts"]
    assert found.rows[-1]["point"] == sizes
    assert by_size["short"] == (thin if sizes == 8 else 0)
    assert by_size["queries"] == 19 - by_size["short"]
    assert (by_step["short"], by_step["queries"]) == (thin, 19 - thin)
    assert f"tpo, by step: {thin} left out, which did not reach 3" in " ".join(found.notes)


def test_a_folder_that_is_no_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="expected the folder of a comparison"):
        follow_comparison(tmp_path, Judge(1), module=MODULE)
    (tmp_path / "compare.json").write_text(json.dumps([]))
    with pytest.raises(RunFolderError, match="to hold an object"):
        follow_comparison(tmp_path, Judge(1), module=MODULE)
