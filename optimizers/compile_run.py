"""``tpo compile``: from its options to a compiled step in a file."""

from __future__ import annotations

import asyncio
import signal
import sys
import warnings
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import typer
from rich.console import Console
from rich.text import Text

from optimizers.candidates import STEPS, DroppedInputWarning, read_candidates
from optimizers.race_display import progress_text, show_race
from optimizers.race_run import Budget, RaceProgress
from optimizers.template_race import RaceSettings, TemplateRace
from tpo_modules.cli.live_line import LiveLine
from tpo_modules.cli.options import RunOptions, make_lm, make_module
from tpo_modules.cli.rewards import make_ready
from tpo_modules.errors import ConfigurationError
from tpo_modules.runs.queries import QueryRow, read_queries
from tpo_modules.saved_steps import save_step
from tpo_modules.tpo import TPOModule

OPTIMIZERS = ("race", "gepa", "mipro", "simba", "copro", "bootstrap")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """The options of ``tpo compile`` but those of the module; see its help for each."""

    step: str
    data: Path
    out: Path
    folder: Path
    optimizer: str = "race"
    candidates: tuple[Path, ...] = ()
    proposer_lm: str | None = None
    limit: int | None = None
    validate: str | None = None
    budget_tokens: int | None = None
    budget_requests: int | None = None
    budget_evaluations: int | None = None
    credit: str = "update"
    judged_depth: int = 1
    alpha: float = 0.05
    min_queries: int = 8
    halve: bool = False
    max_in_flight: int | None = None
    json: bool = False


def compile_from_options(options: CompileOptions, model: RunOptions) -> None:
    """Compile a step as the options say, and write it.

    Raises:
        ConfigurationError: An option cannot work; found before any LM call.
        BudgetError: The budget does not pay for one round; says what one costs.
    """
    if options.step not in STEPS:
        raise ConfigurationError(f"expected a step of {list(STEPS)}, got {options.step!r}")
    if options.optimizer not in OPTIMIZERS:
        raise ConfigurationError(
            f"expected --optimizer to be one of {list(OPTIMIZERS)}, got {options.optimizer!r}"
        )
    if options.out.is_dir() or options.out.resolve() == options.folder.resolve():
        raise ConfigurationError(
            f"expected --out to be a file, apart from the folder of the records, got {options.out} with the folder "
            f"{options.folder}: give it a suffix, as in {options.step}.json"
        )
    rows, others = split_queries(options)
    console = Console(stderr=True, quiet=options.json)
    module = make_module(model)
    if not isinstance(module, TPOModule):
        raise ConfigurationError(
            f"expected --method tpo or revision, got {model.method!r}, which has no {options.step}"
        )
    if options.optimizer == "race":
        _race(options, model, module, (rows, others), console)
    else:
        _compile(options, model, module, rows, console)


def _compile(
    options: CompileOptions,
    model: RunOptions,
    module: TPOModule,
    rows: list[QueryRow],
    console: Console,
) -> None:
    from optimizers.dspy_run import compile_with_dspy

    unused = {"--candidates": options.candidates, "--validate": options.validate}
    if given := [name for name, value in unused.items() if value]:
        raise ConfigurationError(
            f"{', '.join(given)} belong to --optimizer race; to compare what {options.optimizer} made, run both "
            "with `tpo run --data`, then `tpo compare`"
        )
    make_ready(module.scorer)
    policy = make_lm(model.lm, model)
    with dspy.context(lm=policy):
        compiled = compile_with_dspy(
            options.optimizer,
            module,
            options.step,
            rows,
            proposer=make_lm(options.proposer_lm, model) if options.proposer_lm else policy,
            folder=options.folder,
            credit=options.credit,
            depth=options.judged_depth,
            budget_tokens=options.budget_tokens,
            budget_evaluations=options.budget_evaluations,
            max_in_flight=options.max_in_flight or model.requests_at_once,
            console=console,
        )
    _save(compiled, options, {"optimizer": options.optimizer}, console)


def _race(
    options: CompileOptions,
    model: RunOptions,
    module: TPOModule,
    queries: tuple[list[QueryRow], list[QueryRow]],
    console: Console,
) -> None:
    race = _make_race(options, model, console)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DroppedInputWarning)
        race.prepare(module)
    for warning in caught:
        console.print(Text(f"warning: {warning.message}", "yellow"), soft_wrap=True)
    make_ready(module.scorer)
    line = LiveLine(console)

    def progress(found: RaceProgress) -> None:
        line.show(progress_text(found), keep=found.judged)

    race.on_progress = progress
    rows, others = queries
    with dspy.context(lm=make_lm(model.lm, model)), line, warnings.catch_warnings():
        warnings.simplefilter("ignore", DroppedInputWarning)
        compiled = asyncio.run(_interruptible(race.acompile(module, rows, others or None)))
    if compiled is None or race.result is None:
        console.print(Text(f"interrupted; the same command continues {options.folder}", "yellow"))
        raise typer.Exit(130)
    show_race(console, race.result)
    if options.json:
        sys.stdout.write(race.result.model_dump_json(indent=2) + "\n")
    about = race.result.model_dump(include={"recommended", "recommendation", "verdict", "alpha"})
    _save(compiled, options, {"optimizer": "race", **about}, console)


def split_queries(options: CompileOptions) -> tuple[list[QueryRow], list[QueryRow]]:
    """Read the queries to compile on and those to validate on.

    Raises:
        DataFileError: A file cannot be read or holds no query.
        ConfigurationError: Too few queries are left to compile on.
    """
    if options.validate is None:
        return read_queries(options.data, limit=options.limit), []
    if not options.validate.isdigit():
        rows = read_queries(options.data, limit=options.limit)
        return rows, read_queries(options.validate)
    kept = int(options.validate)
    rows = read_queries(options.data, limit=options.limit and options.limit + kept)
    if len(rows) <= kept:
        raise ConfigurationError(
            f"expected more queries than the {kept} kept for --validate, got {len(rows)} in {options.data}"
        )
    return rows[:-kept] if kept else rows, rows[len(rows) - kept :]


def _make_race(options: CompileOptions, model: RunOptions, console: Console) -> TemplateRace:
    if not options.candidates:
        raise ConfigurationError("expected --candidates, a folder of templates or files, got none")
    found, skipped = read_candidates(
        options.candidates, options.step, revision=model.method == "revision"
    )
    if skipped:
        console.print(f"left out, as named after other steps: {', '.join(skipped)}")
    settings = RaceSettings(
        credit=options.credit,
        depth=options.judged_depth,
        alpha=options.alpha,
        min_queries=options.min_queries,
        halve=options.halve,
        budget=Budget(
            tokens=options.budget_tokens,
            requests=options.budget_requests,
            evaluations=options.budget_evaluations,
        ),
        max_in_flight=options.max_in_flight or model.requests_at_once,
        seed=model.seed or 0,
    )
    return TemplateRace(options.step, found, settings=settings, out=options.folder)


def _save(
    compiled: TPOModule, options: CompileOptions, about: dict[str, Any], console: Console
) -> None:
    step = options.step
    if step not in compiled.steps():
        console.print(f"the {step} is best left out: tpo run --{step} none")
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_step(compiled, step, options.out, about=about)
    what = f"the {step} {about['recommended']!r}" if "recommended" in about else f"the {step}"
    console.print(f"{what} is in {options.out}: tpo run --{step} {options.out}", soft_wrap=True)


async def _interruptible(job: Coroutine[Any, Any, TPOModule]) -> TPOModule | None:
    """Run a job; on Ctrl-C or SIGTERM end it within seconds and return None."""
    task = asyncio.ensure_future(job)
    if sys.platform != "win32":
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None
