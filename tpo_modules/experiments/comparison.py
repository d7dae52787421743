"""`Comparison`: the figures of methods on the same queries, with intervals, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tpo_modules.errors import ConfigurationError
from tpo_modules.estimates import (
    Estimate,
    bootstrap,
    gain_of,
    length_controlled_gain,
    mean_of,
    win_rate_of,
)
from tpo_modules.experiments.outcomes import Outcome

_FEW = 10  # queries, below which a table says that it settles nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFigures:
    """What one method came to, over all queries; gains are over the baseline, query by query.

    Attributes:
        method: Its name.
        reward: Mean reward of its responses, by the scorer that was optimised.
        gain: Mean difference to the baseline's.
        win_rate: Share of queries with a higher reward than the baseline's, ties half; 0 to 1.
        controlled_gain: The gain at equal length: see `length_controlled_gain`.
        judge_reward: Mean reward by the judge, where there is one.
        judge_gain: Mean difference to the baseline's, by the judge.
        judge_win_rate: The win rate by the judge.
        judge_controlled_gain: The gain at equal length, by the judge.
        tokens: Tokens generated per query.
        prompt_tokens: Prompt tokens per query, as endpoints counted them.
        requests: Requests per query.
        samples: Responses drawn per query.
        seconds: Per query: see `Outcome.seconds`.
        length: Of the response, in words.
        gain_per_1k: Reward over that of a single sample, per thousand generated tokens; None without a single.
        hurt: Share of queries where it did worse than the baseline, by the judge if there is one; 0 to 1.
        cut_short: Queries whose run a failure ended early: see `Outcome.cut_short`.
    """

    method: str
    reward: Estimate
    gain: Estimate
    win_rate: Estimate
    controlled_gain: Estimate
    judge_reward: Estimate | None
    judge_gain: Estimate | None
    judge_win_rate: Estimate | None
    judge_controlled_gain: Estimate | None
    tokens: float
    prompt_tokens: float
    requests: float
    samples: float
    seconds: float
    length: float
    gain_per_1k: Estimate | None
    hurt: Estimate
    cut_short: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Methods on the same queries.

    Attributes:
        outcomes: By method, one per query, the queries in the same order.
        excluded: Queries that are left out of all methods, with the reason.
        baseline: Name of the method that gains are over.
        match: What best-of-N is matched by: ``"samples"`` or ``"tokens"``.
        match_to: Name of the method it is matched to, or None.
        figures: One per method, in the order given.
    """

    outcomes: dict[str, list[Outcome]]
    excluded: dict[str, str]
    baseline: str
    match: str
    match_to: str | None
    figures: list[MethodFigures]

    @classmethod
    def of(
        cls,
        outcomes: Mapping[str, Mapping[str, Outcome]],
        excluded: Mapping[str, str],
        *,
        baseline: str,
        match: str = "samples",
        match_to: str | None = None,
    ) -> Comparison:
        """Compare outcomes by method and query.

        Raises:
            ConfigurationError: No query has an outcome of every method, or the baseline is no method.
        """
        if baseline not in outcomes:
            raise ConfigurationError(
                f"expected the baseline to be one of {list(outcomes)}, got {baseline!r}"
            )
        common = [i for i in outcomes[baseline] if all(i in each for each in outcomes.values())]
        if not common:
            reasons = (
                "; ".join(dict.fromkeys(excluded.values()))
                or "the methods ran on different queries"
            )
            raise ConfigurationError(
                f"expected a query that every method has a result of, found none: {reasons}"
            )
        rows = {name: [each[i] for i in common] for name, each in outcomes.items()}
        single = rows.get("single")
        figures = [_figures(name, each, rows[baseline], single) for name, each in rows.items()]
        return cls(
            outcomes=rows,
            excluded=dict(excluded),
            baseline=baseline,
            match=match,
            match_to=match_to,
            figures=figures,
        )

    @property
    def queries(self) -> int:
        """Queries that the figures rest on."""
        return len(self.outcomes[self.baseline])

    def summary(self) -> dict[str, Any]:
        """Return the figures, JSON-serialisable."""
        return {
            "queries": self.queries,
            "excluded": self.excluded,
            "baseline": self.baseline,
            "match": self.match,
            "match_to": self.match_to,
            "methods": [asdict(figures) for figures in self.figures],
        }

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return the tables as (title, headings, rows of cells): rewards, the judge's if there is one, costs."""
        over = f"over {self.baseline}"
        heads = ["method", "reward", f"gain {over}", "win rate", "gain at equal length"]
        base = self.baseline
        found = [("Rewards", heads, [_reward_cells(f, base) for f in self.figures])]
        if self.figures[0].judge_reward is not None:
            heads = ["method", "judge's reward", f"gain {over}", "win rate", "gain at equal length"]
            found.append(("By the judge", heads, [_judge_cells(f, base) for f in self.figures]))
        heads = ["method", "samples", "tokens", "prompt tokens", "requests", "seconds", "words"]
        single = "single" in self.outcomes
        heads += ["gain over single per 1k tokens"] if single else []
        heads += [f"worse than {base}"]
        rows = [_cost_cells(f, base, single=single) for f in self.figures]
        if any(f.cut_short for f in self.figures):
            heads += ["cut short"]
            rows = [[*row, str(f.cut_short)] for row, f in zip(rows, self.figures, strict=True)]
        found.append(("Cost per query", heads, rows))
        return found

    def markdown(self) -> str:
        """Render the tables as Markdown."""
        return "\n\n".join([self.heading(), *(markdown_table(*table) for table in self.tables())])

    def heading(self) -> str:
        """Say what the tables rest on."""
        matched = f"; best-of-N matched to {self.match_to} by {self.match}" if self.match_to else ""
        left_out = f"; {len(self.excluded)} left out" if self.excluded else ""
        few = " So few queries settle nothing." if self.queries < _FEW else ""
        count = "1 query" if self.queries == 1 else f"{self.queries} queries"
        rests = f"{count}{left_out}{matched}; 95 % intervals by paired bootstrap over queries."
        return " ".join([f"{rests}{few}", *self.cut_short()])

    def cut_short(self) -> list[str]:
        """Say which methods' runs failures ended early, in a sentence; nothing if none."""
        cut = [f"{f.method} on {f.cut_short}" for f in self.figures if f.cut_short]
        of = f" of {self.queries} queries and counted as far as they came"
        return [f"Cut short by failures: {', '.join(cut)}{of}."] if cut else []


def _figures(
    name: str,
    rows: Sequence[Outcome],
    baseline: Sequence[Outcome],
    single: Sequence[Outcome] | None,
) -> MethodFigures:
    n = len(rows)
    rewards, others = [row.reward for row in rows], [row.reward for row in baseline]
    lengths, other_lengths = [row.length for row in rows], [row.length for row in baseline]
    judged = [row.judge for row in rows if row.judge is not None]
    other_judged = [row.judge for row in baseline if row.judge is not None]
    by_judge = len(judged) == n == len(other_judged)
    deciding = (judged, other_judged) if by_judge else (rewards, others)
    hurt = [float(mine < theirs) for mine, theirs in zip(*deciding, strict=True)]
    return MethodFigures(
        method=name,
        reward=mean_of(rewards),
        gain=gain_of(rewards, others),
        win_rate=win_rate_of(rewards, others),
        controlled_gain=length_controlled_gain(rewards, others, lengths, other_lengths),
        judge_reward=mean_of(judged) if by_judge else None,
        judge_gain=gain_of(judged, other_judged) if by_judge else None,
        judge_win_rate=win_rate_of(judged, other_judged) if by_judge else None,
        judge_controlled_gain=length_controlled_gain(judged, other_judged, lengths, other_lengths)
        if by_judge
        else None,
        tokens=sum(row.tokens for row in rows) / n,
        prompt_tokens=sum(row.prompt_tokens for row in rows) / n,
        requests=sum(row.requests for row in rows) / n,
        samples=sum(row.samples for row in rows) / n,
        seconds=sum(row.seconds for row in rows) / n,
        length=sum(lengths) / n,
        gain_per_1k=_gain_per_1k(rows, single) if single is not None and name != "single" else None,
        hurt=mean_of(hurt),
        cut_short=sum(row.cut_short for row in rows),
    )


def _gain_per_1k(rows: Sequence[Outcome], single: Sequence[Outcome]) -> Estimate:
    gains = [row.reward - one.reward for row, one in zip(rows, single, strict=True)]
    thousands = [row.tokens / 1000 for row in rows]

    def ratio(sample: Any) -> Any:
        spent = sample[..., 1].sum(axis=-1)
        return np.divide(
            sample[..., 0].sum(axis=-1), spent, out=np.zeros_like(spent), where=spent > 0
        )

    return bootstrap(ratio, gains, thousands)


def _reward_cells(f: MethodFigures, baseline: str) -> list[str]:
    if f.method == baseline:
        return [f.method, f"{f.reward:.2f}", "", "", ""]
    return [
        f.method,
        f"{f.reward:.2f}",
        f"{f.gain:+.2f}",
        f"{f.win_rate:.0%}",
        f"{f.controlled_gain:+.2f}",
    ]


def _judge_cells(f: MethodFigures, baseline: str) -> list[str]:
    figures = [(f.judge_reward, ".2f")]
    if f.method != baseline:
        figures += [
            (f.judge_gain, "+.2f"),
            (f.judge_win_rate, ".0%"),
            (f.judge_controlled_gain, "+.2f"),
        ]
    cells = [format(figure, spec) if figure else "" for figure, spec in figures]
    return [f.method, *cells, *[""] * (4 - len(cells))]


def _cost_cells(f: MethodFigures, baseline: str, *, single: bool) -> list[str]:
    cells = [
        f.method,
        f"{f.samples:.1f}",
        f"{f.tokens:.0f}",
        f"{f.prompt_tokens:.0f}",
        f"{f.requests:.1f}",
        f"{f.seconds:.1f}",
        f"{f.length:.0f}",
    ]
    if single:
        cells.append(f"{f.gain_per_1k:.2f}" if f.gain_per_1k else "")
    return [*cells, "" if f.method == baseline else f"{f.hurt:.0%}"]


def markdown_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render one table as Markdown."""
    lines = [_line(heads), _line(["---"] * len(heads)), *map(_line, rows)]
    return "\n".join([f"**{title}**", "", *lines])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
