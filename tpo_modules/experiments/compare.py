"""`compare`: methods side by side on one query set, from the same first samples, at equal cost.

An output folder holds

==================  ========================================================================================
``compare.json``    what was compared, and how
``first/``          the run folder of the shared first round
``methods/NAME/``   one run folder per method; all of best-of-N is the one in ``methods/bon``
``judge.jsonl``     rewards of the results by the scorer that nobody optimised
``outcomes.jsonl``  one line per query and method
``summary.json``    the figures of the table, with intervals
``table.md``        the table
``rewards.svg``     the figure, and ``rewards.png``
==================  ========================================================================================

Every part resumes: the same call again repeats nothing that is recorded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tpo_modules._version import __version__
from tpo_modules.baselines import BestOfNModule
from tpo_modules.errors import ConfigurationError
from tpo_modules.experiments.comparison import Comparison
from tpo_modules.experiments.judging import Judged, judge_responses, name_of
from tpo_modules.experiments.matching import Match, Matcher
from tpo_modules.experiments.methods import Method
from tpo_modules.experiments.outcomes import Outcome, first_sample_only, outcome_of
from tpo_modules.policy import PolicyModule
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.runner import RunSettings, RunSummary, run_queries
from tpo_modules.runs.saved_run import SavedRun
from tpo_modules.runs.todo import as_rows
from tpo_modules.scorers.base import Scorer
from tpo_modules.tpo import TPOModule
from tpo_modules.trace import TPOTrace

Progress = Callable[[str, dict[str, Any]], None]

_SAMPLES = "bon"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSettings:
    """How methods are compared.

    Attributes:
        match: What best-of-N gets as much of as the method it is matched to, on each query: samples drawn, or
            tokens generated (critiques included).
        match_to: Name of that method; ``tpo`` if there, else the first iterative one.
        baseline: Name of the method that the others are compared with; ``bon`` if there, else the first.
        run: How the runs are carried out.
    """

    match: Match = "samples"
    match_to: str | None = None
    baseline: str | None = None
    run: RunSettings = field(default_factory=RunSettings)


def compare(
    methods: Sequence[Method],
    queries: Sequence[QueryRow | str],
    *,
    out: str | Path,
    judge: Scorer | None = None,
    settings: CompareSettings | None = None,
    on_progress: Progress | None = None,
) -> Comparison:
    """Run methods on the same queries from the same first samples, and compare what they return.

    Every method starts from one first round of N samples per query, drawn once, so that differences between methods
    are paired. A query that one method or the judge fails on is left out of all methods alike, and counted.

    Args:
        methods: What is compared; their modules share policy, scorer and sampling.
        queries: Rows with unique ids, or plain texts.
        out: A folder: see the module's documentation. The same call again continues it.
        judge: A scorer that no method optimised; it scores every method's response.
        settings: What is matched, and how the runs are carried out.
        on_progress: Called with a run's name and its figures.

    Raises:
        ConfigurationError: The methods do not share their first round, or a name in the settings is none of them.
        RunFolderError: The folder holds another comparison's runs.
    """
    settings = settings or CompareSettings()
    job = _Comparing(methods, as_rows(queries), Path(out), settings, on_progress)
    outcomes, excluded = job.outcomes()
    if judge is not None:
        judged = job.judge(outcomes, judge)
        excluded |= judged.failed
        outcomes = {
            name: {
                identity: replace(outcome, judge=judged.reward(identity, outcome.response))
                for identity, outcome in each.items()
                if identity not in judged.failed
            }
            for name, each in outcomes.items()
        }
    comparison = Comparison.of(
        outcomes, excluded, baseline=job.baseline, match=settings.match, match_to=job.match_to
    )
    job.write(comparison, judge)
    return comparison


class _Comparing:
    def __init__(
        self,
        methods: Sequence[Method],
        rows: list[QueryRow],
        out: Path,
        settings: CompareSettings,
        on_progress: Progress | None,
    ) -> None:
        self.methods = {method.name: method for method in methods}
        self.rows = rows
        self.out = out
        self.settings = settings
        self.first_module = _first_round_of(methods)
        self._on_progress = on_progress
        self.match_to = self._match_to()
        names = list(self.methods)
        self.baseline = settings.baseline or (_SAMPLES if _SAMPLES in names else names[0])
        if self.baseline not in self.methods:
            raise ConfigurationError(
                f"expected the baseline to be one of {names}, got {self.baseline!r}"
            )

    def outcomes(self) -> tuple[dict[str, dict[str, Outcome]], dict[str, str]]:
        """Run everything; return outcomes by method and query, and the queries that are left out with why."""
        first = self._run("first", self.first_module, self.rows)
        excluded = self._failures("first")
        rows = [row for row in self.rows if row.id in first]
        traces = {
            name: self._run_method(method, rows, first)
            for name, method in self.methods.items()
            if not method.resamples
        }
        matcher = Matcher(self.settings.match, traces.get(self.match_to or ""))
        samples, stuck = self._samples(rows, first, matcher)
        excluded |= stuck
        found: dict[str, dict[str, Outcome]] = {}
        for name, method in self.methods.items():
            if method.resamples:
                each = {i: matcher.outcome(method, i, trace) for i, trace in samples.items()}
            else:
                last = method.take == "last"
                each = {i: outcome_of(i, trace, last=last) for i, trace in traces[name].items()}
            found[name] = {i: outcome for i, outcome in each.items() if outcome is not None}
            for row in rows:
                if row.id not in found[name]:
                    excluded.setdefault(row.id, f"no result of {name}")
        kept = [row.id for row in rows if row.id not in excluded]
        return {name: {i: each[i] for i in kept} for name, each in found.items()}, excluded

    def judge(self, outcomes: Mapping[str, Mapping[str, Outcome]], judge: Scorer) -> Judged:
        """Score every distinct response of each query by the judge."""
        wanted: dict[str, list[str]] = {}
        for each in outcomes.values():
            for identity, outcome in each.items():
                wanted.setdefault(identity, []).append(outcome.response)
        rows = {row.id: row for row in self.rows}
        return judge_responses(
            judge,
            [(rows[i], list(dict.fromkeys(responses))) for i, responses in wanted.items()],
            policy=self.first_module.policy,
            out=self.out / "judge.jsonl",
        )

    def write(self, comparison: Comparison, judge: Scorer | None) -> None:
        """Write what was compared and what came out."""
        settings = {
            "version": 1,
            "dspy-tpo": __version__,
            "queries": len(self.rows),
            "methods": {
                name: {
                    "label": method.module.label,
                    "take": method.take,
                    "samples": method.samples,
                    "matched": method.matched,
                    "run": f"methods/{_SAMPLES if method.resamples else name}",
                }
                for name, method in self.methods.items()
            },
            "match": self.settings.match,
            "match_to": self.match_to,
            "baseline": self.baseline,
            "reward": self.first_module.config()["scorer"],
            "judge": judge and name_of(judge),
        }
        (self.out / "compare.json").write_text(json.dumps(settings, indent=2) + "\n")
        lines = [
            json.dumps({"method": name, **asdict(outcome)}, ensure_ascii=False)
            for name, each in comparison.outcomes.items()
            for outcome in each
        ]
        (self.out / "outcomes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self.out / "summary.json").write_text(json.dumps(comparison.summary(), indent=2) + "\n")
        (self.out / "table.md").write_text(comparison.markdown() + "\n", encoding="utf-8")

    def _run_method(
        self, method: Method, rows: list[QueryRow], first: dict[str, TPOTrace]
    ) -> dict[str, TPOTrace]:
        start = first
        if method.module.width == 1:
            cut = {identity: first_sample_only(trace) for identity, trace in first.items()}
            start = {identity: trace for identity, trace in cut.items() if trace is not None}
        return self._run(f"methods/{method.name}", method.module, rows, start)

    def _samples(
        self, rows: list[QueryRow], first: dict[str, TPOTrace], matcher: Matcher
    ) -> tuple[dict[str, TPOTrace], dict[str, str]]:
        """Draw as many rounds of plain samples of each query as the methods that resample need.

        Returns:
            The runs by query, and the queries without one because a further round failed, with the reason.
        """
        resampling = [method for method in self.methods.values() if method.resamples]
        folder = f"methods/{_SAMPLES}"
        samples, stuck = dict(first), dict[str, str]()
        if (self.out / folder / "config.json").exists():
            samples |= dict(SavedRun(self.out / folder).traces())
        while True:
            short: dict[int, list[QueryRow]] = {}
            for row in rows:
                trace = samples.get(row.id)
                if trace and (rounds := matcher.rounds(resampling, row.id, trace)):
                    short.setdefault(rounds, []).append(row)
            if not short:
                return samples, stuck
            rounds, group = min(short.items())
            module = _rounds_of(self.first_module, rounds)
            drawn = self._run(folder, module, group, first, extend=True)
            failures = self._failures(folder)
            for row in group:
                before, now = samples.pop(row.id), drawn.get(row.id)
                if now and (len(now.calls) > len(before.calls) or now.status == "failed"):
                    samples[row.id] = now
                else:
                    reason = failures.get(row.id, f"see {folder}/failures.jsonl")
                    stuck[row.id] = f"no further round of best-of-N: {reason}"

    def _run(
        self,
        name: str,
        module: PolicyModule,
        rows: list[QueryRow],
        first: Mapping[str, TPOTrace] | None = None,
        *,
        extend: bool = False,
    ) -> dict[str, TPOTrace]:
        """Carry out one run, or what is left of it; return its traces by query."""
        report = self._on_progress
        summary: RunSummary = run_queries(
            module,
            rows,
            out=self.out / name,
            settings=replace(
                self.settings.run, extend_depth=extend or self.settings.run.extend_depth
            ),
            on_progress=report and (lambda figures: report(name.rpartition("/")[2], figures)),
            first=first,
        )
        if summary.left:
            raise ConfigurationError(
                f"the run {name} ended early ({summary.stop_reason}); the same command continues it"
            )
        wanted = {row.id for row in rows}
        traces = SavedRun(self.out / name).traces()
        return {identity: trace for identity, trace in traces if identity in wanted}

    def _failures(self, name: str) -> dict[str, str]:
        failures = SavedRun(self.out / name).failures
        wanted = {row.id for row in self.rows}
        return {i: f"{f.error}: {f.message}" for i, f in failures.items() if i in wanted}

    def _match_to(self) -> str | None:
        iterative = [
            name
            for name, method in self.methods.items()
            if isinstance(method.module, TPOModule) and method.take == "best"
        ]
        named = self.settings.match_to
        if named is not None and named not in iterative:
            raise ConfigurationError(
                f"expected the method to match to be one of {iterative}, got {named!r}"
            )
        return named or ("tpo" if "tpo" in iterative else next(iter(iterative), None))


def _first_round_of(methods: Sequence[Method]) -> BestOfNModule:
    """Make the module of the first round that all methods share."""
    if not methods:
        raise ConfigurationError("expected at least one method to compare, got none")
    widest = max((method.module for method in methods), key=lambda module: module.width)
    for method in methods:
        module = method.module
        mine, theirs = _first_settings(module), _first_settings(widest)
        differing = [name for name in mine if mine[name] != theirs[name]]
        if module.width not in (1, widest.width):
            differing.append("width")
        if differing:
            raise ConfigurationError(
                "expected all methods to share the first round: policy, scorer, width, sampling and seed; "
                f"{method.name} differs in {', '.join(differing)}"
            )
    return _rounds_of(widest, 1)


def _first_settings(module: PolicyModule) -> dict[str, Any]:
    config = module.config()
    return {
        "policy": config["prompts"]["policy"],
        **{k: config[k] for k in ("scorer", "sampling", "seed", "native_n", "response_field")},
    }


def _rounds_of(module: PolicyModule, rounds: int) -> BestOfNModule:
    made = BestOfNModule(
        module.policy.predict,
        rounds=rounds,
        scorer=module.scorer,
        width=module.width,
        sampling=module.sampling,
        critique_sampling=module.critique_sampling,
        seed=module.seed,
        native_n=module.native_n,
        response_field=module.policy.output,
    )
    made.policy = module.policy  # the very same step, so that its record is the same
    return made
