"""``tpo run``: queries in, responses and their rewards out."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import dspy
import typer
from rich.console import Console
from rich.text import Text

from tpo_modules.cli import arguments
from tpo_modules.cli.config_file import read_config
from tpo_modules.cli.display import LiveSteps, show_failure, show_result, show_summary
from tpo_modules.cli.many import answer_many, read_results
from tpo_modules.cli.options import EMBEDDED, RunOptions, make_lm, make_module, plan_text
from tpo_modules.cli.rewards import make_ready
from tpo_modules.errors import ConfigurationError, InputError, NoCandidateError, ScorerError
from tpo_modules.policy import PolicyModule
from tpo_modules.run import observe
from tpo_modules.runs.queries import QueryRow, parse_queries, read_queries
from tpo_modules.runs.ray_runner import RayCluster
from tpo_modules.runs.results import FailedQuery, QueryResult
from tpo_modules.runs.runner import RunSettings
from tpo_modules.runs.saved_run import SavedRun
from tpo_modules.runs.tally import Limits
from tpo_modules.selection import SELECTIONS

# Errors that concern the query; any other is the command's.
_OF_ONE_QUERY = (InputError, NoCandidateError, ScorerError)
_FEW = 20  # up to so many queries, every step and response is printed


def run(
    query: Annotated[
        str | None, typer.Argument(help="The query; '-' or nothing reads standard input.")
    ] = None,
    data: arguments.Data = None,
    limit: arguments.Limit = None,
    lm: arguments.Lm = EMBEDDED,
    api_base: arguments.ApiBase = None,
    api_key: arguments.ApiKey = None,
    critic_lm: arguments.CriticLm = None,
    critic_api_base: arguments.CriticApiBase = None,
    critic_api_key: arguments.CriticApiKey = None,
    reward: arguments.Reward = "bundled",
    method: Annotated[
        str, arguments.method_option(help="tpo, revision or bon (best-of-N).")
    ] = "tpo",
    width: arguments.Width = 5,
    depth: arguments.Depth = 2,
    loss: Annotated[
        str | None,
        arguments.method_option(
            help="Its prompt: a text file, a saved step (.json), module:Name, file.py:Name, none."
        ),
    ] = None,
    gradient: Annotated[str | None, arguments.method_option(help="Its prompt, likewise.")] = None,
    update: Annotated[str | None, arguments.method_option(help="Its prompt, likewise.")] = None,
    selection: Annotated[
        str, arguments.method_option(help="Which pair is compared: " + ", ".join(SELECTIONS) + ".")
    ] = "extreme",
    temperature: arguments.Temperature = 0.7,
    top_p: arguments.TopP = 0.95,
    max_tokens: arguments.MaxTokens = None,
    critique_max_tokens: arguments.CritiqueMaxTokens = None,
    seed: arguments.Seed = None,
    native_n: arguments.NativeN = None,
    patience: Annotated[
        int | None, arguments.method_option(help="Stop after so many steps without a new best.")
    ] = None,
    min_gap: Annotated[
        float | None, arguments.method_option(help="Stop when the pair's rewards differ by less.")
    ] = None,
    token_budget: Annotated[
        int | None, arguments.method_option(help="Start no step after so many generated tokens.")
    ] = None,
    out: Annotated[
        Path | None,
        arguments.run_option(
            help="Where results go: with --data the run's folder, else a JSONL file to append to. "
            "\\[default with --data: runs/NAME-METHOD-LABEL]"
        ),
    ] = None,
    max_in_flight: arguments.MaxInFlight = None,
    retry_failures: Annotated[
        bool, arguments.run_option(help="With --data: try failed queries of the folder again.")
    ] = False,
    extend_depth: Annotated[
        bool,
        arguments.run_option(
            help="With --data: continue the folder's runs to a larger --depth; without --out those of the one "
            "folder of less depth in runs/."
        ),
    ] = False,
    max_tokens_run: Annotated[
        int | None,
        arguments.run_option("--budget-tokens", help="Budget of the run: tokens billed."),
    ] = None,
    max_requests_run: Annotated[
        int | None, arguments.run_option("--budget-requests", help="Budget of the run: requests.")
    ] = None,
    max_money_run: Annotated[
        float | None,
        arguments.run_option(
            "--budget-money",
            help="Budget of the run, by LiteLLM's prices; a model without one is refused.",
        ),
    ] = None,
    max_seconds_run: Annotated[
        float | None, arguments.run_option("--budget-seconds", help="Budget of the run: wall time.")
    ] = None,
    ray: Annotated[
        str | None,
        arguments.cluster_option(
            help="With --data: spread the queries over a Ray cluster: its HOST:PORT, 'auto' for the one that this "
            "machine is in, 'local' to start one here. The LM's endpoint must be reachable from all of it."
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        arguments.cluster_option(
            help="Processes on the cluster. \\[default: one per machine, two at least]"
        ),
    ] = None,
    ray_scorers: Annotated[
        int,
        arguments.cluster_option(
            help="Actors that hold the reward model; 0: every worker scores for itself."
        ),
    ] = 0,
    config: Annotated[
        Path | None,
        typer.Option(
            help='A JSON file of these options, such as {"depth": 3}; the command line goes before it.',
            callback=read_config,
            is_eager=True,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per query, nothing else.")
    ] = False,
) -> None:
    """Steer a frozen LM to a reward model while it answers.

    Prints the best response of each query; progress and rewards go to standard error. With --data the run is kept
    in a folder, and the same command again continues it.
    """
    rows = _rows(query, data, limit)
    options = RunOptions(
        lm=lm,
        api_base=api_base,
        api_key=api_key,
        critic_lm=critic_lm,
        critic_api_base=critic_api_base,
        critic_api_key=critic_api_key,
        reward=reward,
        method=method,
        width=width,
        depth=depth,
        loss=loss,
        gradient=gradient,
        update=update,
        selection=selection,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        critique_max_tokens=critique_max_tokens,
        seed=seed,
        native_n=native_n,
        patience=patience,
        min_gap=min_gap,
        token_budget=token_budget,
    )
    console = Console(stderr=True, quiet=json_)
    if ray is not None and data is None:
        raise ConfigurationError(
            "expected --data with --ray, which spreads many queries, got one query"
        )
    cluster = _cluster(options, ray, ray_workers, ray_scorers)
    name = f"{data.stem if data else 'query'}-{method}"
    folder = out or Path("runs") / f"{name}-D{depth}-N{width}"
    if extend_depth and data is not None and out is None and not folder.exists():
        folder = _shallower(name, options)
    if dry_run:
        answered = _answered(rows, folder) if data is not None else 0
        print(plan_text(make_module(options), len(rows) - answered))
        if answered:
            print(f"besides {answered} queries whose results are in {folder} already")
        return
    settings = RunSettings(
        max_in_flight=max_in_flight or options.requests_at_once,
        retry_failures=retry_failures,
        extend_depth=extend_depth,
        limits=Limits(
            tokens=max_tokens_run,
            requests=max_requests_run,
            money=max_money_run,
            seconds=max_seconds_run,
        ),
    )
    if data is None:
        _run_one(options, rows[0], console, out=out, json_=json_)
    else:
        _run_many(options, rows, folder, settings, console, json_=json_, cluster=cluster)


def _shallower(name: str, options: RunOptions) -> Path:
    """Find the run of less depth among the default folders, which are named after their depth.

    Raises:
        ConfigurationError: There is none, or more than one.
    """
    form = re.compile(rf"{re.escape(name)}-D(\d+)-N{options.width}")
    matches = [(path, form.fullmatch(path.name)) for path in sorted(Path("runs").glob("*-D*-N*"))]
    found = [path for path, match in matches if match and int(match[1]) < options.depth]
    if len(found) == 1:
        return found[0]
    raise ConfigurationError(
        "expected --out FOLDER, the run to extend, or one run of less depth in "
        f"{Path('runs') / name}-D*-N{options.width}, got {', '.join(map(str, found)) or 'none'}"
    )


def _answered(rows: list[QueryRow], folder: Path) -> int:
    """Count the queries that a run's folder has results of."""
    if not (folder / "config.json").exists():
        return 0
    results = SavedRun(folder).results
    return sum(row.id in results for row in rows)


def _cluster(
    options: RunOptions, address: str | None, workers: int | None, scorers: int
) -> RayCluster | None:
    if address is None:
        return None
    if options.embedded:
        raise ConfigurationError(
            "expected with --ray an LM that every machine reaches, got the embedded one: serve a model and name it "
            "by --lm and --api-base"
        )
    return RayCluster(address=address, workers=workers, scorers=scorers)


def _run_one(
    options: RunOptions, row: QueryRow, console: Console, *, out: Path | None, json_: bool
) -> None:
    with _appending(out) as sink:
        module = make_module(options)
        make_ready(module.scorer)
        with dspy.context(lm=make_lm(options.lm, options)):
            record = _answer(module, row, console)
        if sink is not None:
            sink.write(record.model_dump_json() + "\n")
    _print(record, json_=json_)
    if isinstance(record, FailedQuery):
        raise typer.Exit(1)


def _run_many(
    options: RunOptions,
    rows: list[QueryRow],
    folder: Path,
    settings: RunSettings,
    console: Console,
    *,
    json_: bool,
    cluster: RayCluster | None,
) -> None:
    module = make_module(options)
    if cluster is None:
        make_ready(module.scorer)
    few = len(rows) <= _FEW
    watching = observe(LiveSteps(console, name_query=True)) if few else nullcontext()
    with dspy.context(lm=make_lm(options.lm, options)), watching:
        summary = answer_many(module, rows, folder, settings, console, cluster)
        results = {result.id: result for result in read_results(module, folder)}
    for row in rows:
        if row.id in results:
            if few:
                console.print(Text(f"\n{row.id}: {results[row.id].query:.200}", "bold"))
                show_result(console, results[row.id])
            if few or json_:
                _print(results[row.id], json_=json_)
    show_summary(console, [results[row.id] for row in rows if row.id in results])
    if summary is None:
        console.print(Text(f"interrupted; the same command continues {folder}", "yellow"))
        raise typer.Exit(130)
    ended = f" ({summary.stop_reason})" if summary.stop_reason else ""
    if not summary.figures["to_do"]:
        console.print("nothing was left to do, and nothing was sent")
    console.print(
        f"{summary.finished} finished, {summary.failed} failed, {summary.left} not tried{ended}; in {folder}"
    )
    if summary.failed:
        raise typer.Exit(1)


def _answer(module: PolicyModule, row: QueryRow, console: Console) -> QueryResult | FailedQuery:
    live = LiveSteps(console)
    try:
        with observe(live):
            prediction = module(**row.inputs)
    except _OF_ONE_QUERY as error:
        failed = FailedQuery.of(row.id, row.inputs, error)
        show_failure(console, failed)
        return failed
    except KeyboardInterrupt:
        console.print(Text("interrupted", "yellow"))
        if live.best is not None:
            console.print(Text(f"best so far, reward {live.best.reward:.2f}:"))
            print(live.best.response, flush=True)
        raise typer.Exit(130) from None
    result = QueryResult.of(row.id, prediction, keep_trace=True)
    show_result(console, result)
    return result


def _print(record: QueryResult | FailedQuery, *, json_: bool) -> None:
    if json_:
        print(record.model_dump_json(exclude={"trace"}), flush=True)
    elif isinstance(record, QueryResult):
        print(record.response, flush=True)


def _rows(query: str | None, data: Path | None, limit: int | None) -> list[QueryRow]:
    if data is not None:
        if query is not None:
            raise ConfigurationError("expected a query or --data, got both")
        if str(data) == "-":
            return parse_queries(sys.stdin.read(), "standard input", limit=limit)
        return read_queries(data, limit=limit)
    if query is None and sys.stdin.isatty():
        raise ConfigurationError("expected a query, --data FILE, or a query on standard input")
    text = sys.stdin.read().strip() if query in (None, "-") else query
    if not text or not text.strip():
        raise InputError("expected a query with some text, got an empty one")
    return [QueryRow("0", {"query": text})]


@contextmanager
def _appending(out: Path | None) -> Generator[Any]:
    if out is None:
        with nullcontext() as nothing:
            yield nothing
        return
    try:
        file = out.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write the results to {out}: {error}") from error
    with file:
        yield file
