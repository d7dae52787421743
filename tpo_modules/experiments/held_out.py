"""Over-optimisation: does a judge that nobody optimised follow the reward, by step and by pool size?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import pstdev
from typing import Any

from tpo_modules.errors import ConfigurationError, RunFolderError
from tpo_modules.estimates import Estimate, gain_of, mean_of
from tpo_modules.experiments.finding import Finding, Table, interval, traces_of
from tpo_modules.experiments.judging import Judged, judge_responses, name_of
from tpo_modules.experiments.parting import RULE, Parting, parting_of
from tpo_modules.policy import PolicyModule
from tpo_modules.pool import Candidate
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.saved_run import SavedRun
from tpo_modules.scorers.base import Scorer
from tpo_modules.trace import TPOTrace

_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300)


@dataclass(frozen=True, slots=True)
class Series:
    """Both rewards of what a method would return, point by point.

    Attributes:
        name: The run.
        axis: ``"step"`` (best so far) or ``"pool size"`` (best of the first so many samples).
        points: Steps or sizes.
        short: Queries left out because their runs do not reach the last point.
        reward: Mean optimised reward at each.
        judge: Mean reward by the judge at each.
        reward_gain: Of ``reward`` over the first point, query by query.
        judge_gain: Of ``judge`` over the first point, query by query.
        spreads: Standard deviation over queries of either at the first point, the unit of the figure.
        parting: Whether they part.
    """

    name: str
    axis: str
    points: list[int]
    short: int
    reward: list[Estimate]
    judge: list[Estimate]
    reward_gain: list[Estimate]
    judge_gain: list[Estimate]
    spreads: tuple[float, float]
    parting: Parting


def overoptimization(
    runs: Mapping[str, Mapping[str, TPOTrace]],
    judge: Scorer,
    *,
    module: PolicyModule,
    out: Path,
    settings: Mapping[str, Any] | None = None,
) -> Finding:
    """Follow the optimised and the held-out reward by step and by pool size, and warn where they part.

    The judge scores what a run would have returned after each step, and with each size of its pool: only responses
    that were once the best, a few per query. A query that it fails on is left out, and counted; so is, of an axis,
    one whose run does not reach its last point: the last step of all, or the size that four in five pools have.

    Args:
        runs: Traces by run and query. A run of several steps is followed by step; every run by the size of its
            pool, which for ``bon`` is plain best-of-k.
        judge: A scorer that no run optimised.
        module: Any module of the runs: its policy knows a query's conversation.
        out: A folder; the judge's rewards are kept in ``judge.jsonl`` there, and not asked for again.
        settings: For the header of the data.

    Raises:
        ConfigurationError: No query is in every run and judged, or no run has two points.
    """
    paths = _paths(runs)
    identities = list(dict.fromkeys(i for path in paths for i in path.best))
    rows = {i: next(t[i].inputs for t in runs.values() if i in t) for i in identities}
    wanted = {
        i: list(dict.fromkeys(c.response for path in paths for c in path.best.get(i, ())))
        for i in identities
    }
    out.mkdir(parents=True, exist_ok=True)
    judged = judge_responses(
        judge,
        [(QueryRow(i, rows[i]), responses) for i, responses in wanted.items()],
        policy=module.policy,
        out=out / "judge.jsonl",
    )
    series = [_series(path, judged) for path in paths]
    return _finding(series, judged, {"judge": name_of(judge), **(settings or {})})


@dataclass(frozen=True, slots=True)
class _Path:
    """What a run would have returned at each of its points, by query; ``short`` queries do not reach the last."""

    name: str
    axis: str
    points: list[int]
    short: int
    best: dict[str, list[Candidate]]


def _paths(runs: Mapping[str, Mapping[str, TPOTrace]]) -> list[_Path]:
    paths = [path for name, traces in runs.items() for path in _paths_of(name, traces)]
    if not paths:
        raise ConfigurationError(
            "expected a run with at least two responses of most queries, to follow a judge along, got "
            f"{', '.join(runs) or 'none'}; use a larger width or depth"
        )
    return paths


def _paths_of(name: str, traces: Mapping[str, TPOTrace]) -> list[_Path]:
    found: list[_Path] = []
    if any(trace.method != "bon" for trace in traces.values()):
        last_steps = {i: len(trace.rewards_by_step) - 1 for i, trace in traces.items()}
        steps = list(range(max(last_steps.values()) + 1))
        found += _path(name, "step", steps, traces, last_steps, lambda c, point: c.step <= point)
    pools = {i: len(trace.candidates) for i, trace in traces.items()}
    most = sorted(pools.values())[len(pools) // 5] if pools else 0  # a thin pool must not cut all
    sizes = sorted({size for size in _SIZES if size < most} | {most})
    found += _path(name, "pool size", sizes, traces, pools, lambda c, point: c.index < point)
    return found


def _path(
    name: str,
    axis: str,
    points: list[int],
    traces: Mapping[str, TPOTrace],
    reached: Mapping[str, int],
    within: Callable[[Candidate, int], bool],
) -> list[_Path]:
    """Follow the runs that reached the last point; nothing where there is only one point."""
    if len(points) < 2:
        return []
    best = {
        identity: [
            max((c for c in trace.candidates if within(c, point)), key=lambda c: c.reward)
            for point in points
        ]
        for identity, trace in traces.items()
        if reached[identity] >= points[-1]
        and any(within(candidate, points[0]) for candidate in trace.candidates)
    }
    return [_Path(name, axis, points, len(traces) - len(best), best)]


def _series(path: _Path, judged: Judged) -> Series:
    used = [identity for identity in path.best if identity not in judged.failed]
    if not used:
        raise ConfigurationError(
            "expected at least one query that the judge could score, found none: "
            + "; ".join(dict.fromkeys(judged.failed.values()))
        )
    places = range(len(path.points))
    rewards = [[path.best[i][place].reward for i in used] for place in places]
    other = [[judged.reward(i, path.best[i][place].response) for i in used] for place in places]
    return Series(
        name=path.name,
        axis=path.axis,
        points=path.points,
        short=path.short,
        reward=[mean_of(values) for values in rewards],
        judge=[mean_of(values) for values in other],
        reward_gain=[gain_of(values, rewards[0]) for values in rewards],
        judge_gain=[gain_of(values, other[0]) for values in other],
        spreads=(pstdev(rewards[0]) or 1.0, pstdev(other[0]) or 1.0),
        parting=parting_of(rewards, other),
    )


def _finding(series: Sequence[Series], judged: Judged, settings: dict[str, Any]) -> Finding:
    rows = [row for each in series for row in _points(each)]
    verdicts = [
        {
            "run": each.name,
            "axis": each.axis,
            "verdict": each.parting.verdict,
            "queries": each.reward[0].n,
            "short": each.short,
            "since": None if each.parting.since is None else each.points[each.parting.since],
            "reward_gain": interval(each.parting.reward_gain),
            "judge_gain": interval(each.parting.judge_gain),
            "text": describe(each),
        }
        for each in series
    ]
    left_out = f"; {len(judged.failed)} left out, on which the judge failed"
    return Finding(
        name="overoptimization",
        settings=settings,
        rows=rows,
        summary={"verdicts": verdicts, "rule": RULE, "left_out": judged.failed},
        tables=[_table(series)],
        notes=[
            f"{series[0].reward[0].n} queries{left_out if judged.failed else ''}. {RULE}",
            *(_short(each) for each in series if each.short),
            *(describe(each) for each in series if each.parting.verdict == "not confirmed"),
        ],
        warnings=[describe(each) for each in series if each.parting.verdict == "part"],
    )


def follow_comparison(
    folder: Path, judge: Scorer, *, module: PolicyModule, out: Path | None = None
) -> Finding:
    """Do `overoptimization` on a comparison's folder: the method that the others are matched to, and best-of-N.

    Args:
        folder: The output folder of `compare`.
        judge: A scorer that no method optimised.
        module: Any module of the comparison.
        out: Where the judge's rewards are kept; the folder itself by default, where `compare` keeps them.

    Raises:
        RunFolderError: The folder holds no comparison.
    """
    try:
        compared: Any = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"expected the folder of a comparison, as `tpo compare --out FOLDER` writes it, got {folder}: {error}"
        ) from error
    if not isinstance(compared, dict):
        raise RunFolderError(
            f"expected {folder}/compare.json to hold an object, got {compared!r:.80}"
        )
    ids = list(SavedRun(folder / "first").results)
    named = compared.get("match_to")
    runs = traces_of(folder, [named, "bon"] if named else ["bon"], ids)
    settings = {"comparison": str(folder), "reward": compared.get("reward")}
    return overoptimization(runs, judge, module=module, out=out or folder, settings=settings)


def _points(series: Series) -> list[dict[str, Any]]:
    since = series.parting.since
    return [
        {
            "run": series.name,
            "axis": series.axis,
            "point": point,
            **interval(series.reward[place], "reward_"),
            **interval(series.judge[place], "judge_"),
            **interval(series.reward_gain[place], "reward_gain_"),
            **interval(series.judge_gain[place], "judge_gain_"),
            "reward_unit": series.spreads[0],
            "judge_unit": series.spreads[1],
            "parts_here": since is not None and place >= since,
        }
        for place, point in enumerate(series.points)
    ]


def describe(series: Series) -> str:
    """Say in a sentence whether the judge follows."""
    parting, last = series.parting, series.points[-1]
    start = series.points[parting.since or 0]
    gains = f"({parting.reward_gain:+.2f}) and the judge's {{}} ({parting.judge_gain:+.2f})"
    head = f"{series.name}, by {series.axis} {start} to {last}: the optimised reward "
    if parting.verdict == "part":
        return f"{head}rises {gains.format('falls')}: over-optimised"
    if parting.verdict == "not confirmed":
        return (
            f"{head}rises {gains.format('does not clearly')}: the judge does not confirm the gain"
        )
    return f"{head}changes {gains.format('too')}: they do not part"


def _short(series: Series) -> str:
    return (
        f"{series.name}, by {series.axis}: {series.short} left out, which did not reach {series.points[-1]}; "
        f"{series.reward[0].n} counted."
    )


def _table(series: Sequence[Series]) -> Table:
    heads = ["run", "by", "point", "optimised reward", "judge's reward"]
    cells = [
        [each.name, each.axis, str(point), f"{reward:.2f}", f"{judge:.2f}"]
        for each in series
        for point, reward, judge in zip(each.points, each.reward, each.judge, strict=True)
    ]
    return ("Optimised and held-out reward of the best response", heads, cells)
