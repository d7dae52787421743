"""`Draw`: n completions of one step, as one request or as n, and everything known about them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

import dspy
from pydantic import TypeAdapter

from tpo_modules.adapter import is_plain_text
from tpo_modules.characters import whole_text
from tpo_modules.errors import ConfigurationError, explain
from tpo_modules.gate import request_slot
from tpo_modules.lm import CallLog, Overrides, Sampling, supports_native_n, watch_lm
from tpo_modules.step import Step, call_async, find_predictors, signature_of
from tpo_modules.trace import Call, Completion, Failure, add_usage

T = TypeVar("T")

# For several sequences `dspy.Predict` keeps a temperature above this, and sets any other to 0.7.
_DSPY_KEEPS = 0.15

TraceEntry = tuple[Any, dict[str, Any], dspy.Prediction]
"""An entry of ``dspy.settings.trace``: predictor, its inputs, its prediction."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a draw brought.

    Attributes:
        call: The record, as the trace keeps it.
        lines: For each completion, what DSPy's own trace would hold of it, for optimizers.
    """

    call: Call
    lines: list[list[TraceEntry]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Ask a step for n completions.

    One request draws all n where the step is a single predictor of one plain text and its endpoint takes ``n``;
    an answer of fewer sequences is made up by further requests. Else n concurrent requests are sent, each with
    its own rollout id and, where a seed is set, its own seed; one that fails costs only its own completion.
    So it is with several or typed outputs, where one sequence that does not parse would cost all of a request.

    Attributes:
        step: The step to ask.
        number: The number of the step in the loop, 0 for the first round.
        values: Everything that is offered; the step sees what it declares.
        n: How many completions.
        sampling: Temperature, top-p and length limit.
        seed: Base of the seeds sent, or None to send none.
        native_n: True to send ``n`` whatever the outputs and the LM, False to never, None to tell by them. It is
            never sent at a temperature of 0.15 or less, or of none: DSPy would draw the n at 0.7.
        extra: More request parameters, such as ``logprobs``.
    """

    step: Step
    number: int
    values: Mapping[str, Any]
    n: int
    sampling: Sampling
    seed: int | None = None
    native_n: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def run(self) -> Drawn:
        """Send the requests, in threads where there are several, and wait for all of them."""
        start = time.perf_counter()
        attempts = self._plan()
        run_threads([attempt.run for attempt in attempts])
        repeats = self._repeats(attempts)
        run_threads([attempt.run for attempt in repeats])
        return self._assemble([*attempts, *repeats], time.perf_counter() - start)

    async def arun(self) -> Drawn:
        """Do what `run` does in the running event loop."""
        start = time.perf_counter()
        attempts = self._plan()
        await _at_once(attempts)
        repeats = self._repeats(attempts)
        await _at_once(repeats)
        return self._assemble([*attempts, *repeats], time.perf_counter() - start)

    def _plan(self) -> list[_Attempt]:
        if self.n > 1 and self._fits_one_request():
            return [self._attempt(0, self.n)]
        return [self._attempt(i, 1) for i in range(self.n)]

    def _fits_one_request(self) -> bool:
        program = self.step.predict
        if not isinstance(program, dspy.Predict) or self.native_n is False:
            return False
        lm: Any = program.lm or dspy.settings.lm
        if self.native_n is None and not (
            supports_native_n(lm) and is_plain_text(signature_of(program))
        ):
            return False
        own: dict[str, Any] = {
            **getattr(lm, "kwargs", {}),
            **self._attempt(0, self.n).overrides().for_lm(lm),
        }
        return (program.config.get("temperature") or own.get("temperature") or 0) > _DSPY_KEEPS

    def _repeats(self, attempts: Sequence[_Attempt]) -> list[_Attempt]:
        """Plan requests for what an endpoint that refuses or ignores ``n`` left out."""
        (first, *others) = attempts
        if others or first.n == 1:
            return []
        if first.error is not None and not _refuses_n(first.error):
            return []
        return [self._attempt(i, 1) for i in range(len(first.completions), self.n)]

    def _attempt(self, index: int, n: int) -> _Attempt:
        return _Attempt(draw=self, index=index, n=n)

    def _assemble(self, attempts: Sequence[_Attempt], seconds: float) -> Drawn:
        logs = [attempt.log for attempt in attempts]
        completions: list[Completion] = []
        lines: list[list[TraceEntry]] = []
        failures: list[Failure] = []
        for attempt in attempts:
            if attempt.error is not None:
                if attempt.n > 1 and len(attempts) > 1:
                    continue  # n was refused; the requests that replaced it speak for themselves
                failures += attempt.failures(len(completions))
                completions += [Completion(text="")] * attempt.n
                lines += [[]] * attempt.n
            else:
                completions += attempt.completions
                lines += attempt.lines
        call = Call(
            step=self.number,
            name=self.step.name,
            inputs=jsonable(self.step.declared(self.values)),
            messages=next((log.messages for log in logs if log.messages), None),
            completions=completions[: self.n],
            failures=failures,
            models=sorted({model for log in logs for model in log.models}),
            requests=sum(log.requests for log in logs),
            cached=sum(log.cached for log in logs),
            usage=add_usage(*(log.usage for log in logs)),
            seconds=round(seconds, 4),
        )
        return Drawn(call=call, lines=lines[: self.n])


@dataclass(slots=True)
class _Attempt:
    """One call of the step's program, for n completions if it is a predictor, else for one."""

    draw: Draw
    index: int
    n: int
    log: CallLog = field(default_factory=CallLog)
    error: Exception | None = None
    completions: list[Completion] = field(default_factory=list[Completion])
    lines: list[list[TraceEntry]] = field(default_factory=list[list[TraceEntry]])

    def run(self) -> None:
        entries: list[TraceEntry] = []
        program, values = self._prepare()
        try:
            with self._context(entries):
                prediction = program(**values)
            self._finish(program, prediction, entries)
        except Exception as error:  # noqa: BLE001  a program may raise anything; it costs its own sample only
            self.error = error

    async def arun(self) -> None:
        entries: list[TraceEntry] = []
        program, values = self._prepare()
        try:
            async with request_slot(self.draw.number, self.draw.step.name):
                with self._context(entries):
                    prediction = await call_async(program, values)
            self._finish(program, prediction, entries)
        except Exception as error:  # noqa: BLE001  a program may raise anything; it costs its own sample only
            self.error = error

    def failures(self, index: int) -> list[Failure]:
        kind, message = type(self.error).__name__, explain(self.error)
        return [
            Failure(
                step=self.draw.number,
                where=self.draw.step.name,
                index=index + i if self.draw.n > 1 else None,
                type=kind,
                message=message,
            )
            for i in range(self.n)
        ]

    def _prepare(self) -> tuple[dspy.Module, dict[str, Any]]:
        program = self.draw.step.predict
        values = self.draw.step.declared(self.draw.values)
        if isinstance(program, dspy.Predict):
            lm = program.lm or dspy.settings.lm
            return program, {
                **values,
                "lm": watch_lm(lm, self.overrides(), self.log),
            } if lm else values
        twin = _twin(program)
        for predictor in find_predictors(twin):
            lm = predictor.lm or dspy.settings.lm
            predictor.lm = watch_lm(lm, self.overrides(), self.log) if lm else None
        return twin, values

    def _context(self, entries: list[TraceEntry]) -> Any:
        lm = dspy.settings.lm
        if lm and not isinstance(self.draw.step.predict, dspy.Predict):
            lm = watch_lm(
                lm, self.overrides(), self.log
            )  # for predictors that a program makes as it runs
        return dspy.context(
            lm=lm,
            adapter=self.draw.step.adapter(),
            trace=entries,
            send_stream=None,
            disable_history=False,
        )

    def overrides(self) -> Overrides:
        key = (self.draw.number, self.draw.step.name, self.index)
        draw = self.draw
        return Overrides(
            sampling=draw.sampling, n=self.n, seed=draw.seed, key=key, extra=draw.extra
        )

    def _finish(
        self, program: dspy.Module, prediction: dspy.Prediction, entries: list[TraceEntry]
    ) -> None:
        output = self.draw.step.output
        given: Any = prediction
        if not isinstance(given, dspy.Example | Mapping):
            raise TypeError(f"expected the program to return a dspy.Prediction, got {given!r:.80}")
        several = prediction.completions if isinstance(program, dspy.Predict) else None
        if several is not None and not dict(several.items()):
            raise ValueError("the endpoint answered without any completion (no choices)")
        count = len(several) if several is not None else 1
        for i in range(count):
            own = several[i] if several is not None and count > 1 else prediction
            if output not in own:
                raise KeyError(f"the program returned no output field {output!r}")
            text = own[output]
            self.completions.append(
                self.log.complete(
                    text=text if isinstance(text, str) else str(text or ""),
                    fields=jsonable(
                        {k: v for k, v in own.items() if k not in (output, *_NO_FIELDS)}
                    ),
                    index=i,
                    of=count,
                )
            )
            self.lines.append(self._own_lines(program, entries, own))

    def _own_lines(
        self, program: dspy.Module, entries: list[TraceEntry], prediction: dspy.Prediction
    ) -> list[TraceEntry]:
        """Map the lines of a twin's predictors back to the originals, which optimizers know."""
        if isinstance(program, dspy.Predict):
            inputs = self.draw.step.declared(self.draw.values)
            return [(program, inputs, dspy.Prediction(**dict(prediction.items())))]
        originals = find_predictors(self.draw.step.predict)
        twins = {id(twin): i for i, twin in enumerate(find_predictors(program))}
        return [(originals[twins[id(p)]], i, o) for p, i, o in entries if id(p) in twins]


def _twin(program: dspy.Module) -> dspy.Module:
    """Copy a program whose predictors are to be changed for one sample.

    Raises:
        ConfigurationError: A predictor is the program's own: DSPy copies a list, dict or object that cannot be
            deep-copied without what is in it.
    """
    twin = program.deepcopy()
    copied = {id(predictor) for predictor in find_predictors(twin)}
    if all(id(predictor) not in copied for predictor in find_predictors(program)):
        return twin
    parts: Any = program.named_sub_modules()
    shared = next((name for name, part in parts if id(part) in copied), "a predictor")
    raise ConfigurationError(
        f"expected a policy that can be copied for each sample, but {shared!r} of {type(program).__name__} is in a "
        "list or dict that cannot be deep-copied, because of a lock, a client or the like: keep that outside of "
        "the module, or give its class a __deepcopy__"
    )


async def _at_once(attempts: Sequence[_Attempt]) -> None:
    if len(attempts) == 1:
        await attempts[0].arun()  # without a task of its own it is recorded before others go on
    else:
        await asyncio.gather(*(attempt.arun() for attempt in attempts))


# Not the policy's own: logprobs come from DSPy, and the result of a run has a reward and a trace of its own, also
# where the policy is such a module itself.
_NO_FIELDS = ("logprobs", "reward", "trace")

_JSON = TypeAdapter(dict[str, Any])  # building it costs more than a hundred uses


def jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn values into what JSON can hold; what cannot be turned is kept as its ``repr``."""
    return whole_text(_JSON.dump_python(dict(values), mode="json", fallback=repr))


def run_threads(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run jobs at the same time, each in a thread with this one's context, and return their results in order."""
    if len(jobs) == 1:
        return [jobs[0]()]
    with ThreadPoolExecutor(max_workers=len(jobs) or 1, thread_name_prefix="tpo-draw") as pool:
        # Each thread needs a context of its own: one context cannot be entered twice at a time.
        futures = [pool.submit(copy_context().run, job) for job in jobs]
        return [future.result() for future in futures]


def _refuses_n(error: Exception) -> bool:
    invalid = isinstance(error, dspy.LMInvalidRequestError | dspy.LMUnsupportedFeatureError)
    others = dspy.ContextWindowExceededError | dspy.LMUnsupportedModelError
    return invalid and not isinstance(error, others)
