"""What a terminal shows of a race: its progress in a line, and its result."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimizers.race_result import RaceResult, Standing
from optimizers.race_run import RaceProgress


def progress_text(progress: RaceProgress) -> str:
    """Say in one line how far a race is."""
    marks = {"racing": "", "worse": " (out: worse)", "set aside": " (set aside)"}
    means = ", ".join(
        f"{name} {mean:+.2f}{marks[progress.status[name]]}" for name, mean in progress.means.items()
    )
    return (
        f"round {progress.round}/{progress.rounds} of {progress.queries} queries | {progress.doing} | "
        f"{progress.evaluations} evaluations, {progress.tokens} tokens"
        + (f" | {means}" if means else "")
    )


def show_race(console: Console, result: RaceResult) -> None:
    """Print ranking, cost and recommendation."""
    table = Table(box=None, pad_edge=False)
    table.add_column("candidate")
    for heading in ("queries", "mean credit", "against the default", "tokens", "failed"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for standing in result.ranking:
        table.add_row(*_cells(standing))
    console.print(table)
    console.print(
        f"credit: {result.credit}; intervals hold with {result.confidence:.1%} each, all together with "
        f"{1 - 2 * result.alpha:.0%}",
        soft_wrap=True,
    )
    console.print(
        f"{result.evaluations} of {result.evaluations_of_all} evaluations ({result.saved:.0%} saved), "
        f"{result.tokens} tokens of about {result.tokens_of_all}; judged after {result.rounds} of "
        f"{result.planned} queries",
        soft_wrap=True,
    )
    if result.left_out:
        console.print(f"not judged, because they failed: {', '.join(result.left_out)}")
    console.print(Text(result.recommendation, "bold"), soft_wrap=True)
    if found := result.validation:
        console.print(
            f"on {found.difference.n} other queries, {found.name} against the default: {found.difference} in the "
            f"final reward (95 %, paired); {found.tokens} tokens",
            soft_wrap=True,
        )


def _cells(standing: Standing) -> tuple[str, ...]:
    return (
        standing.name,
        str(standing.queries),
        "" if standing.mean is None else f"{standing.mean:+.2f}",
        "" if standing.against_default is None else str(standing.against_default),
        str(standing.tokens),
        str(standing.failures),
        {"racing": "", "worse": "clearly worse", "set aside": "set aside"}[standing.status],
    )
