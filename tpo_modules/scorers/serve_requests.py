"""Reading the bodies of requests to a scorer's server, with errors that say what to send instead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from tpo_modules.errors import InputError
from tpo_modules.scorers.base import Message, Query

_CHANGES_SCORES = (
    "truncate_prompt_tokens",
    "truncation_side",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "mm_processor_kwargs",
)
"""Fields of vLLM's that would change rewards: refused, not ignored."""


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """What a request asks for.

    Attributes:
        pairs: The (query, response) pairs, in the order of the request.
        model: The model it names, or None.
        activation: Whether it wants the rewards' sigmoid.
    """

    pairs: tuple[tuple[Query, str], ...]
    model: str | None
    activation: bool


def parse_request(content: bytes) -> ClassifyRequest:
    """Read the body of a request to ``/classify``.

    Raises:
        InputError: It is no JSON, or not in one of the forms taken; the message names the place.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The body is no JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InputError(f"Expected a JSON object as the body, got {type(body).__name__}.")
    given = cast("dict[str, Any]", body)
    changed = [name for name in _CHANGES_SCORES if given.get(name)]
    if changed:
        raise InputError(f"This server does not take {', '.join(changed)}: set it where it starts.")
    if ("messages" in given) == ("input" in given):
        raise InputError("Expected either 'messages' (one conversation) or 'input' (many).")
    model = given.get("model")
    return ClassifyRequest(
        _pairs(given),
        model if isinstance(model, str) else None,
        given.get("use_activation") is True,
    )


def _pairs(body: dict[str, Any]) -> tuple[tuple[Query, str], ...]:
    if "messages" in body:
        return (_conversation(body["messages"], "messages"),)
    given: Any = body["input"]
    if isinstance(given, dict) or (_is_list(given) and given and _is_message(given[0])):
        return (_pair(given, "input"),)
    if not _is_list(given) or not given:
        raise InputError(f"Expected 'input' to be a list with something in it, got {_kind(given)}.")
    return tuple(_pair(one, f"input[{i}]") for i, one in enumerate(given))


def _pair(given: Any, where: str) -> tuple[Query, str]:
    if isinstance(given, str | int) or (_is_list(given) and given and isinstance(given[0], int)):
        raise InputError(
            f"{where}: this server takes conversations, not text or token ids: it applies the "
            "chat template itself. Send {'query': ..., 'response': ...}, or a list of messages."
        )
    if _is_list(given):
        return _conversation(given, where)
    if not isinstance(given, dict):
        raise InputError(f"{where}: expected an object or a list of messages, got {_kind(given)}.")
    row = cast("dict[str, Any]", given)
    if "response" not in row:
        if "messages" in row:
            return _conversation(row["messages"], f"{where}.messages")
        raise InputError(f"{where}: expected 'response', got the fields {sorted(row)}.")
    response = _text(row["response"], f"{where}.response")
    return _query(row, where), response


def _query(row: dict[str, Any], where: str) -> Query:
    if "query" not in row and "messages" not in row:
        raise InputError(f"{where}: expected 'query' or 'messages', got the fields {sorted(row)}.")
    messages = _turns(row["messages"], f"{where}.messages") if row.get("messages") else []
    inputs = row.get("inputs")
    if inputs is not None and not isinstance(inputs, dict):
        raise InputError(f"{where}.inputs: expected an object, got {_kind(inputs)}.")
    named = cast("dict[str, Any] | None", inputs)
    default = str(Query.from_messages(messages)) if messages else None
    text = _text(row.get("query", default), f"{where}.query")
    return Query(text, inputs=named, messages=messages)


def _conversation(given: Any, where: str) -> tuple[Query, str]:
    """Split a conversation into the query and the assistant's last message."""
    turns = _turns(given, where)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InputError(
            f"{where}: expected a conversation that ends with the assistant's response, got the "
            f"roles {[turn['role'] for turn in turns]}."
        )
    return Query.from_messages(turns[:-1]), turns[-1]["content"]


def _turns(given: Any, where: str) -> list[Message]:
    if not _is_list(given) or not all(_is_message(one) for one in given):
        raise InputError(f"{where}: expected a list of {{'role', 'content'}}, got {_kind(given)}.")
    return [
        {"role": str(one["role"]), "content": _content(one["content"], f"{where}[{i}].content")}
        for i, one in enumerate(given)
    ]


def _content(given: Any, where: str) -> str:
    """Take a message's text, also from a list of text parts."""
    if _is_list(given):
        parts = [one.get("text") if isinstance(one, dict) else None for one in given]
        if not all(isinstance(part, str) for part in parts):
            raise InputError(f"{where}: expected text parts only, got something else among them.")
        return "".join(cast("list[str]", parts))
    return _text(given, where)


def _text(given: Any, where: str) -> str:
    if not isinstance(given, str):
        raise InputError(f"{where}: expected text, got {_kind(given)}.")
    return given


def _is_list(given: Any) -> bool:
    return isinstance(given, list)


def _is_message(given: Any) -> bool:
    return isinstance(given, dict) and "role" in given and "content" in given


def _kind(given: Any) -> str:
    if given is None:
        return "null"
    if isinstance(given, Sequence) and not isinstance(given, str):
        return f"a list of {len(cast('Sequence[Any]', given))}"
    return type(given).__name__
