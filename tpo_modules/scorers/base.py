"""What a scorer is: one method, ``score(query, responses) -> list[float]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

Message = Mapping[str, str]
"""One chat message: ``{"role": "system" | "user" | "assistant", "content": str}``."""


class Query(str):
    """A query as text that also knows the inputs and the conversation it was made from.

    It is a ``str``, so a scorer that wants text just uses it. The text is the policy's single text input,
    or, where a policy has several inputs, one ``Name: value`` line for each.

    Attributes:
        inputs: Every input of the policy by its own name.
        messages: The conversation that the response continues: earlier turns and system messages
            first, the user's latest message last.
    """

    inputs: Mapping[str, Any]
    messages: tuple[Message, ...]

    def __new__(
        cls,
        text: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
    ) -> Query:
        """Make a query of its text; ``messages`` defaults to one user message."""
        query = super().__new__(cls, text)
        query.inputs = MappingProxyType(dict(inputs or {"query": text}))
        query.messages = tuple(messages) or ({"role": "user", "content": text},)
        return query

    @classmethod
    def from_messages(cls, messages: Sequence[Message]) -> Query:
        """Make a query of a conversation; its text is the last user message."""
        last = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        return cls(last, messages=messages)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_query, (str(self), dict(self.inputs), self.messages)


def _rebuild_query(text: str, inputs: Mapping[str, Any], messages: tuple[Message, ...]) -> Query:
    return Query(text, inputs=inputs, messages=messages)


def as_query(query: str | Sequence[Message]) -> Query:
    """Take text or a list of chat messages for a `Query`."""
    if isinstance(query, Query):
        return query
    return Query(query) if isinstance(query, str) else Query.from_messages(query)


class Response(str):
    """A response as text that also knows the policy's whole prediction.

    Attributes:
        prediction: The policy's output fields by name (a ``dspy.Prediction`` inside the loop), or
            None for a response that comes from elsewhere.
    """

    prediction: Any

    def __new__(cls, text: str, prediction: Any = None) -> Response:
        """Make a response of its text and, where there is one, the prediction it is part of."""
        response = super().__new__(cls, text)
        response.prediction = prediction
        return response


class Reward(float):
    """A reward that carries what a scorer has to say about it.

    It is a ``float``, so ``list[float]`` stays true; a scorer may mix both.

    Attributes:
        feedback: Why this reward, in words; the loop offers it to the loss step as
            ``chosen_feedback`` / ``rejected_feedback``. None when there is nothing to say.
        notes: Facts worth keeping in the trace, such as ``"query cut by 312 tokens"``.
    """

    feedback: str | None
    notes: tuple[str, ...]

    def __new__(
        cls, value: float, feedback: str | None = None, notes: Sequence[str] = ()
    ) -> Reward:
        """Make a reward of a number, its reason in words, and notes."""
        reward = super().__new__(cls, value)
        reward.feedback = feedback
        reward.notes = tuple(notes)
        return reward

    def __reduce__(self) -> tuple[Any, ...]:
        return Reward, (float(self), self.feedback, self.notes)


@runtime_checkable
class Scorer(Protocol):
    """Anything that rewards responses to a query."""

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Reward each response to the query.

        Args:
            query: The query; inside the loop a `Query`, which also carries the policy's inputs and
                the conversation.
            responses: The responses to reward; inside the loop each is a `Response`.

        Returns:
            One reward per response, same order; finite, higher is better. An element may be a
            `Reward`, a float that carries feedback in words. NaN marks a response that could not be
            scored: the loop records it and leaves the response out of the pool.

        Raises:
            ScorerError: The backend failed as a whole.
        """
        ...


@runtime_checkable
class AsyncScorer(Protocol):
    """A scorer with a native asynchronous method; others run `Scorer.score` in a thread."""

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Do what `Scorer.score` does, without blocking the event loop."""
        ...
