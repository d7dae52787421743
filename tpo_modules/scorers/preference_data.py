r"""Reading files of responses to score, or of preferences to score by.

A file holds JSON lines or one JSON list, plain or gzipped (``.gz``). Its rows are all of one kind:

- a response: ``{query, response}``, or ``{messages}`` that end with the assistant's;
- a preference: ``{query, chosen, rejected}``; or ``{chosen, rejected}``, both conversations that
  begin alike, as message lists or as HH-RLHF transcripts ("\n\nHuman: ...\n\nAssistant: ..."):
  what they share is the query.

``query`` may be called ``prompt``, and be text or a list of messages. ``category`` or ``subset``
names the row's category. ``inputs`` and ``answer`` become the query's inputs.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, cast

from tpo_modules.errors import DataFileError
from tpo_modules.scorers.base import Message, Query

_QUERY_NAMES = ("query", "prompt", "question", "instruction", "problem")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """One response to score.

    Attributes:
        where: ``"line 3"``, or ``"row 3"`` in a JSON list; counted from 1.
        query: The query.
        response: The response.
        category: Its category, or None.
    """

    where: str
    query: Query
    response: str
    category: str | None = None


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """Two responses to one query, one of them preferred.

    Attributes:
        where: ``"line 3"``, or ``"row 3"`` in a JSON list; counted from 1.
        query: The query.
        chosen: The preferred response.
        rejected: The other one.
        category: Its category, or None.
    """

    where: str
    query: Query
    chosen: str
    rejected: str
    category: str | None = None


Rows: TypeAlias = "list[ResponseRow] | list[PreferenceRow]"


def read_rows(path: str | Path, *, limit: int | None = None) -> Rows:
    """Read a file of responses or of preferences; the first row tells which.

    Args:
        path: The file.
        limit: Read the first so many rows only.

    Raises:
        DataFileError: The file cannot be read, or has a bad row; the message names its line.
    """
    path = Path(path)
    values = islice(_values(path), limit)
    first = next(values, None)
    if first is None:
        raise DataFileError(f"{path}: expected at least one row, found none.")
    if "chosen" in first[1] or "rejected" in first[1]:
        return [_preference(path, *first), *(_preference(path, *value) for value in values)]
    return [_response(path, *first), *(_response(path, *value) for value in values)]


# --- from the file to JSON objects


def _values(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with _opened(path) as lines:
            for where, value in _parsed(path, lines):
                if not isinstance(value, dict):
                    kind = type(value).__name__
                    raise DataFileError(f"{path}, {where}: expected a JSON object, got {kind}.")
                yield where, cast("dict[str, Any]", value)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataFileError(f"{path}: cannot be read: {error}.") from error


def _opened(path: Path) -> io.TextIOWrapper:
    # Lines end at "\n" alone: JSON texts may hold other line separators, such as U+2028.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")


def _parsed(path: Path, lines: io.TextIOWrapper) -> Iterator[tuple[str, object]]:
    first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            whole = _json(path, "the file", line + lines.read())
            yield from ((f"row {i}", one) for i, one in enumerate(cast("list[object]", whole), 1))
            return
        first = False
        yield f"line {number}", _json(path, f"line {number}", line)


def _json(path: Path, where: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataFileError(f"{path}, {where}: no JSON: {error}.") from error


# --- from objects to rows


def _response(path: Path, where: str, value: dict[str, Any]) -> ResponseRow:
    place = f"{path}, {where}"
    category = _category(value)
    if "response" not in value and _is_conversation(value.get("messages")):
        *turns, last = _turns(value["messages"])
        if turns and last["role"] == "assistant":
            return ResponseRow(where, _continued(turns, value), last["content"], category)
        raise DataFileError(f"{place}: expected 'messages' to end with the assistant's response.")
    query = _query(value, place)
    if query is None:
        raise _lacks(place, "query", value)
    return ResponseRow(where, query, _text(value, "response", place), category)


def _preference(path: Path, where: str, value: dict[str, Any]) -> PreferenceRow:
    place = f"{path}, {where}"
    for name in ("chosen", "rejected"):
        if name not in value:
            raise _lacks(place, name, value)
    query = _query(value, place)
    chosen, rejected = value["chosen"], value["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if query is None:
            query, chosen, rejected = _split_transcripts(chosen, rejected, place, value)
    elif _is_conversation(chosen) and _is_conversation(rejected):
        shared, chosen, rejected = _split_messages(_turns(chosen), _turns(rejected), place, value)
        query = shared or query
        if query is None:
            raise _lacks(place, "query", value)
    else:
        raise DataFileError(
            f"{place}: expected 'chosen' and 'rejected' to be both text, or both lists of messages."
        )
    return PreferenceRow(where, query, chosen, rejected, _category(value))


def _query(value: dict[str, Any], place: str) -> Query | None:
    """Find the query: text, or the messages before the response."""
    names = (*_QUERY_NAMES, "messages")
    given = {name: value[name] for name in names if value.get(name) is not None}
    for name, found in given.items():
        if isinstance(found, str) and name != "messages":
            return Query(found, inputs=_inputs(value, found))
        if _is_conversation(found):
            return _continued(_turns(found), value)
    if not given:
        return None
    name, found = next(iter(given.items()))
    raise DataFileError(
        f"{place}: expected {name!r} to be text, or a list of messages that each have 'role' and "
        f"'content' as text; got {json.dumps(found, ensure_ascii=False):.80}."
    )


def _continued(turns: list[Message], value: dict[str, Any]) -> Query:
    """Make a query of a conversation that the response continues."""
    text = str(Query.from_messages(turns))
    return Query(text, messages=turns, inputs=_inputs(value, text))


def _inputs(value: dict[str, Any], text: str) -> dict[str, Any]:
    """Keep a row's ``inputs`` and its ``answer``, for scorers that verify."""
    given = value.get("inputs")
    inputs = dict(cast("dict[str, Any]", given)) if isinstance(given, dict) else {"query": text}
    return {**inputs, "answer": value["answer"]} if "answer" in value else inputs


def _text(value: dict[str, Any], name: str, place: str) -> str:
    if name not in value:
        raise _lacks(place, name, value)
    if not isinstance(value[name], str):
        kind = type(value[name]).__name__
        raise DataFileError(f"{place}: expected {name!r} to be text, got {kind}.")
    return value[name]


def _lacks(place: str, name: str, value: dict[str, Any]) -> DataFileError:
    fields = ", ".join(repr(key) for key, found in value.items() if found is not None)
    return DataFileError(
        f"{place}: lacks {name!r}; it has {fields or 'no fields'}. Expected "
        "{query, response}, {query, chosen, rejected}, or two transcripts {chosen, rejected}."
    )


def _category(value: dict[str, Any]) -> str | None:
    found = next((value[name] for name in ("category", "subset") if value.get(name)), None)
    return None if found is None else str(found)


# --- conversations


def _is_conversation(given: object) -> bool:
    return (
        isinstance(given, list)
        and bool(cast("list[object]", given))
        and all(
            isinstance(one, dict)
            and isinstance(cast("dict[str, Any]", one).get("role"), str)
            and isinstance(cast("dict[str, Any]", one).get("content"), str)
            for one in cast("list[object]", given)
        )
    )


def _turns(given: Any) -> list[Message]:
    return [{"role": one["role"], "content": one["content"]} for one in given]


def parse_transcript(text: str) -> list[Message]:
    """Read an HH-RLHF transcript as messages; empty if it is none.

    Each turn begins with a blank line and ``Human:`` or ``Assistant:``; white space around a
    turn's text is taken off.
    """
    pieces = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text.lstrip()}")
    if pieces[0].strip():
        return []
    return [
        {"role": _ROLES[name], "content": content.strip()}
        for name, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _split_transcripts(
    chosen: str, rejected: str, place: str, value: dict[str, Any]
) -> tuple[Query, str, str]:
    turns = parse_transcript(chosen), parse_transcript(rejected)
    if not turns[0] or not turns[1]:
        raise _lacks(place, "query", value)
    query, first, second = _split_messages(*turns, place, value)
    if query is None:
        raise _lacks(place, "query", value)
    return query, first, second


def _split_messages(
    chosen: list[Message], rejected: list[Message], place: str, value: dict[str, Any]
) -> tuple[Query | None, str, str]:
    """Split two conversations into what they share, up to a user's message, and what follows.

    Where more than one message follows, as in a few rows of HH-RLHF, the response is all of them as
    a transcript.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    # Equal responses are shared too, but are no part of the query.
    while shared and chosen[shared - 1]["role"] not in ("user", "system"):
        shared -= 1
    if not shared and chosen[0]["role"] != "assistant":
        raise DataFileError(
            f"{place}: the two conversations share no query: they begin differently."
        )
    query = _continued(chosen[:shared], value) if shared else None
    return query, _rest(chosen[shared:], place), _rest(rejected[shared:], place)


def _rest(turns: list[Message], place: str) -> str:
    if not turns or turns[0]["role"] != "assistant":
        raise DataFileError(
            f"{place}: expected the assistant's response after what the two conversations share, "
            f"got {turns[0]['role'] if turns else 'nothing'}."
        )
    names = {role: name for name, role in _ROLES.items()}
    rest = [f"\n\n{names.get(t['role'], t['role'])}: {t['content']}" for t in turns[1:]]
    return turns[0]["content"] + "".join(rest)
