"""``tpo eval``: one of the paper's benchmarks, by any method, with its metric beside the paper's figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import dspy
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tpo_modules.benchmarks import (
    BENCHMARKS,
    Answer,
    Benchmark,
    GradeReport,
    GraderOptions,
    Item,
    grade_runs,
)
from tpo_modules.benchmarks.agreement import Agreement, LabelledResponse, read_labelled
from tpo_modules.benchmarks.alpaca_eval import run_package, write_outputs
from tpo_modules.benchmarks.base import Grader, query_rows
from tpo_modules.benchmarks.grading import mark_answers
from tpo_modules.benchmarks.published import NOTE, TABLE
from tpo_modules.cli import arguments
from tpo_modules.cli.many import answer_many
from tpo_modules.cli.options import EMBEDDED, RunOptions, make_lm, make_module
from tpo_modules.cli.rewards import load_scorer, make_ready
from tpo_modules.errors import ConfigurationError, RunFolderError
from tpo_modules.estimates import Estimate
from tpo_modules.query import make_query
from tpo_modules.runs.runner import RunSettings
from tpo_modules.runs.saved_run import SavedRun
from tpo_modules.step import Step

_PACKAGE = "alpaca_eval"


def evaluate(
    benchmark: Annotated[str, typer.Argument(help=f"{', '.join(BENCHMARKS)}.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A local copy, JSON (lines). \\[default: the Hugging Face hub]"),
    ] = None,
    limit: arguments.Limit = None,
    method: Annotated[str, typer.Option(help="tpo, revision or bon (best-of-N).")] = "tpo",
    lm: arguments.Lm = EMBEDDED,
    api_base: arguments.ApiBase = None,
    api_key: arguments.ApiKey = None,
    critic_lm: arguments.CriticLm = None,
    critic_api_base: arguments.CriticApiBase = None,
    critic_api_key: arguments.CriticApiKey = None,
    reward: arguments.Reward = "bundled",
    width: arguments.Width = 5,
    depth: arguments.Depth = 2,
    temperature: arguments.Temperature = 0.7,
    top_p: arguments.TopP = 0.95,
    max_tokens: arguments.MaxTokens = None,
    critique_max_tokens: arguments.CritiqueMaxTokens = None,
    seed: arguments.Seed = None,
    native_n: arguments.NativeN = None,
    max_in_flight: arguments.MaxInFlight = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder. \\[default: runs/eval-BENCHMARK-METHOD-LABEL]"),
    ] = None,
    graded_only: Annotated[
        list[Path] | None,
        typer.Option(
            help="Generate nothing: grade this run's folder. Several are graded on the queries that all have."
        ),
    ] = None,
    grader: Annotated[
        str | None,
        typer.Option(
            help="How answers are graded; xstest: string, judge, wildguard; alpaca_eval: judge, or alpaca_eval "
            "for the package of that name; hh_rlhf, beavertails: reward, scorer. \\[default: the first]"
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="The LM that judges, as for --lm; for hh_rlhf and beavertails a scorer that nobody optimised, as "
            "for --reward."
        ),
    ] = None,
    judge_api_base: Annotated[str | None, typer.Option(help="URL of the judge's endpoint.")] = None,
    judge_api_key: Annotated[
        str | None,
        typer.Option(
            help="Key of the judge's endpoint. \\[default: --api-key where neither has a URL]"
        ),
    ] = None,
    wildguard: Annotated[
        str, typer.Option(help="WildGuard's folder or hub id.")
    ] = "allenai/wildguard",
    annotators: Annotated[
        str | None, typer.Option(help="annotators_config of the package alpaca_eval.")
    ] = None,
    agreement: Annotated[
        Path | None,
        typer.Option(
            help="xstest: grade this file of labelled responses, and say how often grader and people agree."
        ),
    ] = None,
    json_: arguments.Json = False,
) -> None:
    """Evaluate a method on one of the paper's benchmarks, beside the paper's figures.

    The run is kept in a folder, and the same command again continues it; --graded-only grades it once more. A
    query that the grader fails on is left out of all runs alike, and counted.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigurationError(
            f"expected a benchmark of {', '.join(BENCHMARKS)}, got {benchmark!r}"
        )
    chosen = BENCHMARKS[benchmark]
    console = Console(stderr=True, quiet=json_)
    options = RunOptions(
        lm=lm, api_base=api_base, api_key=api_key, critic_lm=critic_lm,
        critic_api_base=critic_api_base, critic_api_key=critic_api_key, reward=reward, method=method,
        width=width, depth=depth, temperature=temperature, top_p=top_p, max_tokens=max_tokens,
        critique_max_tokens=critique_max_tokens, seed=seed, native_n=native_n,
    )  # fmt: skip
    if judge is None and (judge_api_base or judge_api_key):
        raise ConfigurationError("expected --judge with --judge-api-base and --judge-api-key")
    if api_base is None and judge_api_base is None:  # a server's own key is not for a provider
        judge_api_key = judge_api_key or api_key
    judging = RunOptions(lm=judge or lm, api_base=judge_api_base, api_key=judge_api_key, width=2)
    grading = GraderOptions(
        judge=judge,
        make_judge_lm=lambda name: make_lm(name, judging),
        make_scorer=lambda name: make_ready(load_scorer(name)),
        wildguard=wildguard,
        seed=seed,
    )
    workers = max_in_flight or judging.requests_at_once
    if agreement is not None:
        _show_agreement(chosen, agreement, limit, grader, grading, workers, as_json=json_)
        return
    by_package = grader == _PACKAGE and benchmark == "alpaca_eval"
    marker = None if by_package else _grader(chosen, grader, grading)
    items = chosen.load(data, limit=limit)
    folders = graded_only or [_generate(chosen, items, options, out, max_in_flight, console)]
    runs = {folder: _answers(folder, chosen, items) for folder in folders}
    if benchmark == "alpaca_eval":
        for folder, answers in runs.items():
            write_outputs(folder / "model_outputs.json", items, answers, folder.name)
    if marker is None:
        for folder, answers in runs.items():
            found = run_package(
                items, answers, generator=folder.name, folder=folder, annotators=annotators
            )
            print(json.dumps({"run": folder.name, **found}))
        return
    report = grade_runs(chosen, items, _by_name(runs), marker, workers=workers)
    _write(folders, chosen, grader, report)
    if json_:
        print(json.dumps(_summary(chosen, report)))
    else:
        show(chosen, report, Console())


def _grader(chosen: Benchmark, name: str | None, options: GraderOptions) -> Grader:
    names = list(chosen.graders)
    if name is not None and name not in names:
        raise ConfigurationError(
            f"expected --grader of {chosen.name} to be one of {names}, got {name!r}"
        )
    return chosen.graders[name or names[0]](options)


def _generate(
    chosen: Benchmark,
    items: Sequence[Item],
    options: RunOptions,
    out: Path | None,
    max_in_flight: int | None,
    console: Console,
) -> Path:
    module = make_module(options, policy=chosen.policy)
    make_ready(module.scorer)
    folder = out or Path("runs") / f"eval-{chosen.name}-{module.method}-{module.label}"
    settings = RunSettings(max_in_flight=max_in_flight or options.requests_at_once)
    with dspy.context(lm=make_lm(options.lm, options)):
        summary = answer_many(module, query_rows(items), folder, settings, console)
    if summary is None:
        console.print(Text(f"interrupted; the same command continues {folder}", "yellow"))
        raise typer.Exit(130)
    console.print(f"{summary.finished} finished, {summary.failed} failed; in {folder}")
    return folder


def _answers(folder: Path, chosen: Benchmark, items: Sequence[Item]) -> dict[str, Answer]:
    """Read a run's answers, and check that they are to these items: most ids are mere positions."""
    results = SavedRun(folder).results
    if not results:
        raise RunFolderError(f"expected a run with results to grade, {folder} has none")
    policy = Step(chosen.policy, name="policy")
    for item in items:
        asked = make_query(policy, item.inputs)
        there = results[item.id].query if item.id in results else asked
        if there.split() != asked.split():
            raise RunFolderError(
                f"expected {folder} to answer the queries of {chosen.title} that are graded, got another under the "
                f"id {item.id!r}: {there!r:.200} there, {str(asked)!r:.200} here; give --data the file that the "
                "run was made from"
            )
    return {key: Answer(result.response, result.reward) for key, result in results.items()}


def _by_name(runs: dict[Path, dict[str, Answer]]) -> dict[str, dict[str, Answer]]:
    """Name runs by their folders: by the last part where these differ, else by the whole path."""
    short = {folder.name for folder in runs}
    whole = len(short) < len(runs)
    return {str(folder) if whole else folder.name: answers for folder, answers in runs.items()}


def _write(
    folders: Sequence[Path], chosen: Benchmark, grader: str | None, report: GradeReport
) -> None:
    name = grader or next(iter(chosen.graders))
    for folder, run in zip(folders, report.runs, strict=True):
        state = {
            "benchmark": chosen.name,
            "grader": name,
            "metrics": {key: asdict(value) for key, value in run.metrics.items()},
            "left_out": report.left_out,
            "unanswered": run.unanswered,
            "failed": run.failed,
            "marks": {key: asdict(mark) for key, mark in run.marks.items()},
        }
        path = folder / f"grade-{name}.json"
        path.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def _summary(chosen: Benchmark, report: GradeReport) -> dict[str, Any]:
    return {
        "benchmark": chosen.name,
        "queries": len(report.items),
        "left_out": report.left_out,
        "runs": [
            {
                "run": run.name,
                "failed": run.failed,
                "unanswered": run.unanswered,
                **{key: asdict(value) for key, value in run.metrics.items()},
            }
            for run in report.runs
        ],
    }


def show(chosen: Benchmark, report: GradeReport, console: Console) -> None:
    """Print the runs' metrics, and the paper's rows below them."""
    table = _table(f"{chosen.title}, {len(report.items)} queries", "run", report.runs[0].metrics)
    for run in report.runs:
        table.add_row(run.name, *(_cell(value) for value in run.metrics.values()))
    console.print(table)
    for run in report.runs:
        if run.failed or run.unanswered:
            console.print(
                Text(
                    f"{run.name}: grader failed on {run.failed}, no answer to {run.unanswered}",
                    "yellow",
                )
            )
    if report.left_out:
        console.print(Text(f"{report.left_out} queries left out of all runs alike", "yellow"))
    paper = _table("in the paper", "policy", chosen.published)
    for row in TABLE:
        paper.add_row(row.policy, *(f"{row.of(column):.1f}" for column in chosen.published))
    console.print(paper)
    console.print(Text(NOTE, "dim"))


def _table(title: str, first: str, columns: Any) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cell(value: Estimate) -> str:
    return f"{value:.2f}" if abs(value.value) < 10 else f"{value:.1f}"


def _show_agreement(
    chosen: Benchmark,
    path: Path,
    limit: int | None,
    grader: str | None,
    options: GraderOptions,
    workers: int,
    *,
    as_json: bool,
) -> None:
    if chosen.name != "xstest":
        raise ConfigurationError(f"expected --agreement with xstest, got {chosen.name}")
    rows = read_labelled(path)[:limit]
    items = [Item(str(i), {"query": row.query}) for i, row in enumerate(rows)]
    answers = {str(i): Answer(row.response, 0.0) for i, row in enumerate(rows)}
    marks = mark_answers(items, answers, _grader(chosen, grader, options), workers)
    values = [marks[item.id].value for item in items]
    verdicts = [None if value is None else bool(value) for value in values]
    found = _by_model(rows, verdicts)
    if as_json:
        print(json.dumps({name: {**asdict(one), "rate": one.rate} for name, one in found.items()}))
        return
    for name, one in found.items():
        print(f"{name:<18}{one}")


def _by_model(
    rows: Sequence[LabelledResponse], verdicts: Sequence[bool | None]
) -> dict[str, Agreement]:
    pairs = list(zip(rows, verdicts, strict=True))
    found: dict[str, Agreement] = {}
    for name in [*sorted({row.model for row in rows}), "all"]:
        part = [pair for pair in pairs if name in (pair[0].model, "all")]
        found[name] = Agreement.between([r for r, _ in part], [v for _, v in part])
    return found
