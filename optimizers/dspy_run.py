"""``tpo compile`` with DSPy's own optimizers: planned within a budget, judged on recorded first rounds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from rich.console import Console

from optimizers.candidates import copy_module
from optimizers.compile_only import compile_only
from optimizers.first_rounds import FirstRounds, FromFirstRound
from optimizers.metrics import RewardGain, TraceMetric, UpdateGain
from tpo_modules.cli.live_line import LiveLine
from tpo_modules.drawing import jsonable
from tpo_modules.errors import BudgetError, ConfigurationError
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.runner import RunSettings, run_queries
from tpo_modules.runs.saved_run import SavedRun
from tpo_modules.tpo import TPOModule

_UNPLANNED = 10  # passes over the queries, where no budget is set


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an optimizer is given to work with.

    Attributes:
        metric: Its metric.
        queries: How many queries there are.
        evaluations: Runs that it may make, about; the calls of its own prompts come on top.
        lm: The LM that writes prompts.
        threads: Runs at a time.
        folder: Where logs go; no other job's.
    """

    metric: Any
    queries: int
    evaluations: int
    lm: Any
    threads: int
    folder: Path


def compile_with_dspy(
    name: str,
    module: TPOModule,
    step: str,
    rows: Sequence[QueryRow],
    *,
    proposer: Any,
    folder: Path,
    credit: str,
    depth: int,
    budget_tokens: int | None,
    budget_evaluations: int | None,
    max_in_flight: int,
    console: Console,
) -> TPOModule:
    """Compile one step by an optimizer of DSPy; the module is not changed.

    Raises:
        BudgetError: The budget does not pay for the least that the optimizer does; says what that costs.
        ConfigurationError: No first round could be recorded.
        MissingExtraError: The optimizer needs a package that is not installed.
    """
    make, least = _OPTIMIZERS[name]
    if name == "mipro":
        compile_only_needs_optuna()
    judged = copy_module(module)
    judged.depth = depth
    first = copy_module(module)
    first.depth = 0
    settings = RunSettings(max_in_flight=max_in_flight)
    run_queries(first, rows, out=folder / "first", settings=settings)
    asked = {row.id for row in rows}  # the folder may hold first rounds of other queries, too
    recorded = SavedRun(folder / "first").traces()
    rounds = FirstRounds(trace for identity, trace in recorded if identity in asked)
    if not rounds:
        raise ConfigurationError(
            f"not one first round could be recorded; see the failures in {folder / 'first'}"
        )
    spent = sum(sum(trace.usage.values()) for trace in rounds.values())
    evaluations = _UNPLANNED * len(rounds)
    if budget_evaluations is not None:
        evaluations = budget_evaluations
    each = 0
    if budget_tokens is not None:
        each = _tokens_of_one(judged, rounds)
        evaluations = min(evaluations, max(0, budget_tokens - spent - each) // max(each, 1))
    if evaluations < (needed := least(len(rounds))):
        cost = (
            f", about {spent + each + needed * each} tokens with the first rounds" if each else ""
        )
        raise BudgetError(
            f"expected a budget that pays for one round of {name}: {needed} evaluations on {len(rounds)} "
            f"queries{cost}; got one for {evaluations}"
        )
    metric = _Counting(UpdateGain() if credit == "update" else RewardGain(), evaluations, console)
    plan = Plan(
        metric=metric.measure,
        queries=len(rounds),
        evaluations=evaluations,
        lm=proposer,
        threads=max(1, max_in_flight // max(module.width, 1)),
        folder=folder / f"{name}-{_job(judged, step, credit, rounds)}",
    )
    optimizer, options = make(plan)
    compiled = compile_only(
        optimizer, judged, step, trainset=rounds.examples, first_rounds=rounds, **options
    )
    compiled.depth = module.depth
    return compiled


def compile_only_needs_optuna() -> None:
    """Refuse MIPROv2 without optuna before anything is paid for.

    Raises:
        MissingExtraError: It is not installed.
    """
    from importlib.util import find_spec

    from tpo_modules.errors import MissingExtraError

    if find_spec("optuna") is None:
        raise MissingExtraError("optuna", "optimizers", "MIPROv2")


class _Counting:
    """A metric that says now and then how far the optimizer is."""

    def __init__(self, metric: TraceMetric, planned: int, console: Console) -> None:
        self._metric = metric
        self._planned = planned
        self._line = LiveLine(console)
        self._scores: list[float] = []

    def measure(
        self, gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> Any:
        """Do what the metric does."""
        score = self._metric(gold, pred, trace, pred_name, pred_trace)
        self._scores.append(float(score.score))
        mean = sum(self._scores) / len(self._scores)
        done = f"evaluation {len(self._scores)} of about {self._planned}"
        self._line.show(f"{done}, mean {mean:+.2f}")
        return score


def _tokens_of_one(module: TPOModule, rounds: FirstRounds) -> int:
    """Measure what one evaluation costs, on the first query."""
    done = FromFirstRound(module, rounds)(next(iter(rounds)))
    calls = [call for call in done.trace.calls if call.step > 0]
    return sum(sum(call.usage.values()) for call in calls)


def _job(judged: TPOModule, step: str, credit: str, rounds: FirstRounds) -> str:
    """Name a job by all that its scores follow from; a larger budget goes on with the same one."""
    told = [jsonable(judged.config()), step, credit, list(rounds)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def _gepa(plan: Plan) -> tuple[Any, dict[str, Any]]:
    optimizer = dspy.GEPA(
        metric=plan.metric,
        reflection_lm=plan.lm,
        max_metric_calls=plan.evaluations,
        num_threads=plan.threads,
        log_dir=str(plan.folder),  # a state that GEPA finds there is taken up as it is
        track_stats=True,
    )
    return optimizer, {}


def _mipro(plan: Plan) -> tuple[Any, dict[str, Any]]:
    trials = max(1, plan.evaluations // plan.queries - 1)
    optimizer = dspy.MIPROv2(
        metric=plan.metric,
        prompt_model=plan.lm,
        auto=None,
        num_candidates=max(2, trials // 2 + 1),
        max_bootstrapped_demos=0,
        max_labeled_demos=0,
        num_threads=plan.threads,
    )
    return optimizer, {"num_trials": trials, "minibatch": False}


def _simba(plan: Plan) -> tuple[Any, dict[str, Any]]:
    size = min(8, plan.queries)
    steps = max(1, plan.evaluations // (8 * size))
    optimizer = dspy.SIMBA(
        metric=plan.metric,
        prompt_model=plan.lm,
        bsize=size,
        num_candidates=4,
        max_steps=steps,
        num_threads=plan.threads,
    )
    return optimizer, {}


def _copro(plan: Plan) -> tuple[Any, dict[str, Any]]:
    tried = plan.evaluations // plan.queries
    depth = 2 if tried >= 8 else 1
    optimizer = dspy.COPRO(
        metric=plan.metric, prompt_model=plan.lm, breadth=max(2, tried // depth), depth=depth
    )
    return optimizer, {"eval_kwargs": {"num_threads": plan.threads, "display_progress": False}}


def _bootstrap(plan: Plan) -> tuple[Any, dict[str, Any]]:
    return dspy.BootstrapFewShot(metric=plan.metric, max_bootstrapped_demos=3), {}


_Make = Callable[[Plan], tuple[Any, dict[str, Any]]]
_OPTIMIZERS: dict[str, tuple[_Make, Callable[[int], int]]] = {
    "gepa": (
        _gepa,
        lambda queries: queries + 6,
    ),  # the present prompt, and one proposal on 3 queries
    "mipro": (_mipro, lambda queries: 2 * queries),
    "simba": (_simba, lambda queries: 8 * min(8, queries)),
    "copro": (_copro, lambda queries: 2 * queries),
    "bootstrap": (_bootstrap, lambda queries: 1),
}
