"""`PolicyModule`: what TPO and its baselines share: a policy, a scorer, and a pool that they fill."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import dspy
from pydantic import TypeAdapter

from tpo_modules.adapter import own_instructions
from tpo_modules.drawing import Draw, jsonable
from tpo_modules.drive import Work, adrive, drive
from tpo_modules.errors import ConfigurationError, InputError, TPOError, TraceError
from tpo_modules.lm import Sampling
from tpo_modules.query import make_query
from tpo_modules.run import Run, StepFailedError
from tpo_modules.scorers.base import Query, Scorer
from tpo_modules.scorers.function import as_scorer
from tpo_modules.step import Program, Step, find_predictors, signature_of
from tpo_modules.trace import TPOTrace

_RESERVED = ("signature", "demos", "config", "lm", "new_signature", "_trace", "prediction")
_CRITIQUE = Sampling(top_p=0.99)
_ADDRESS = re.compile(
    r" at 0x[0-9a-fA-F]+"
)  # of a scorer without a repr of its own: another in every process


class PolicyModule(dspy.Module):
    """A policy whose responses are scored and pooled; subclasses say how the pool is filled (`_fill`).

    Calling it returns a ``dspy.Prediction`` with the policy's own output fields, ``reward`` (the highest of
    the pool) and ``trace`` (a `TPOTrace`). ``await module.acall(...)`` does the same in an event loop. Calls never
    change the module, so threads and tasks may share it.

    Args:
        policy: What answers the query: a signature string, a signature class, or any ``dspy.Module``.
        scorer: An object with ``score(query, responses) -> list[float]``, a function ``fn(query, response) ->
            float``, or DSPy's ``reward_fn(args, pred) -> float``.
        width: Samples per round (the paper's N).
        sampling: How responses are sampled.
        critique_sampling: How critiques are sampled.
        seed: Base of the seeds sent with each request; None sends none. Either way the same call gives the
            same run from DSPy's cache.
        native_n: Whether one request asks for all samples: True, False, or None to tell by the LM and the
            outputs; see `tpo_modules.drawing.Draw`. Never at a temperature of 0.15 or less.
        response_field: The policy's output to optimise, where it has several ``str`` outputs.

    Raises:
        ConfigurationError: An argument cannot work; the message says which and why.
    """

    method = "policy"

    def __init__(
        self,
        policy: Program = "query -> response",
        *,
        scorer: Any,
        width: int = 5,
        sampling: Sampling | None = None,
        critique_sampling: Sampling | None = None,
        seed: int | None = None,
        native_n: bool | None = None,
        response_field: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise _unknown_options(unknown, type(self))
        self.policy = Step(policy, name="policy", response_field=response_field)
        self.width = whole_number(width, "width", least=1)
        self.sampling = sampling or Sampling()
        self.critique_sampling = critique_sampling or _CRITIQUE
        self.seed = seed
        self.native_n = native_n
        self._scorer = _Shared(as_scorer(scorer))
        self._check_policy()

    @property
    def scorer(self) -> Scorer:
        """The scorer; copies of the module share it."""
        return self._scorer.value

    def use_scorer(self, scorer: Any) -> None:
        """Exchange the scorer, in this module alone and not in its copies."""
        self._scorer = _Shared(as_scorer(scorer))

    @property
    def signature(self) -> type[dspy.Signature] | None:
        """The policy's signature, which is this module's too: it may be the policy of another one."""
        return self.policy.signature

    @property
    def label(self) -> str:
        """Depth and width as the paper writes them, such as ``"D2-N5"``."""
        return f"D0-N{self.width}"

    def forward(self, *query: str, **inputs: Any) -> dspy.Prediction:
        """Answer a query.

        Args:
            *query: The query, for a policy with a single input; or give it by name.
            **inputs: The policy's inputs by name.

        Raises:
            InputError: An input is missing, unknown, empty or of the wrong type.
            NoCandidateError: The first round gave no response that could be scored.
            ScorerError: The scorer failed on the first round.
        """
        return drive(self._solve(self._query(query, inputs), None))

    async def aforward(self, *query: str, **inputs: Any) -> dspy.Prediction:
        """Do what ``forward`` does, in the running event loop."""
        return await adrive(self._solve(self._query(query, inputs), None))

    def resume(
        self, trace: TPOTrace, *, inputs: Mapping[str, Any] | None = None
    ) -> dspy.Prediction:
        """Continue a run from its trace, cut after any record, without repeating what is recorded.

        The continued run equals the uncut one. A larger depth than the recorded one extends the run. A run that
        ended as failed is tried again from the call that it failed at.

        Args:
            trace: What is recorded.
            inputs: The policy's inputs, where the trace does not hold them as they were.

        Raises:
            TraceError: The trace was recorded under another configuration; the message names the differences.
        """
        return drive(self._solve(self._recorded_query(trace, inputs), trace))

    async def aresume(
        self, trace: TPOTrace, *, inputs: Mapping[str, Any] | None = None
    ) -> dspy.Prediction:
        """Do what `resume` does, in the running event loop."""
        return await adrive(self._solve(self._recorded_query(trace, inputs), trace))

    def render(self, step: str = "policy", /, **values: Any) -> list[dict[str, Any]]:
        """Return the exact messages that a step would send for these values.

        Args:
            step: Name of the step: ``"policy"``, and what else the module has.
            **values: Inputs by name; one that is not given shows as ``{name}``.

        Raises:
            ConfigurationError: There is no such step, or it hides what it sends.
        """
        steps = self.steps()
        if step not in steps:
            raise ConfigurationError(f"expected a step of {list(steps)}, got {step!r}")
        return steps[step].render(**values)

    def steps(self) -> dict[str, Step]:
        """Return the steps that this module has, by name."""
        return {"policy": self.policy}

    def draw(self, step: Step, number: int, values: Mapping[str, Any], n: int) -> Draw:
        """Build the effect that asks a step for n completions under this module's settings."""
        responses = step.name in ("policy", "update")
        return Draw(
            step=step,
            number=number,
            values=values,
            n=n,
            sampling=self.sampling if responses else self.critique_sampling,
            seed=self.seed,
            native_n=self.native_n,
        )

    def options(self) -> dict[str, Any]:
        """Return the settings that ``save`` keeps beside the prompts, JSON-serialisable."""
        return {
            "width": self.width,
            "sampling": _sampling_state(self.sampling),
            "critique_sampling": _sampling_state(self.critique_sampling),
            "seed": self.seed,
            "native_n": self.native_n,
            "response_field": self.policy.output,
        }

    def config(self) -> dict[str, Any]:
        """Return everything that determines a run: options, prompts in full, LMs, scorer."""
        return {
            "method": self.method,
            **self.options(),
            "prompts": {name: _describe(step) for name, step in self.steps().items()},
            "scorer": _ADDRESS.sub("", repr(self.scorer)),
        }

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return prompts, demos, LMs and options; the scorer is not part of it."""
        steps = {name: step.dump_state(json_mode) for name, step in self.steps().items()}
        return {"method": self.method, "options": self.options(), "steps": steps}

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Load what `dump_state` returned, into a module made with any prompts and options.

        Raises:
            ConfigurationError: The state is of another method, or of no module of this project.
        """
        if state.get("method") != self.method:
            raise ConfigurationError(
                f"expected the saved state of a {self.method!r} module, got {state.get('method')!r}"
            )
        self._load_options(state["options"])
        self._load_steps(state["steps"])
        self.policy.output = state["options"]["response_field"]
        for name, step in self.steps().items():
            step.load_state(state["steps"][name], allow_unsafe_lm_state=allow_unsafe_lm_state)

    def _fill(self, run: Run) -> Work[None]:
        """Fill the run's pool; the first round at least."""
        raise NotImplementedError

    def _solve(self, query: Query, earlier: TPOTrace | None) -> Work[dspy.Prediction]:
        run = Run(self, query, earlier)
        try:
            yield from self._fill(run)
        except (StepFailedError, TPOError) as failure:
            return run.finish(failure)
        return run.finish()

    def _query(self, query: tuple[Any, ...], inputs: dict[str, Any]) -> Query:
        names = self.policy.inputs
        if len(query) > 1 or (query and len(names) != 1):
            raise InputError(
                f"expected the policy's inputs {list(names)} by name, got {len(query)} without a name"
            )
        self._check_lms()
        return make_query(self.policy, {**dict(zip(names, query, strict=False)), **inputs})

    def _recorded_query(self, trace: TPOTrace, inputs: Mapping[str, Any] | None) -> Query:
        ours = jsonable(self.config())
        differing = sorted(
            key
            for key in {*ours, *trace.config} - {"depth", "rounds"}
            if ours.get(key) != trace.config.get(key)
        )
        if differing:
            raise TraceError(
                "expected a trace recorded under this module's configuration; these differ: "
                + "; ".join(
                    f"{k}: {trace.config.get(k)!r:.200} there, {ours.get(k)!r:.200} here"
                    for k in differing
                )
            )
        self._check_lms()
        given = _restore(self.policy, trace.inputs) if inputs is None else inputs
        return make_query(self.policy, given)

    def _check_policy(self) -> None:
        outputs = list(self.policy.signature.output_fields) if self.policy.signature else []
        clash = [name for name in self.policy.inputs if name in _RESERVED]
        clash += [name for name in outputs if name in ("reward", "trace")]
        if clash:
            raise ConfigurationError(
                f"the policy's field names {clash} are reserved by DSPy or by the result; rename them"
            )

    def _check_lms(self) -> None:
        for name, step in self.steps().items():
            if isinstance(step.predict, dspy.Predict) and not (step.predict.lm or dspy.settings.lm):
                raise ConfigurationError(
                    f"no LM for the {name} step: dspy.configure(lm=dspy.LM(...)), set_lm(...) on the module, or "
                    "tpo_modules.embedded_lm() for a small one on this machine"
                )

    def _load_options(self, options: dict[str, Any]) -> None:
        self.width = options["width"]
        self.sampling = Sampling(**options["sampling"])
        self.critique_sampling = Sampling(**options["critique_sampling"])
        self.seed = options["seed"]
        self.native_n = options["native_n"]

    def _load_steps(self, steps: dict[str, Any]) -> None:
        """Make the module have the steps that the state has; for subclasses with steps to leave out."""


class _Shared:
    """Holds an object that copies of a module share: a scorer is never copied."""

    def __init__(self, value: Scorer) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def whole_number(value: Any, name: str, *, least: int) -> int:
    """Return a whole number of at least ``least``, or raise a `ConfigurationError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"expected {name} to be a whole number of at least {least}, got {value!r}"
        )
    return value


def _unknown_options(unknown: Mapping[str, Any], kind: type[PolicyModule]) -> ConfigurationError:
    """Make the error of options that a module does not have; it says what they could have been."""
    names = [
        name
        for cls in kind.__mro__
        if issubclass(cls, PolicyModule)
        for name in inspect.signature(cls.__init__).parameters
        if name not in ("self", "options", "unknown")
    ]
    hints: list[str] = []
    for name in unknown:
        if name in ("temperature", "top_p", "max_tokens"):
            hints.append(f"{name} goes into sampling=Sampling({name}=...), or critique_sampling=")
        elif near := difflib.get_close_matches(name, names, n=1):
            hints.append(f"{name} may be {near[0]}")
    return ConfigurationError(
        f"expected the options {', '.join(dict.fromkeys(names))} of {kind.__name__}, got "
        f"{', '.join(unknown)}" + "".join(f"; {hint}" for hint in hints)
    )


def _sampling_state(sampling: Sampling) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }


def _describe(step: Step) -> dict[str, Any]:
    """Describe a step in full: program, prompts, demos and LM, without secrets."""
    return {
        "program": type(step.predict).__qualname__,
        "predictors": [_describe_predictor(p) for p in find_predictors(step.predict)],
    }


def _describe_predictor(predictor: dspy.Predict) -> dict[str, Any]:
    signature: Any = signature_of(predictor)
    labels = {name: field.json_schema_extra for name, field in signature.fields.items()}
    return jsonable(
        {
            "inputs": list(signature.input_fields),
            "outputs": list(signature.output_fields),
            "instructions": own_instructions(signature),
            "labels": {name: dict(extra) for name, extra in labels.items()},
            "demos": [dict(demo) for demo in predictor.demos],
            "lm": getattr(predictor.lm or dspy.settings.lm, "model", None),
        }
    )


def _restore(policy: Step, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Turn recorded inputs back into the types that the policy's signature declares."""
    fields: dict[str, Any] = policy.signature.input_fields if policy.signature else {}
    return {
        name: TypeAdapter(fields[name].annotation).validate_python(value)
        if name in fields
        else value
        for name, value in inputs.items()
    }
