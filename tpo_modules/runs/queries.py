"""Reading query files: a JSON list as the reference code reads it, or JSONL with ids."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tpo_modules.characters import whole_text
from tpo_modules.errors import DataFileError, nearest

_QUERY_NAMES = ("query", "prompt", "question", "instruction", "problem")


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One query of a file.

    Attributes:
        id: Unique in the file; the position, counted from 0, where the file has none.
        inputs: The policy's inputs by name; ``{"query": text}`` for a plain query.
    """

    id: str
    inputs: dict[str, Any]


def read_queries(path: str | Path, *, limit: int | None = None) -> list[QueryRow]:
    """Read a file of queries.

    Args:
        path: A JSON list, or JSON lines. A row is a string, or an object with the query under ``query`` (or
            ``prompt``, ``question``, ``instruction``, ``problem``), or several policy inputs under
            ``inputs``, and an optional ``id``, a string. Half a character (a surrogate by itself) is
            read as U+FFFD.
        limit: Read the first so many rows only.

    Raises:
        DataFileError: The file is missing or empty, is neither form, has a bad row or a repeated id; the
            message names the line (of a JSON list: the row).
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            return _read(lines, str(path), limit)
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(f"expected a file of queries, cannot read {path}: {error}") from error


def parse_queries(text: str, name: str, *, limit: int | None = None) -> list[QueryRow]:
    """Parse the text of a query file: see `read_queries`; ``name`` stands in the messages."""
    return _read(io.StringIO(text.removeprefix("\ufeff"), newline="\n"), name, limit)


def _read(lines: IO[str], name: str, limit: int | None) -> list[QueryRow]:
    rows: list[QueryRow] = []
    seen: dict[str, str] = {}
    for position, (where, value) in enumerate(_values(lines, name)):
        if limit is not None and position >= limit:
            break
        row = _row(whole_text(value), position, f"{name}, {where}")
        if row.id in seen:
            raise DataFileError(
                f"{name}, {where}: the id {row.id!r} was used at {seen[row.id]} already; ids must be unique"
            )
        seen[row.id] = where
        rows.append(row)
    if not rows:
        raise DataFileError(f"expected at least one query in {name}, found none")
    return rows


def _values(lines: IO[str], name: str) -> Iterator[tuple[str, Any]]:
    """Read lines one at a time, so that a large file is not held twice; a JSON list is read whole."""
    numbered = enumerate(lines, start=1)
    for number, line in numbered:
        if not line.strip():
            continue
        if line.lstrip().startswith("["):
            yield from _of_list(line + lines.read(), name, above=number - 1)
            return
        yield f"line {number}", _of_line(line, number, name)
        break
    for number, line in numbered:
        if line.strip():
            yield f"line {number}", _of_line(line, number, name)


def _of_list(text: str, name: str, *, above: int) -> Iterator[tuple[str, Any]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{name}, line {above + error.lineno}"
        raise DataFileError(f"{where}: not JSON: {error.msg}") from error
    yield from ((f"row {i}", value) for i, value in enumerate(values, start=1))


def _of_line(line: str, number: int, name: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataFileError(
            f"{name}, line {number}: expected a JSON list of queries, or one JSON value per line; "
            f"this line is not JSON: {error.msg}"
        ) from error


def _row(value: Any, position: int, where: str) -> QueryRow:
    if isinstance(value, str):
        value = {"query": value}
    if not isinstance(value, dict):
        raise DataFileError(f"{where}: expected a string or an object, got {type(value).__name__}")
    identity = value.get("id", str(position))
    if not isinstance(identity, str):
        raise DataFileError(f"{where}: expected the id to be a string, got {identity!r}")
    if isinstance(value.get("inputs"), dict):
        return QueryRow(identity, dict(value["inputs"]))
    found = next((value[key] for key in _QUERY_NAMES if key in value), None)
    if not isinstance(found, str) or not found.strip():
        raise DataFileError(
            f"{where}: expected a query as non-empty text under one of {list(_QUERY_NAMES)}, "
            f"got the fields {list(value)}"
            + (
                f" with {found!r}"
                if found is not None
                else nearest(value, [*_QUERY_NAMES, "inputs"])
            )
        )
    return QueryRow(identity, {"query": found})
