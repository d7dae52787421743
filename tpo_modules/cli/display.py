"""What a terminal shows of a run: each step's rewards as they come, then where the best came from."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tpo_modules.pool import Candidate
from tpo_modules.run import Event
from tpo_modules.runs.results import FailedQuery, QueryResult
from tpo_modules.trace import Failure, Scoring

_WORDS = 160  # characters of a critique that a line shows, at most


class LiveSteps:
    """An observer that prints a line per record: a critique's first words, or a round's rewards.

    A failure that all samples of a round share, as where nothing answers, is one line.

    Args:
        console: Where to print.
        name_query: Whether each line begins with the query, for several at once.

    Attributes:
        best: The best candidate so far of the run that was last heard of.
    """

    def __init__(self, console: Console, *, name_query: bool = False) -> None:
        self.best: Candidate | None = None
        self._console = console
        self._name_query = name_query

    def __call__(self, event: Event) -> None:
        """Print what is new in the trace."""
        record = event.record
        self.best = event.trace.pool.chosen if event.trace.candidates else self.best
        if isinstance(record, Scoring):
            self._round(event, record)
        elif isinstance(record, Failure):
            text = f"{record.type}: {record.message}"
            place = (record.step, record.where)
            like = [f for f in event.trace.failures if (f.step, f.where) == place]
            if sum(f"{f.type}: {f.message}" == text for f in like) == 1:
                self._line(event, *place, text, style="yellow")
        elif record.name in ("loss", "gradient"):
            words = " ".join(record.completions[0].text.split())[:_WORDS]
            self._line(
                event, record.step, record.name, f"{record.seconds:5.1f} s  {words}", style="dim"
            )

    def _round(self, event: Event, scoring: Scoring) -> None:
        call = [call for call in event.trace.calls if call.step == scoring.step][-1]
        known = [c.reward for c in event.trace.candidates if c.step < scoring.step]
        finite = [reward for reward in scoring.rewards if reward is not None]
        best = max([*known, *finite], default=float("nan"))
        rewards = "".join("    nan" if r is None else f"{r:7.2f}" for r in scoring.rewards)
        text = f"{call.seconds:5.1f} s  rewards{rewards}  best {best:.2f}"
        self._line(event, scoring.step, call.name, text)

    def _line(self, event: Event, step: int, name: str, text: str, style: str = "") -> None:
        query = f"[{' '.join(event.trace.query.split())[:24]:<24}] " if self._name_query else ""
        line = Text(f"{query}step {step}  {name:<9}{text}", style=style)
        if self._console.is_terminal:
            self._console.print(line, no_wrap=True, overflow="ellipsis")
        else:  # a file has no width
            self._console.print(line, soft_wrap=True)


def show_result(console: Console, result: QueryResult) -> None:
    """Print the rewards of every step, and where the best response came from."""
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "samples", "mean reward", "best reward", "best so far"):
        table.add_column(heading, justify="right")
    best = float("-inf")
    for step, rewards in enumerate(result.rewards_by_step):
        if not rewards:
            continue
        best = max(best, *rewards)
        mean = sum(rewards) / len(rewards)
        cells = (f"{mean:.2f}", f"{max(rewards):.2f}", f"{best:.2f}")
        table.add_row(str(step), str(len(rewards)), *cells)
    console.print(table)
    console.print(Text(where_from(result)), soft_wrap=True)
    if result.status == "failed":
        console.print(Text(f"cut short: {result.stop_reason}", style="yellow"))
    elif result.stop_reason:
        console.print(Text(f"stopped early: {result.stop_reason}"))


def where_from(result: QueryResult) -> str:
    """Say which step and sample the best response is, and what the run cost."""
    rounds = len(result.rewards_by_step[result.step])
    origin = "the first round" if result.step == 0 else f"the update of step {result.step}"
    updates = sum(len(rewards) for rewards in result.rewards_by_step[1:])
    copies = f"; {result.copied_updates} of {updates} updates repeat their draft" if updates else ""
    return (
        f"{result.method} {result.label}: reward {result.reward:.2f} from {origin}, sample "
        f"{result.sample + 1} of {rounds}; {result.requests} requests, "
        f"{result.generated_tokens} tokens generated, {result.seconds:.1f} s{copies}"
    )


def show_summary(console: Console, results: Sequence[QueryResult]) -> None:
    """Print the mean rewards of several queries, step by step."""
    if len(results) < 2:
        return
    steps = max(len(result.rewards_by_step) for result in results)
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "samples", "mean reward", "mean best so far"):
        table.add_column(heading, justify="right")
    for step in range(steps):
        rewards = [r for result in results for r in result.rewards_by_step[step : step + 1]]
        samples = [reward for group in rewards for reward in group]
        best = [max(r for g in result.rewards_by_step[: step + 1] for r in g) for result in results]
        if samples:
            means = (f"{fmean(samples):.2f}", f"{fmean(best):.2f}")
            table.add_row(str(step), str(len(samples)), *means)
    console.print(table)


def show_failure(console: Console, failed: FailedQuery) -> None:
    """Print why a query gave nothing."""
    text = Text(f"query {failed.id}: {failed.error}: {failed.message}", style="red")
    console.print(text, soft_wrap=True)
