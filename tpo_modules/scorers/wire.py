"""What the wire shapes of reward servers share: items, outputs, and checks of an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from tpo_modules.errors import RewardError
from tpo_modules.scorers.base import Query

PerRequest = Literal["many", "one query", "one"]
"""What may share a request: any pairs, responses to one query, or nothing."""


@dataclass(frozen=True, slots=True)
class Item:
    """One (query, response) pair on its way to a server.

    Attributes:
        query: The query.
        response: The response, as plain text.
        text: The conversation with the chat template applied, where this side applies it; None also
            where no text would be tokenised to `token_ids`.
        token_ids: The ids that the reward model must read, where this side applies the template.
        notes: What was changed to make it fit, such as ``"query cut by 312 tokens"``.
        unsendable: Why this server cannot be asked about it, or None.
    """

    query: Query
    response: str
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    unsendable: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What a server said about one response.

    Attributes:
        values: The numbers, one per output of the model, unchecked.
        labels: The outputs' names, where the server gives them (then in no fixed order).
        feedback: Words with the number (only our own server sends them).
        notes: Facts with the number (only our own server sends them).
    """

    values: tuple[object, ...]
    labels: tuple[str, ...] = ()
    feedback: str | None = None
    notes: tuple[str, ...] = ()


class Wire(ABC):
    """One server's request and answer.

    Attributes:
        path: The endpoint below the server's address.
        per_request: What may share a request.
        template: Whether this side applies the chat template: it must, it can, or it has no use.
        adds_special_tokens: Whether the server puts its own BOS before a templated text.
        takes_token_ids: Whether token ids can be sent in place of a templated text.
    """

    path: ClassVar[str]
    per_request: ClassVar[PerRequest] = "many"
    template: ClassVar[Literal["required", "optional", "unused"]] = "unused"
    adds_special_tokens: ClassVar[bool] = False
    takes_token_ids: ClassVar[bool] = False

    @abstractmethod
    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Build the request's body for items that may travel together."""

    @abstractmethod
    def parse(self, answer: object, count: int) -> list[Output]:
        """Read the answer to a request of ``count`` items.

        Returns:
            One output per item, in the order of the request.

        Raises:
            RewardError: The answer has another shape or another length.
        """

    def per_request_for(self, item: Item) -> PerRequest:
        """Say what may share a request with this item."""
        del item
        return self.per_request


def conversation(item: Item) -> list[dict[str, str]]:
    """Give the whole conversation, the response as the assistant's last message."""
    reply = {"role": "assistant", "content": item.response}
    return [*(dict(message) for message in item.query.messages), reply]


def shown(value: object) -> str:
    """Show a value in an error message, cut to a line or two."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def read_member(answer: object, name: str) -> object:
    """Take one member of a JSON object."""
    if not isinstance(answer, dict) or name not in answer:
        raise RewardError(f"Expected a JSON object with {name!r}, got {shown(answer)}.")
    return cast("dict[str, object]", answer)[name]


def read_rows(value: object, count: int, where: str) -> list[dict[str, Any]]:
    """Check that a value is a list of ``count`` JSON objects."""
    found = cast("list[object]", value) if isinstance(value, list) else None
    if found is None or not all(isinstance(row, dict) for row in found):
        raise RewardError(f"Expected a list of objects as {where}, got {shown(value)}.")
    if len(found) != count:
        raise RewardError(
            f"Expected {count} results (one per response) as {where}, got {len(found)}. "
            "A proxy, or a limit on the number of results, may have cut the answer."
        )
    return cast("list[dict[str, Any]]", found)


def in_order(rows: list[dict[str, Any]], where: str, *, required: bool) -> list[dict[str, Any]]:
    """Put rows in the order of their ``index``: servers that rank return the best one first."""
    if not required and not any("index" in row for row in rows):
        return rows
    indices = [row.get("index") for row in rows]
    if sorted(map(repr, indices)) != sorted(map(repr, range(len(rows)))):
        raise RewardError(
            f"Expected each index from 0 to {len(rows) - 1} once in {where}, got {shown(indices)}."
        )
    return sorted(rows, key=lambda row: cast("int", row["index"]))


def read_field(row: dict[str, Any], name: str, where: str) -> tuple[object, ...]:
    """Take one field of a result as the model's outputs, always a list."""
    if name not in row:
        raise RewardError(f"Expected {name!r} in each of {where}, got the fields {sorted(row)}.")
    return as_outputs(row[name])


def as_outputs(value: object) -> tuple[object, ...]:
    """Give a list of numbers as it is, one number as a list of one."""
    return tuple(cast("list[object]", value)) if isinstance(value, list) else (value,)
