"""`FunctionScorer`: any Python function as a scorer, DSPy metrics and reward functions included."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Literal

from tpo_modules.errors import ConfigurationError, RewardError
from tpo_modules.scorers.base import Reward, Scorer, as_query

Form = Literal["text", "prediction"]

_PREDICTION_NAMES = ("pred", "prediction", "predictions")
_INPUT_NAMES = ("args", "example", "gold", "kwargs")


class FunctionScorer:
    """Reward each response by a function, called once per response.

    Two forms are accepted:

    - ``"text"``: ``fn(query: str, response: str)``.
    - ``"prediction"``: ``fn(args, pred)``, the ``reward_fn`` of ``dspy.BestOfN``, and so any DSPy metric
      ``fn(example, pred, trace=None)``. ``args`` holds the policy's inputs, by key and by attribute.

    The function returns a number or a bool, a `Reward`, or a ``dspy.Prediction(score=..., feedback=...)``,
    whose feedback reaches the loss step. It may be ``async``. Where it fails for some of the responses, these
    are NaN with the error as a note: one response that a metric cannot read does not lose the others.

    Args:
        fn: The function.
        form: Which form it has; by default told by its parameters' names: the second form where the
            second parameter is called ``pred`` or ``prediction``, or the first ``args``, ``example``,
            ``gold``.

    Raises:
        ConfigurationError: The function does not take two positional arguments.
    """

    def __init__(self, fn: Callable[..., Any], *, form: Form | None = None) -> None:
        self.fn = fn
        self.form: Form = form or _tell_form(fn)
        self.is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
            getattr(fn, "__call__", None)  # noqa: B004  a callable object may be async too
        )

    def __repr__(self) -> str:
        """Name the function, as traces and saved configurations do."""
        name = getattr(self.fn, "__qualname__", type(self.fn).__qualname__)
        return f"FunctionScorer({getattr(self.fn, '__module__', '?')}:{name})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FunctionScorer:
        return self

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Reward each response: see `Scorer.score`.

        Raises:
            RewardError: The function returned something that is no number, for every response.
            Exception: What the function raised, where it did for every response.
        """
        if self.is_async:
            # A thread of its own, since this one may already be running an event loop (Jupyter); not one of
            # the scoring executor's, since this one may be one of them, and the last.
            job = partial(asyncio.run, self.ascore(query, responses))
            with ThreadPoolExecutor(max_workers=1) as thread:
                return thread.submit(copy_context().run, job).result()
        return _rewards([self._reward(query, response) for response in responses])

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Do what `score` does: an async function is awaited for all responses at once."""
        if not self.is_async:
            # In a copy of this context: the function may be a metric that calls DSPy.
            job = partial(self.score, query, responses)
            return await asyncio.get_running_loop().run_in_executor(
                scoring_executor(), copy_context().run, job
            )
        return _rewards(await asyncio.gather(*(self._areward(query, r) for r in responses)))

    def _reward(self, query: str, response: str) -> Reward | Exception:
        try:
            return as_reward(self.fn(*self._arguments(query, response)))
        except Exception as error:  # noqa: BLE001  a function may raise anything; it costs its own response only
            return error

    async def _areward(self, query: str, response: str) -> Reward | Exception:
        try:
            return as_reward(await self.fn(*self._arguments(query, response)))
        except Exception as error:  # noqa: BLE001  a function may raise anything; it costs its own response only
            return error

    def _arguments(self, query: str, response: str) -> tuple[Any, Any]:
        if self.form == "text":
            return query, response
        import dspy

        inputs = dict(as_query(query).inputs)
        prediction = getattr(response, "prediction", None)
        if prediction is None:
            prediction = dspy.Prediction(response=str(response))
        return dspy.Example(**inputs).with_inputs(*inputs), prediction


def _rewards(results: Sequence[Reward | Exception]) -> list[float]:
    """Make NaN of what failed for some responses; raise what failed for all."""
    errors = [result for result in results if isinstance(result, Exception)]
    if errors and len(errors) == len(results):
        raise errors[0]
    return [
        Reward(float("nan"), notes=[f"{type(result).__name__}: {result}"])
        if isinstance(result, Exception)
        else result
        for result in results
    ]


def as_scorer(scorer: Any) -> Scorer:
    """Return a scorer as it is, and a function as a `FunctionScorer`.

    Raises:
        ConfigurationError: It is neither.
    """
    if isinstance(scorer, Scorer) and not isinstance(scorer, type):
        return scorer
    if callable(scorer) and not isinstance(scorer, type):
        return FunctionScorer(scorer)
    raise ConfigurationError(
        f"expected a scorer (an object with score(query, responses) -> list[float]) or a function "
        f"fn(query, response) -> float, got {scorer!r}"
    )


def as_reward(value: Any) -> Reward:
    """Turn what a function returned into a `Reward`; feedback and notes that are no text become it.

    Raises:
        RewardError: It is no number and has none.
    """
    feedback, notes = None, ()
    if isinstance(value, Reward):
        feedback, notes = value.feedback, value.notes
    elif isinstance(value, Mapping) or _is_prediction(value):
        feedback = value.get("feedback")
        value = value.get("score")
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text is no number")
        said = None if feedback is None else str(feedback)
        return Reward(float(value), feedback=said, notes=[str(note) for note in notes])
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"expected a number as the reward of a response, got {value!r} ({type(value).__name__}); "
            "return a float, a Reward, or a dspy.Prediction(score=..., feedback=...)"
        ) from error


def _is_prediction(value: Any) -> bool:
    if (
        "dspy" not in sys.modules
    ):  # not imported for every number of a scorer that knows nothing of it
        return False
    import dspy

    return isinstance(value, dspy.Prediction)


@functools.cache
def scoring_executor() -> ThreadPoolExecutor:
    """Return the threads that blocking scorers run in, so that they never hold up LM calls."""
    return ThreadPoolExecutor(max_workers=8, thread_name_prefix="tpo-score")


def _tell_form(fn: Callable[..., Any]) -> Form:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return "text"  # a builtin that tells nothing of itself
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    starred = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    needed = [p for p in positional if p.default is p.empty]
    if (len(positional) < 2 and not starred) or len(needed) > 2:
        raise ConfigurationError(
            f"expected a reward function of two arguments, fn(query, response) or fn(args, pred), "
            f"got one that takes ({', '.join(str(p) for p in parameters)})"
        )
    names = [p.name for p in positional]
    if names[1:2] and (names[1] in _PREDICTION_NAMES or names[0] in _INPUT_NAMES):
        return "prediction"
    return "text"
