"""The lines of a run's files: written whole, read one by one, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from tpo_modules.characters import whole_text
from tpo_modules.errors import RunFolderError
from tpo_modules.trace import TRACE_VERSION, Call, Scoring, TPOTrace

_Record = TypeVar("_Record", bound=BaseModel)


def as_line(record: BaseModel, *, exclude: set[str] | None = None) -> bytes:
    """Return a record as JSON, without the fields to leave out."""
    try:
        return record.model_dump_json(exclude=exclude).encode()
    except PydanticSerializationError:  # some text in it is not whole
        return orjson.dumps(whole_text(record.model_dump(exclude=exclude)), default=repr)


def with_record(trace: TPOTrace, record: Call | Scoring) -> TPOTrace:
    """Return a trace with a record more; a call made again replaces the one before, which has no rewards."""
    if isinstance(record, Scoring):
        return trace.model_copy(update={"scorings": [*trace.scorings, record]})
    others = [c for c in trace.calls if (c.step, c.name) != (record.step, record.name)]
    return trace.model_copy(update={"calls": [*others, record]})


def read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Read a file's lines: how messages name each, the record, and its length in bytes.

    A last line without an end was torn by a crash, or is being written, and is left out; no file has no lines.

    Raises:
        RunFolderError: A line is not JSON, or no record with an id.
    """
    if not file.exists():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            at = f"{file}, line {number}"
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise RunFolderError(f"{at}: not JSON ({error}); was it edited by hand?") from error
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise RunFolderError(f"{at}: expected a record with an id")
            yield at, row, len(line)


def as_record(kind: type[_Record], row: Any, at: str) -> _Record:
    """Check what a line of a run's file holds; ``at`` says where it stands.

    Raises:
        RunFolderError: It is broken, or of a version that this release does not read.
    """
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        version = row.get("version") if isinstance(row, dict) else None
        if isinstance(version, int) and version != TRACE_VERSION:
            age = "an older" if version < TRACE_VERSION else "a newer"
            raise RunFolderError(
                f"{at}: expected a trace of version {TRACE_VERSION}, got one of version {version}; "
                f"read it with {age} release of dspy-tpo, the one that wrote it, or run the query again"
            ) from error
        raise RunFolderError(
            f"{at}: expected a {kind.__name__} that this release reads, got {where}: {first['msg']}; "
            "was it edited by hand?"
        ) from error
