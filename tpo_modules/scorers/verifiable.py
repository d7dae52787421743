"""Scorers that check a response against something known, and say in words what they found.

Each gives a number between 0 and 1 with a sentence (`Reward.feedback`) that the loop offers to the
loss step. The reference (an answer, a pattern, a schema) comes from one of three places:

- the constructor, one for all queries;
- a mapping from the query's text, given to the constructor;
- the query's inputs (``Query.inputs["answer"]``), if the constructor got none. Inside the loop
  these are the policy's inputs, so the policy is shown them too, unless its prompt leaves them out:
  to keep an answer from the policy, give a mapping.

Feedback never spells out a reference answer unless ``reveal=True``: a loop that is told the answer
does not search for it.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from tpo_modules.errors import ConfigurationError, InputError, MissingExtraError
from tpo_modules.scorers.base import Reward, as_query
from tpo_modules.scorers.math_worker import MathWorker

_FENCE = re.compile(r"\A\s*```[\w-]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)


class VerifiableScorer(ABC):
    """What verifiable scorers share: where the reference comes from.

    Args:
        reference: One for all queries, or by the query's text; None to take it from the inputs.
        field: The name among the query's inputs.
    """

    def __init__(self, reference: Any, field: str, *, by_query: bool) -> None:
        self._reference = reference
        self._field = field
        self._by_query = by_query

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Check each response; see `Scorer.score`.

        Returns:
            One `Reward` per response, between 0 and 1, with feedback.

        Raises:
            InputError: There is no reference for this query, or it cannot be used.
        """
        reference = self._find(query)
        return [self._check(str(response), reference) for response in responses]

    @abstractmethod
    def _check(self, response: str, reference: Any) -> Reward:
        """Check one response against the query's reference."""

    def _find(self, query: str) -> Any:
        if self._reference is not None and not self._by_query:
            return self._reference
        if self._reference is not None:
            if str(query) in self._reference:
                return self._reference[str(query)]
            raise InputError(
                f"{type(self).__name__} was given references for {len(self._reference)} queries, "
                f"but none for {str(query)[:80]!r}."
            )
        inputs = as_query(query).inputs
        if self._field in inputs:
            return inputs[self._field]
        raise InputError(
            f"{type(self).__name__} found no input {self._field!r} with the query "
            f"{str(query)[:80]!r}; it has {sorted(inputs)}. Add it to the query's inputs, name "
            "another input (field=), or give the reference to the constructor."
        )


class ExactMatchScorer(VerifiableScorer):
    """1 where the response equals the reference answer, else 0.

    Args:
        answer: The reference, or references by the query's text; None takes it from the inputs.
        field: The input that holds the reference.
        extract: A regular expression that finds the answer within a response: its first group (or
            the whole match) of the last match counts. Without one the whole response counts.
        ignore_case: Compare without regard to case.
        reveal: Name the reference in the feedback.

    Runs of white space count as one space, and none counts at the ends.
    """

    def __init__(
        self,
        answer: str | Mapping[str, str] | None = None,
        *,
        field: str = "answer",
        extract: str | None = None,
        ignore_case: bool = True,
        reveal: bool = False,
    ) -> None:
        super().__init__(answer, field, by_query=isinstance(answer, Mapping))
        self._extract = None if extract is None else compiled(extract, 0)
        self._ignore_case = ignore_case
        self._reveal = reveal

    def _check(self, response: str, reference: Any) -> Reward:
        answer = response
        if self._extract is not None:
            matches = list(self._extract.finditer(response))
            if not matches:
                return Reward(0.0, "No answer was found in the form that was asked for.")
            answer = matches[-1][1 if self._extract.groups else 0] or ""
        if self._plain(answer) == self._plain(str(reference)):
            return Reward(1.0, f"The answer {answer.strip()[:200]!r} is right.")
        instead = f"; the right answer is {str(reference)!r}" if self._reveal else ""
        return Reward(0.0, f"The answer {answer.strip()[:200]!r} is wrong{instead}.")

    def _plain(self, text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if self._ignore_case else text


class RegexScorer(VerifiableScorer):
    """1 where a regular expression matches the response, else 0.

    Args:
        pattern: The expression, or expressions by the query's text; None takes it from the inputs.
            Only use expressions you trust: some take exponential time on some texts.
        field: The input that holds the expression.
        whole: Whether the whole response must match, rather than any part of it.
        flags: Flags of `re`.
        requirement: What the expression asks for, in words for the feedback.

    Raises:
        ConfigurationError: The expression cannot be compiled.
    """

    def __init__(
        self,
        pattern: str | Mapping[str, str] | None = None,
        *,
        field: str = "pattern",
        whole: bool = False,
        flags: int = 0,
        requirement: str | None = None,
    ) -> None:
        super().__init__(pattern, field, by_query=isinstance(pattern, Mapping))
        for one in pattern.values() if isinstance(pattern, Mapping) else [pattern or ""]:
            compiled(one, flags)
        self._whole = whole
        self._flags = flags
        self._requirement = requirement

    def _check(self, response: str, reference: Any) -> Reward:
        pattern = compiled(str(reference), self._flags)
        match = pattern.fullmatch(response) if self._whole else pattern.search(response)
        asked = self._requirement or f"to match the pattern {pattern.pattern!r}"
        if match is None:
            return Reward(0.0, f"The response was asked {asked}, and does not.")
        return Reward(1.0, f"The response was asked {asked}, and does.")


class MathScorer(VerifiableScorer):
    r"""1 where the response's final answer equals the reference as mathematics, else 0.

    ``math-verify`` reads both: LaTeX (``\boxed{...}`` first) or plain expressions; 1/2, 0.5 and
    ``\frac{2}{4}`` are equal. It runs in a process of its own, so that an expression which takes
    for ever (``9^{9^{9^9}}``) costs ``timeout`` seconds and not the run; needs the extra
    ``verify``.

    Args:
        answer: The reference, or references by the query's text; None takes it from the inputs.
        field: The input that holds the reference.
        timeout: Seconds for one response.
        reveal: Name the reference in the feedback.
    """

    def __init__(
        self,
        answer: str | float | Mapping[str, str] | None = None,
        *,
        field: str = "answer",
        timeout: float = 10.0,
        reveal: bool = False,
    ) -> None:
        if timeout <= 0:
            raise ConfigurationError(f"Expected timeout to be positive, got {timeout}.")
        super().__init__(answer, field, by_query=isinstance(answer, Mapping))
        self._worker = MathWorker(timeout)
        self._timeout = timeout
        self._reveal = reveal

    def close(self) -> None:
        """End the worker process; a later call starts it again."""
        self._worker.close()

    def _check(self, response: str, reference: Any) -> Reward:
        try:
            comparison = self._worker.compare(response, str(reference))
        except ImportError as error:
            raise MissingExtraError("math_verify", "verify", "MathScorer") from error
        if not comparison.readable:
            raise InputError(
                f"MathScorer cannot read the reference answer {str(reference)[:200]!r} as "
                "mathematics. Expected a number, an expression, or LaTeX; for words use "
                "ExactMatchScorer."
            )
        instead = f" The right answer is {reference}." if self._reveal else ""
        if not comparison.checked:
            return Reward(0.0, f"The answer could not be checked in {self._timeout:g} s.{instead}")
        if comparison.found is None:
            return Reward(
                0.0, f"No final answer was found. State it once, as \\boxed{{...}}.{instead}"
            )
        if comparison.equal:
            return Reward(1.0, f"The final answer {comparison.found} is right.")
        return Reward(0.0, f"The final answer {comparison.found} is wrong.{instead}")


class JSONSchemaScorer(VerifiableScorer):
    """How well a response keeps to a JSON schema: 1 / (1 + violations), and 0 if it is no JSON.

    The graded reward tells apart responses that all fail; ``graded=False`` gives 0 to each of them.
    A single code fence around the JSON is taken off. NaN and Infinity, which Python's own parser
    takes, are no JSON. Needs the extra ``verify``.

    Args:
        schema: The schema; None takes it from the inputs (as an object or as JSON text).
        field: The input that holds the schema.
        graded: Whether violations are counted.

    Raises:
        ConfigurationError: The schema is not valid.
    """

    def __init__(
        self, schema: Mapping[str, Any] | None = None, *, field: str = "schema", graded: bool = True
    ) -> None:
        super().__init__(schema, field, by_query=False)
        self._graded = graded
        if schema is not None:
            _validator(schema)

    def _check(self, response: str, reference: Any) -> Reward:
        validator = _validator(reference)
        fence = _FENCE.match(response)
        try:
            value = json.loads(fence[1] if fence else response, parse_constant=_no_number)
            errors = validator.iter_errors(value)
            found: list[Any] = sorted(errors, key=lambda e: list(map(str, e.path)))
        except ValueError as error:
            return Reward(0.0, f"The response is no JSON: {error}.")
        except RecursionError:
            return Reward(0.0, "The response is JSON that is nested too deeply to be checked.")
        except OverflowError:
            return Reward(0.0, "The response is JSON with a number too large to be checked.")
        if not found:
            return Reward(1.0, "The response is JSON that keeps to the schema.")
        listed = "; ".join(f"{error.json_path}: {error.message[:200]}" for error in found[:5])
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        reward = 1 / (1 + len(found)) if self._graded else 0.0
        return Reward(reward, f"The response is JSON that breaks the schema: {listed}{more}.")


@lru_cache(maxsize=256)
def compiled(pattern: str, flags: int) -> re.Pattern[str]:
    """Compile an expression once.

    Raises:
        ConfigurationError: It cannot be compiled.
    """
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise ConfigurationError(
            f"Expected a regular expression, got {pattern!r}: {error}."
        ) from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _validator(schema: Any) -> Any:
    try:
        import jsonschema
        from jsonschema.validators import validator_for
    except ImportError as error:
        raise MissingExtraError("jsonschema", "verify", "JSONSchemaScorer") from error
    try:
        loaded = json.loads(schema) if isinstance(schema, str) else schema
        kind: Any = validator_for(loaded)
        kind.check_schema(loaded)
    except (ValueError, jsonschema.SchemaError) as error:
        text = getattr(error, "message", error)
        raise ConfigurationError(f"Expected a valid JSON schema: {text}.") from error
    return kind(loaded)
