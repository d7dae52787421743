"""``tpo score``: rewards of the responses in a file, or a scorer's accuracy on preferences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tpo_modules.cli.arguments import Device, Dtype, MaxLength, Output, TrustRemoteCode
from tpo_modules.cli.rewards import LocalOptions, load_scorer
from tpo_modules.errors import ConfigurationError
from tpo_modules.scorers.base import Reward
from tpo_modules.scorers.preference_data import PreferenceRow, ResponseRow, Rows, read_rows
from tpo_modules.scorers.preference_report import (
    Accuracy,
    LengthBias,
    PreferenceReport,
    RewardReport,
    Summary,
    preference_report,
    reward_report,
    score_all,
)

Keep: TypeAlias = Callable[[Sequence[float]], None]
"""Takes the rewards of all pairs so far."""


def score(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON lines or a JSON list, plain or .gz: {query, response}, {query, chosen, rejected}, or "
            "HH-RLHF transcripts {chosen, rejected}."
        ),
    ],
    reward: Annotated[
        str,
        typer.Option(
            help="'bundled', a reward model's folder or hub id, python:module:function, "
            "python:file.py:function, judge:MODEL, or the URL of a served one."
        ),
    ] = "bundled",
    limit: Annotated[int | None, typer.Option(help="Only the first so many rows.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write each row's rewards to this JSONL file, as they come.")
    ] = None,
    chunk: Annotated[int, typer.Option(help="Responses handed to the scorer at once.")] = 128,
    workers: Annotated[
        int, typer.Option(help="Chunks scored at once; more than 1 suits judges.")
    ] = 1,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, nothing else.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    output: Output = None,
    dtype: Dtype = None,
    device: Device = None,
    max_length: MaxLength = None,
) -> None:
    """Score the responses in a file, or measure how often a scorer agrees with preferences.

    Preferences give accuracy with a 95 % confidence interval (Wilson; ties count half), by category
    where rows have one, and beside it how much the rewards go by length.
    """
    if min(chunk, workers, limit or 1) < 1:
        raise ConfigurationError("Expected --chunk, --workers and --limit of at least 1.")
    rows = read_rows(file, limit=limit)
    local = LocalOptions(
        trust_remote_code=trust_remote_code,
        output=output,
        dtype=dtype,
        device=device,
        max_length=max_length,
    )
    with _keeping(out, rows) as keep:
        scorer = load_scorer(reward, local=local)
        rewards = _rewards(rows, scorer, chunk, workers, keep, quiet=json_)
    _show(rows, rewards, as_json=json_)


def _pairs(rows: Rows) -> list[tuple[str, str]]:
    """List the (query, response) pairs of all rows: one per response row, two per preference."""
    pairs: list[tuple[str, str]] = []
    for row in rows:
        if isinstance(row, PreferenceRow):
            pairs += [(row.query, row.chosen), (row.query, row.rejected)]
        else:
            pairs.append((row.query, row.response))
    return pairs


@contextmanager
def _keeping(out: Path | None, rows: Rows) -> Generator[Keep, None, None]:
    """Write rows to the file as soon as they have their rewards; what was scored outlives a failure."""
    if out is None:
        yield lambda rewards: None
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("a").close()
    except OSError as error:
        raise ConfigurationError(f"--out: expected a file that can be written: {error}.") from error
    each = 2 if isinstance(rows[0], PreferenceRow) else 1
    written = 0

    def keep(rewards: Sequence[float]) -> None:
        nonlocal written
        done = len(rewards) // each
        records = _records(rows[written:done], rewards[written * each : done * each])
        with out.open("a" if written else "w", encoding="utf-8") as file:
            file.writelines(json.dumps(_plain(r), ensure_ascii=False) + "\n" for r in records)
        written = done

    try:
        yield keep
    except BaseException:
        Console(stderr=True).print(f"{written} of {len(rows)} rows were scored; see {out}.")
        raise


def _rewards(
    rows: Rows,
    scorer: Any,
    chunk: int,
    workers: int,
    keep: Keep,
    *,
    quiet: bool,
) -> list[float]:
    pairs = _pairs(rows)
    console = Console(stderr=True)
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as progress:
        task = progress.add_task("scoring", total=len(pairs))

        def scored(rewards: Sequence[float]) -> None:
            keep(rewards)
            progress.update(task, completed=len(rewards))

        return score_all(scorer, pairs, chunk=chunk, workers=workers, on_progress=scored)


def _records(rows: Rows, rewards: Sequence[float]) -> list[dict[str, Any]]:
    """Give each row's place, category and rewards, with what the scorer said."""
    found: list[dict[str, Any]] = []
    position = 0
    for row in rows:
        record: dict[str, Any] = {"where": row.where}
        if row.category is not None:
            record["category"] = row.category
        if isinstance(row, PreferenceRow):
            chosen, rejected = rewards[position : position + 2]
            record |= {"chosen_reward": chosen, "rejected_reward": rejected}
            record |= _said(chosen, "chosen_") | _said(rejected, "rejected_")
            position += 2
        else:
            record |= {"reward": rewards[position]} | _said(rewards[position])
            position += 1
        found.append(record)
    return found


def _said(reward: float, whose: str = "") -> dict[str, Any]:
    if not isinstance(reward, Reward):
        return {}
    given = {"feedback": reward.feedback, "notes": list(reward.notes)}
    return {f"{whose}{name}": value for name, value in given.items() if value}


def _show(rows: Rows, rewards: Sequence[float], *, as_json: bool) -> None:
    console = Console()
    preferences = [row for row in rows if isinstance(row, PreferenceRow)]
    if preferences:
        report = preference_report(preferences, list(zip(rewards[::2], rewards[1::2], strict=True)))
        if as_json:
            print(json.dumps(_plain(asdict(report)), allow_nan=False))
        else:
            _show_preferences(console, report)
        return
    responses = [row for row in rows if isinstance(row, ResponseRow)]
    summary = reward_report(responses, rewards)
    if as_json:
        print(
            json.dumps(
                _plain({**asdict(summary), "rewards": _records(rows, rewards)}), allow_nan=False
            )
        )
    else:
        _show_rewards(console, responses, rewards, summary)


def _plain(value: Any) -> Any:
    """Make a value JSON: NaN, which JSON does not have, becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


# --- tables


def _show_preferences(console: Console, report: PreferenceReport) -> None:
    table = _table("category", "pairs", "accuracy", "95 % interval", "ties", "unscored")
    for name, found in report.by_category.items():
        table.add_row(name, *_accuracy_cells(found))
    table.add_row("all", *_accuracy_cells(report.overall))
    console.print(table)
    console.print(f"mean margin of chosen over rejected: {_number(report.mean_margin)}")
    length = report.length
    console.print(
        f"the longer response wins {_percent(length.longer_wins)} of the pairs of different "
        f"length, and is the chosen one in {_percent(length.longer_chosen)}"
    )
    _show_correlations(console, length)


def _show_rewards(
    console: Console,
    rows: Sequence[ResponseRow],
    rewards: Sequence[float],
    report: RewardReport,
) -> None:
    for row, reward in zip(rows, rewards, strict=True):
        start = " ".join(row.response.split())
        line = f"{row.where}\t{reward:.4f}\t{start}"
        console.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")
    table = _table("category", "responses", "mean", "std", "lowest", "highest", "unscored")
    for name, found in report.by_category.items():
        table.add_row(name, *_summary_cells(found))
    table.add_row("all", *_summary_cells(report.overall))
    console.print(table)
    _show_correlations(console, report.length)


def _show_correlations(console: Console, length: LengthBias) -> None:
    console.print(
        f"correlation of reward with length: {_number(length.correlation)} over all responses, "
        f"{_number(length.within_query)} within queries"
    )


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    return table


def _accuracy_cells(found: Accuracy) -> tuple[str, ...]:
    interval = f"{_percent(found.low)} to {_percent(found.high)}"
    return (
        str(found.pairs),
        _percent(found.value),
        interval,
        str(found.ties),
        str(found.unscored),
    )


def _summary_cells(found: Summary) -> tuple[str, ...]:
    numbers = (found.mean, found.std, found.lowest, found.highest)
    return (str(found.responses), *map(_number, numbers), str(found.unscored))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"
