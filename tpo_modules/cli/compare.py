"""``tpo compare``: methods side by side on one query set, at equal cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import dspy
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tpo_modules.cli import arguments
from tpo_modules.cli.live_line import LiveLine
from tpo_modules.cli.many import progress_text
from tpo_modules.cli.options import EMBEDDED, RunOptions, make_critic, make_lm, shared_arguments
from tpo_modules.cli.report import write_report
from tpo_modules.cli.rewards import load_scorer, make_ready
from tpo_modules.errors import ConfigurationError
from tpo_modules.experiments.compare import CompareSettings, compare
from tpo_modules.experiments.comparison import Comparison
from tpo_modules.experiments.figures import draw_comparison
from tpo_modules.experiments.held_out import follow_comparison
from tpo_modules.experiments.methods import METHODS, make_methods
from tpo_modules.experiments.plots import draw
from tpo_modules.policy import PolicyModule
from tpo_modules.runs.queries import QueryRow, read_queries
from tpo_modules.runs.runner import RunSettings
from tpo_modules.scorers.base import Scorer

_DEFAULT = ("single", "bon", "revision", "tpo")
_SHORT = 64  # tokens, so that ten queries on the embedded LM take minutes
_PIPED_WIDTH = 180


def compare_command(
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"What to compare: {', '.join(METHODS)}, bonN; NAME=METHOD,depth=3,loss=FILE for variants; "
            f"NAME=FILE for a template of your own. \\[default: {' '.join(_DEFAULT)}]"
        ),
    ] = None,
    data: arguments.Data = None,
    limit: arguments.Limit = None,
    skip: Annotated[int, typer.Option(help="Leave out the first so many queries.")] = 0,
    lm: arguments.Lm = EMBEDDED,
    api_base: arguments.ApiBase = None,
    api_key: arguments.ApiKey = None,
    critic_lm: arguments.CriticLm = None,
    critic_api_base: arguments.CriticApiBase = None,
    critic_api_key: arguments.CriticApiKey = None,
    reward: arguments.Reward = "bundled",
    judge: Annotated[
        str | None,
        typer.Option(
            help="A scorer that no method optimises, as for --reward; it scores the results."
        ),
    ] = None,
    match: Annotated[
        str, typer.Option(help="What best-of-N (bon) gets as much of as TPO: samples or tokens.")
    ] = "samples",
    match_to: Annotated[
        str | None, typer.Option(help="The method that bon is matched to. \\[default: tpo]")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What gains are over. \\[default: bon, else the first]")
    ] = None,
    width: arguments.Width = 5,
    depth: arguments.Depth = 2,
    temperature: arguments.Temperature = 0.7,
    top_p: arguments.TopP = 0.95,
    max_tokens: Annotated[
        int | None,
        arguments.sampling_option(
            help="Limit of a response. \\[default: 64 if embedded, else 2048]"
        ),
    ] = None,
    critique_max_tokens: Annotated[
        int | None,
        arguments.sampling_option(
            help="Limit of a critique. \\[default: 64 if embedded, else the LM's own]"
        ),
    ] = None,
    seed: arguments.Seed = 0,
    native_n: arguments.NativeN = None,
    max_in_flight: arguments.MaxInFlight = None,
    out: Annotated[
        Path | None, typer.Option(help="The comparison's folder. \\[default: runs/compare-NAME]")
    ] = None,
    json_: arguments.Json = False,
) -> None:
    """Compare methods on the same queries from the same first samples.

    Best-of-N gets as many samples as TPO draws, or as many as its tokens buy. The same command again continues.
    """
    if data is None:
        raise ConfigurationError("expected --data FILE, the queries to compare on")
    if match not in ("samples", "tokens"):
        raise ConfigurationError(f"expected --match samples or tokens, got {match!r}")
    short = _SHORT if RunOptions(lm=lm).embedded else None
    options = RunOptions(
        lm=lm, api_base=api_base, api_key=api_key, critic_lm=critic_lm,
        critic_api_base=critic_api_base, critic_api_key=critic_api_key, reward=reward, width=width, depth=depth,
        temperature=temperature, top_p=top_p, max_tokens=max_tokens or short,
        critique_max_tokens=critique_max_tokens or short, seed=seed, native_n=native_n,
    )  # fmt: skip
    rows = _rows(data, skip, limit)
    common = shared_arguments(options)
    if (critic := make_critic(options)) is not None:
        common["critic_lm"] = critic
    make_ready(common["scorer"])
    second = None if judge is None else make_ready(load_scorer(judge))
    chosen = make_methods(methods or _DEFAULT, common, depth=depth)
    folder = out or Path("runs") / f"compare-{data.stem}"
    console = Console(stderr=True, quiet=json_)
    settings = CompareSettings(
        match="tokens" if match == "tokens" else "samples",
        match_to=match_to,
        baseline=baseline,
        run=RunSettings(max_in_flight=max_in_flight or options.requests_at_once),
    )
    with dspy.context(lm=make_lm(lm, options)):
        try:
            found = compare(
                chosen,
                rows,
                out=folder,
                judge=second,
                settings=settings,
                on_progress=Lines(console),
            )
        except KeyboardInterrupt:
            console.print(Text(f"interrupted; the same command continues {folder}", "yellow"))
            raise typer.Exit(130) from None
        draw_comparison(found, folder)
        pages = ""
        if (folder / "methods").is_dir():
            write_report([folder], folder / "report.html", common=True, title=f"TPO: {data.stem}")
            pages = "report.html, "
        if not json_:
            show(found, table_console())
        more: dict[str, Any] = {}
        if second is not None and width > 1:
            more, warnings = _follow(folder, second, chosen[0].module)
            for warning in warnings:
                console.print(Text(f"warning: {warning}", "bold red"))
    if json_:
        print(json.dumps({**found.summary(), **more}))
        return
    console.print(f"in {folder}: {pages}table.md, rewards.svg, outcomes.jsonl, and every run")


def _rows(data: Path, skip: int, limit: int | None) -> list[QueryRow]:
    """Read the queries from the one after ``skip`` on, ``limit`` of them at most."""
    if skip < 0:
        raise ConfigurationError(f"expected --skip to be 0 or more, got {skip}")
    rows = read_queries(data, limit=None if limit is None else skip + limit)
    if skip and skip >= len(rows):
        raise ConfigurationError(
            f"expected --skip to leave a query of the {len(rows)} that were read from {data}, got {skip}"
        )
    return rows[skip:]


def _follow(
    folder: Path, judge: Scorer, module: PolicyModule
) -> tuple[dict[str, Any], Sequence[str]]:
    """Follow the judge by step and pool size, where runs allow it; return the summary for JSON, and warnings."""
    try:
        followed = follow_comparison(folder, judge, module=module)
    except ConfigurationError as error:
        return {}, [f"no figure by step and pool size: {error}"]
    followed.write(folder)
    draw(followed, folder)
    return {"overoptimization": followed.summary}, followed.warnings


def show(found: Comparison, console: Console) -> None:
    """Print a comparison's tables."""
    show_tables(found.tables(), console)
    console.print(Text(found.heading()))


def table_console() -> Console:
    """Make a console for tables: as wide as the terminal; wide enough where output goes to a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPED_WIDTH)


def show_tables(tables: Sequence[tuple[str, list[str], list[list[str]]]], console: Console) -> None:
    """Print tables: title, headings, rows of cells."""
    for title, heads, rows in tables:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for place, head in enumerate(heads):
            table.add_column(head, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


class Lines:
    """A line of progress now and then, and one for each run that ends."""

    def __init__(self, console: Console) -> None:
        self._line = LiveLine(console)

    def __call__(self, name: str, figures: dict[str, Any]) -> None:
        """Print a run's figures, if it is time."""
        if figures["to_do"]:
            done = figures["finished"] + figures["failed"] >= figures["to_do"]
            self._line.show(f"{name}: {progress_text(figures)}", keep=done)
