"""What of a run is left to do: its queries, less what its folder holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpo_modules.characters import whole_text
from tpo_modules.drawing import jsonable
from tpo_modules.errors import ConfigurationError, InputError, RunFolderError
from tpo_modules.policy import PolicyModule
from tpo_modules.query import make_query
from tpo_modules.runs.ledger import is_taken_up_again
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.run_folder import RunFolder, digest_of
from tpo_modules.trace import TPOTrace

DEPTHS = frozenset({"depth", "rounds"})
"""The settings that say how far a query goes, in the modules that have them: what ``extend_depth`` may raise."""


@dataclass(frozen=True, slots=True)
class Todo:
    """A query to answer.

    Attributes:
        row: The query.
        earlier: What is recorded of it already.
    """

    row: QueryRow
    earlier: TPOTrace | None


def queries_to_do(
    module: PolicyModule,
    rows: Sequence[QueryRow],
    folder: RunFolder,
    *,
    extend_depth: bool = False,
    retry_failures: bool = False,
    first: Mapping[str, TPOTrace] | None = None,
) -> list[Todo]:
    """List the queries to answer; those begun before go first, so that they finish first.

    Raises:
        RunFolderError: The folder holds other queries under the same ids.
        ConfigurationError: A query to extend is deeper already.
    """
    base = TPOTrace(
        method=module.method, label=module.label, query="", inputs={}, config=module.config()
    )
    begun = _begun(folder, base, first or {})
    _check_queries(module, rows, folder, begun)
    if extend_depth or retry_failures:
        finished = dict(folder.traces())  # of an id that was taken up again, the last
        if extend_depth:
            _check_depths(module, {r.id: finished[r.id] for r in rows if r.id in finished})
        begun |= {
            identity: trace.model_copy(update={"config": module.config()})
            for identity, trace in finished.items()
            if (extend_depth and trace.label != module.label)
            or (retry_failures and trace.status == "failed")
        }
    todo: list[Todo] = []
    for row in rows:
        kind = folder.failed.get(row.id)
        if row.id in folder.finished and row.id not in begun:
            continue
        if kind and not is_taken_up_again(kind) and not retry_failures:
            continue
        todo.append(Todo(row, begun.get(row.id)))
    return sorted(todo, key=lambda one: one.earlier is None)


def _check_depths(module: PolicyModule, finished: Mapping[str, TPOTrace]) -> None:
    ours = module.config()
    for identity, trace in finished.items():
        for name in DEPTHS & ours.keys():
            there = trace.config.get(name, 0)
            if there > ours[name]:
                raise ConfigurationError(
                    f"expected {name} of at least {there} to extend the run, since the query {identity!r} has "
                    f"that already, got {ours[name]}; use another folder for a smaller one"
                )


def _begun(folder: RunFolder, base: TPOTrace, first: Mapping[str, TPOTrace]) -> dict[str, TPOTrace]:
    """Collect what is recorded of queries without a result: first rounds given, then the folder's journal."""
    begun = {
        identity: _first_round(trace, base)
        for identity, trace in first.items()
        if identity not in folder.finished
    }
    for identity, trace in folder.unfinished(base).items():
        start = begun.get(identity, base)
        calls, scorings = start.calls + trace.calls, start.scorings + trace.scorings
        begun[identity] = trace.model_copy(update={"calls": calls, "scorings": scorings})
    return begun


def _first_round(trace: TPOTrace, base: TPOTrace) -> TPOTrace:
    """Take a trace's first round over into a trace of another method."""
    calls = [call for call in trace.calls if call.step == 0]
    scorings = [scoring for scoring in trace.scorings if scoring.step == 0]
    return base.model_copy(update={"calls": calls, "scorings": scorings})


def as_rows(queries: Sequence[QueryRow | str]) -> list[QueryRow]:
    """Give plain texts their position as their id; half a character in an id becomes U+FFFD, as in the folder.

    Raises:
        ConfigurationError: An id repeats or is no string, or something is neither a row nor a text.
    """
    rows: dict[str, QueryRow] = {}
    for position, query in enumerate(queries):
        row: Any = QueryRow(str(position), {"query": query}) if isinstance(query, str) else query
        identity: Any = row.id if isinstance(row, QueryRow) else None
        if not isinstance(identity, str):
            raise ConfigurationError(
                f"expected texts, or QueryRow(id, inputs) with a string as id, got {query!r:.200} "
                f"at position {position}"
            )
        row = replace(row, id=whole_text(row.id))
        if row.id in rows:
            raise ConfigurationError(f"expected ids that are unique, got {row.id!r} more than once")
        rows[row.id] = row
    return [*rows.values()]


def _check_queries(
    module: PolicyModule,
    rows: Iterable[QueryRow],
    folder: RunFolder,
    begun: Mapping[str, TPOTrace],
) -> None:
    """Refuse a folder of other queries: under an id that it knows, the query must be the same."""
    for row in rows:
        there, here = folder.finished.get(row.id), None
        if there is not None:
            here = digest_of(_text_of(module, row))
        elif (trace := begun.get(row.id)) and trace.calls and trace.calls[0].name == "policy":
            given = jsonable(row.inputs)
            there = trace.calls[0].inputs
            here = {name: given.get(name, value) for name, value in there.items()}
        if there != here:
            raise RunFolderError(
                f"{folder.path} holds another query under the id {row.id!r} than {row.inputs!r:.200}; "
                "use another folder, or the file of queries that it was made from"
            )


def _text_of(module: PolicyModule, row: QueryRow) -> str | None:
    try:
        return str(make_query(module.policy, row.inputs))
    except InputError:
        return None  # recorded as a failure when it is answered
