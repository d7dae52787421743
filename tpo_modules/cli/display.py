"""What a terminal shows of a run: each step's rewards as they come, then where the best came from."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tpo_modules.results import FailedQuery, QueryResult
from tpo_modules.run import Event
from tpo_modules.trace import Call, Failure, Scoring


class LiveSteps:
    """An observer that prints a line per record: a critique's first words, or a round's rewards."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._best = float("-inf")

    def __call__(self, event: Event) -> None:
        """Print what is new in the trace."""
        record = event.record
        if isinstance(record, Scoring):
            self._round(event, record)
        elif isinstance(record, Failure):
            self._line(record.step, record.where, f"{record.type}: {record.message}", style="yellow")
        elif record.name in ("loss", "gradient"):
            self._critique(record)

    def _critique(self, call: Call) -> None:
        words = " ".join(call.completions[0].text.split())
        self._line(call.step, call.name, f"{call.seconds:5.1f} s  {words}", style="dim")

    def _round(self, event: Event, scoring: Scoring) -> None:
        calls = [call for call in event.trace.calls if call.step == scoring.step]
        call = calls[-1]
        finite = [reward for reward in scoring.rewards if reward is not None]
        self._best = max([self._best if scoring.step else float("-inf"), *finite])
        rewards = "".join("    nan" if r is None else f"{r:7.2f}" for r in scoring.rewards)
        self._line(
            scoring.step, call.name, f"{call.seconds:5.1f} s  rewards{rewards}  best {self._best:.2f}"
        )

    def _line(self, step: int, name: str, text: str, style: str = "") -> None:
        line = Text(f"step {step}  {name:<9}{text}", style=style)
        self._console.print(line, no_wrap=True, overflow="ellipsis")


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
    console.print(Text(where_from(result)))
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


def show_failure(console: Console, failed: FailedQuery) -> None:
    """Print why a query gave nothing."""
    console.print(Text(f"query {failed.id}: {failed.error}: {failed.message}", style="red"))
