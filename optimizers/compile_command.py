"""The command ``tpo compile``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tpo_modules.cli.options import RunOptions
from tpo_modules.cli.run import run


def _with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of ``**model``, the options of ``tpo run`` that say what module is run."""
    own = inspect.signature(command).parameters
    hints = get_type_hints(command, include_extras=True)
    theirs = inspect.signature(run).parameters
    their_hints = get_type_hints(run, include_extras=True)
    names = [field.name for field in dataclasses.fields(RunOptions)]
    parameters = [p.replace(annotation=hints[n]) for n, p in own.items() if n != "model"]
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters += [theirs[n].replace(annotation=their_hints[n], kind=kind) for n in names]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


@_with_model_options
def compile_step(
    step: Annotated[str, typer.Argument(help="The prompt to compile: loss, gradient or update.")],
    *,
    data: Annotated[
        Path,
        typer.Option(help="Queries to compile on: a JSON list of strings, or JSON lines with ids."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where the compiled step goes, for `tpo run`. \\[default: STEP.json]"),
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="race, gepa, mipro, simba, copro or bootstrap.")
    ] = "race",
    candidates: Annotated[
        list[Path] | None,
        typer.Option(
            help="race: a folder of candidates, or a file (.txt, .md, .json, .py); may be repeated. Files "
            "named after another step, as gradient_x.txt is, are left out."
        ),
    ] = None,
    proposer_lm: Annotated[
        str | None,
        typer.Option(
            help="Not race: the LM that writes prompts, a stronger one if you can. \\[default: --lm]"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Compile on the first so many queries.")] = None,
    validate: Annotated[
        str | None,
        typer.Option(
            help="Compare the result with the present prompt on other queries: a file of them, or how many of "
            "--data to keep for that, after --limit."
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where every record is kept; the same command again goes on there. "
            "\\[default: --out less its suffix]"
        ),
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(help="Budget: tokens billed, first rounds included.")
    ] = None,
    budget_requests: Annotated[int | None, typer.Option(help="race: budget of requests.")] = None,
    budget_evaluations: Annotated[
        int | None, typer.Option(help="Budget of evaluations: candidates times queries.")
    ] = None,
    credit: Annotated[
        str,
        typer.Option(
            help="What is judged: 'update', the mean reward of the update's samples over the chosen one's, or "
            "'pool', the gain of the final reward."
        ),
    ] = "update",
    judged_depth: Annotated[int, typer.Option(help="Depth of the runs that are judged.")] = 1,
    alpha: Annotated[float, typer.Option(help="race: error rate of its verdict.")] = 0.05,
    min_queries: Annotated[int, typer.Option(help="race: queries of its first round.")] = 8,
    halve: Annotated[
        bool,
        typer.Option(
            "--halve", help="race: let the lower half of each round go, clearly worse or not."
        ),
    ] = False,
    max_in_flight: Annotated[
        int | None, typer.Option(help="Requests at a time. \\[default: 2 if embedded, else 32]")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, nothing else.")
    ] = False,
    **model: Any,
) -> None:
    """Find a better prompt for one step, all others left as they are.

    race: try prompts of your own on the same recorded first rounds; those that are clearly worse leave early, and
    where nothing is found to be better, that is what it says. The others are DSPy's optimizers, which rewrite the
    prompt.
    Then: tpo run --loss loss.json.
    """
    from optimizers.compile_run import CompileOptions, compile_from_options

    options = CompileOptions(
        step=step,
        data=data,
        out=out or Path(f"{step}.json"),
        optimizer=optimizer,
        candidates=tuple(candidates or ()),
        proposer_lm=proposer_lm,
        limit=limit,
        validate=validate,
        folder=folder or (out or Path(step)).with_suffix(""),
        budget_tokens=budget_tokens,
        budget_requests=budget_requests,
        budget_evaluations=budget_evaluations,
        credit=credit,
        judged_depth=judged_depth,
        alpha=alpha,
        min_queries=min_queries,
        halve=halve,
        max_in_flight=max_in_flight,
        json=json_,
    )
    compile_from_options(options, RunOptions(**model))
