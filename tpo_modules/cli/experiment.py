"""``tpo experiment``: the paper's experiments by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import dspy
import typer
from rich.console import Console
from rich.text import Text

from tpo_modules.baselines import BestOfNModule
from tpo_modules.cli import arguments
from tpo_modules.cli.compare import Lines, show_tables, table_console
from tpo_modules.cli.options import EMBEDDED, RunOptions, make_lm, shared_arguments
from tpo_modules.cli.rewards import load_scorer, make_ready
from tpo_modules.errors import ConfigurationError
from tpo_modules.experiments import costs, curves, generations, scaling
from tpo_modules.experiments.figures import check_matplotlib
from tpo_modules.experiments.finding import Finding, Setup
from tpo_modules.experiments.held_out import follow_comparison
from tpo_modules.experiments.plots import draw
from tpo_modules.runs.queries import read_queries
from tpo_modules.runs.runner import RunSettings
from tpo_modules.scorers.base import Scorer

_CURVE_DEPTH = 5  # the paper's curves; its benchmarks have 2
_CURVES = ("curve", "overoptimization")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """The options that belong to single experiments."""

    lms: list[str]
    options: RunOptions
    methods: list[str] | None
    widths: list[int]
    also: list[str] | None
    best_of: list[int]
    generations: int
    runs: list[Path] | None
    judge: str | None
    policy_params: float | None
    reward_params: float | None


def experiment_command(
    name: Annotated[
        str,
        typer.Argument(
            help="curve, stability, width, depth-vs-width, cost, prerequisite, ablations or overoptimization."
        ),
    ],
    data: arguments.Data = None,
    limit: arguments.Limit = None,
    lm: Annotated[
        list[str] | None,
        typer.Option(
            help="The policy, as for tpo compare; several times for prerequisite. \\[default: embedded]"
        ),
    ] = None,
    api_base: arguments.ApiBase = None,
    api_key: arguments.ApiKey = None,
    reward: arguments.Reward = "bundled",
    judge: Annotated[
        str | None,
        typer.Option(help="A scorer that nothing optimises, as for --reward."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="curve, stability, ablations: a method as tpo compare takes it; repeat it."
        ),
    ] = None,
    width: arguments.Width = 5,
    depth: Annotated[
        int | None,
        typer.Option(help="Iterations (D). \\[default: 5 for curve and overoptimization, else 2]"),
    ] = None,
    widths: Annotated[str, typer.Option(help="width: samples per round.")] = "5,10,15,20",
    also: Annotated[
        str | None,
        typer.Option(help="width: more shapes; the paper's equals of D2-N15 are D3-N10,D4-N5."),
    ] = None,
    best_of: Annotated[str, typer.Option(help="depth-vs-width: plain samples.")] = "15,30,60",
    generations: Annotated[int, typer.Option(help="stability: generations per query.")] = 5,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="cost: a run's or comparison's folder to count, instead of runs of its own; repeat it. "
            "overoptimization: a comparison's folder."
        ),
    ] = None,
    policy_params: Annotated[
        float | None,
        typer.Option(help="cost: parameters of the policy, as 70e9. \\[default: by its name]"),
    ] = None,
    reward_params: Annotated[
        float | None,
        typer.Option(help="cost: parameters of the reward model. \\[default: by its name]"),
    ] = None,
    temperature: arguments.Temperature = 0.7,
    top_p: arguments.TopP = 0.95,
    max_tokens: arguments.MaxTokens = None,
    critique_max_tokens: arguments.CritiqueMaxTokens = None,
    seed: arguments.Seed = 0,
    native_n: arguments.NativeN = None,
    max_in_flight: arguments.MaxInFlight = None,
    out: Annotated[
        Path | None, typer.Option(help="The experiment's folder. \\[default: runs/experiment-NAME]")
    ] = None,
    json_: arguments.Json = False,
) -> None:
    """Carry out an experiment of the paper: data, a figure and a table.

    The same command again continues. See docs/experiments.md for what each of them measures.
    """
    if name not in _EXPERIMENTS:
        raise ConfigurationError(
            f"expected an experiment of {', '.join(_EXPERIMENTS)}, got {name!r}"
        )
    check_matplotlib()
    lms = lm or [EMBEDDED]
    sizes = _numbers(widths, "--widths")
    depth = (_CURVE_DEPTH if name in _CURVES else 2) if depth is None else depth
    options = RunOptions(
        lm=lms[0], api_base=api_base, api_key=api_key, reward=reward,
        width=max(sizes) if name == "width" else width, depth=depth, temperature=temperature,
        top_p=top_p, max_tokens=max_tokens, critique_max_tokens=critique_max_tokens, seed=seed,
        native_n=native_n,
    )  # fmt: skip
    choices = _Choices(
        lms=lms, options=options, methods=method, widths=sizes,
        also=None if also is None else [label.strip() for label in also.split(",")],
        best_of=_numbers(best_of, "--best-of"), generations=generations, runs=run,
        judge=judge,
        policy_params=policy_params, reward_params=reward_params,
    )  # fmt: skip
    folder = out or Path("runs") / f"experiment-{name}"
    console = Console(stderr=True, quiet=json_)
    prepare = partial(
        _setup, data, limit, folder, options, judge, max_in_flight, on_progress=Lines(console)
    )
    try:
        found = _EXPERIMENTS[name](prepare, choices)
    except KeyboardInterrupt:
        console.print(Text(f"interrupted; the same command continues {folder}", "yellow"))
        raise typer.Exit(130) from None
    files = [*found.write(folder), *draw(found, folder)]
    _show(found, files, console, as_json=json_)


def _setup(
    data: Path | None,
    limit: int | None,
    folder: Path,
    options: RunOptions,
    judge: str | None,
    max_in_flight: int | None,
    *,
    on_progress: Lines,
) -> Setup:
    """Read the queries and load the scorers; only experiments that run something need them."""
    if data is None:
        raise ConfigurationError("expected --data FILE, the queries of the experiment")
    rows = read_queries(data, limit=limit)
    common = shared_arguments(options)
    make_ready(common["scorer"])
    return Setup(
        queries=rows,
        out=folder,
        common=common,
        depth=options.depth,
        judge=None if judge is None else make_ready(load_scorer(judge)),
        run=RunSettings(max_in_flight=max_in_flight or options.requests_at_once),
        on_progress=on_progress,
    )


def _show(found: Finding, files: list[Path], console: Console, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**found.summary, "notes": found.notes, "warnings": found.warnings}))
        return
    shown = table_console()
    show_tables(found.tables, shown)
    for note in found.notes:
        shown.print(Text(note))
    for warning in found.warnings:
        console.print(Text(f"warning: {warning}", "bold red"))
    names = ", ".join(file.name for file in files)
    console.print(Text(f"in {files[0].parent}: {names}"))


def _numbers(text: str, option: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise ConfigurationError(f"expected whole numbers such as {option} 5,10, got {text!r}")
    return [int(part) for part in parts]


_Prepare = Callable[[], Setup]


def _with_lm(
    run: Callable[[Setup, _Choices], Finding], prepare: _Prepare, choices: _Choices
) -> Finding:
    if len(choices.lms) > 1:
        raise ConfigurationError(
            f"expected one --lm, got {len(choices.lms)}; only prerequisite compares policies"
        )
    setup = prepare()
    with dspy.context(lm=make_lm(choices.lms[0], choices.options)):
        return run(setup, choices)


def _curve(setup: Setup, choices: _Choices) -> Finding:
    return curves.curve(setup, methods=choices.methods or ("tpo", "revision"))


def _stability(setup: Setup, choices: _Choices) -> Finding:
    methods = choices.methods or generations.METHODS
    return generations.stability(setup, generations=choices.generations, methods=methods)


def _width(setup: Setup, choices: _Choices) -> Finding:
    return scaling.width(setup, widths=choices.widths, also=choices.also or ())


def _depth_vs_width(setup: Setup, choices: _Choices) -> Finding:
    return scaling.depth_vs_width(setup, best_of=choices.best_of)


def _ablations(setup: Setup, choices: _Choices) -> Finding:
    return scaling.ablations(setup, methods=choices.methods or scaling.ABLATIONS)


def _cost(prepare: _Prepare, choices: _Choices) -> Finding:
    given: dict[str, Any] = {
        "policy_parameters": choices.policy_params,
        "reward_parameters": choices.reward_params,
    }
    if choices.runs:
        return costs.cost(choices.runs, **given)
    return _with_lm(lambda setup, _: costs.cost_of_own_run(setup, **given), prepare, choices)


def _prerequisite(prepare: _Prepare, choices: _Choices) -> Finding:
    names = {spec: re.sub(r"[^\w.+-]+", "-", Path(spec).name) for spec in choices.lms}
    if len(set(names.values())) < len(choices.lms):
        raise ConfigurationError(f"expected policies of different names, got {choices.lms}")
    setup = prepare()
    return curves.prerequisite(
        setup, {name: make_lm(spec, choices.options) for spec, name in names.items()}
    )


def _overoptimization(prepare: _Prepare, choices: _Choices) -> Finding:
    if choices.judge is None:
        raise ConfigurationError("expected --judge, a scorer that nothing optimises")
    if not choices.runs:
        return _with_lm(_follow_own_run, prepare, choices)
    if len(choices.runs) > 1:
        raise ConfigurationError(f"expected one comparison's --run, got {len(choices.runs)}")
    judge = make_ready(load_scorer(choices.judge))
    return follow_comparison(choices.runs[0], judge, module=BestOfNModule(scorer=judge))


def _follow_own_run(setup: Setup, _: _Choices) -> Finding:
    methods = setup.methods("bon", "tpo")
    setup.compare(methods)
    judge = cast(Scorer, setup.judge)  # checked before anything ran
    return follow_comparison(setup.folder(), judge, module=methods[0].module)


_EXPERIMENTS: dict[str, Callable[[_Prepare, _Choices], Finding]] = {
    "curve": partial(_with_lm, _curve),
    "stability": partial(_with_lm, _stability),
    "width": partial(_with_lm, _width),
    "depth-vs-width": partial(_with_lm, _depth_vs_width),
    "cost": _cost,
    "prerequisite": _prerequisite,
    "ablations": partial(_with_lm, _ablations),
    "overoptimization": _overoptimization,
}
