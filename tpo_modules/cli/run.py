"""``tpo run``: queries in, responses and their rewards out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Annotated, Any

import dspy
import typer
from rich.console import Console
from rich.text import Text

from tpo_modules.cli.display import LiveSteps, show_failure, show_result
from tpo_modules.cli.options import EMBEDDED, RunOptions, make_lm, make_module
from tpo_modules.errors import ConfigurationError, InputError, NoCandidateError, ScorerError
from tpo_modules.policy import PolicyModule
from tpo_modules.queries import QueryRow, parse_queries, read_queries
from tpo_modules.results import FailedQuery, QueryResult
from tpo_modules.run import observe

# Errors that concern one query of many; any other ends the command.
_OF_ONE_QUERY = (InputError, NoCandidateError, ScorerError)


def run(
    query: Annotated[
        str | None, typer.Argument(help="The query; '-' or nothing reads standard input.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A file of queries: a JSON list of strings, or JSON lines with ids."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many queries.")] = None,
    lm: Annotated[
        str,
        typer.Option(help="The policy: 'embedded', a .gguf file, or a model as LiteLLM names it."),
    ] = EMBEDDED,
    api_base: Annotated[str | None, typer.Option(help="URL of the LM's endpoint.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key for the LM's endpoint.", envvar="TPO_API_KEY", show_envvar=True),
    ] = None,
    critic_lm: Annotated[
        str | None, typer.Option(help="Another LM for the loss and the gradient.")
    ] = None,
    reward: Annotated[
        str,
        typer.Option(
            help="'bundled', a reward model's folder or hub id, python:module:function, "
            "python:file.py:function, judge:MODEL, or the URL of a served one."
        ),
    ] = "bundled",
    method: Annotated[str, typer.Option(help="tpo, revision or bon (best-of-N).")] = "tpo",
    width: Annotated[int, typer.Option(help="Samples per round (N).")] = 5,
    depth: Annotated[int, typer.Option(help="Iterations (D); 0 is best-of-N.")] = 2,
    loss: Annotated[
        str | None, typer.Option(help="Its prompt: a text file, module:Name, file.py:Name, none.")
    ] = None,
    gradient: Annotated[str | None, typer.Option(help="Its prompt, likewise.")] = None,
    update: Annotated[str | None, typer.Option(help="Its prompt, likewise.")] = None,
    selection: Annotated[
        str, typer.Option(help="Which pair is compared: extreme, median, within-step.")
    ] = "extreme",
    temperature: Annotated[float, typer.Option(help="Of every call.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Of the responses; critiques use 0.99.")] = 0.95,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Limit of a response. [default: 256 if embedded, else 2048]"),
    ] = None,
    critique_max_tokens: Annotated[
        int | None,
        typer.Option(help="Limit of a critique. [default: 256 if embedded, else the LM's own]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Base of the seeds sent with requests.")] = None,
    native_n: Annotated[
        bool | None,
        typer.Option(
            "--native-n/--no-native-n",
            help="Ask for all samples in one request. [default: if the LM can]",
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many steps without a new best.")
    ] = None,
    min_gap: Annotated[
        float | None, typer.Option(help="Stop when the pair's rewards differ by less.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(help="Start no step after so many generated tokens.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Append each result with its trace to this JSONL file.")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per query, nothing else.")
    ] = False,
) -> None:
    """Steer a frozen LM to a reward model while it answers.

    Prints the best response of each query; progress and rewards go to standard error.
    """
    rows = _rows(query, data, limit)
    options = RunOptions(
        lm=lm,
        api_base=api_base,
        api_key=api_key,
        critic_lm=critic_lm,
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
    with _appending(out) as sink:
        module = make_module(options)
        with dspy.context(lm=make_lm(lm, options)):
            failed = answer_all(module, rows, console, json_=json_, sink=sink)
    if failed:
        raise typer.Exit(1)


def answer_all(
    module: PolicyModule,
    rows: list[QueryRow],
    console: Console,
    *,
    json_: bool,
    sink: IO[str] | None,
) -> int:
    """Answer queries one after the other and print each as it comes; return how many failed.

    Ctrl-C ends the work; what is finished was printed and written already.
    """
    failed = done = 0
    try:
        for row in rows:
            if len(rows) > 1:
                console.print(Text(f"\n{row.id}: {row.inputs.get('query', row.inputs)!s:.200}", "bold"))
            record = _answer(module, row, console)
            failed += isinstance(record, FailedQuery)
            done += 1
            _emit(record, json_=json_, sink=sink)
    except KeyboardInterrupt:
        console.print(Text(f"interrupted: {done} of {len(rows)} queries are finished", "yellow"))
        raise typer.Exit(130) from None
    return failed


def _answer(module: PolicyModule, row: QueryRow, console: Console) -> QueryResult | FailedQuery:
    try:
        with observe(LiveSteps(console)):
            prediction = module(**row.inputs)
    except _OF_ONE_QUERY as error:
        failed = FailedQuery.of(row.id, row.inputs, error)
        show_failure(console, failed)
        return failed
    result = QueryResult.of(row.id, prediction, keep_trace=True)
    show_result(console, result)
    return result


def _emit(record: QueryResult | FailedQuery, *, json_: bool, sink: IO[str] | None) -> None:
    if sink is not None:
        sink.write(record.model_dump_json() + "\n")
        sink.flush()
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
def _appending(out: Path | None) -> Iterator[Any]:
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
