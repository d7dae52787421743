"""`RunFolder`: what a run of many queries leaves on disk, and how it is taken up again.

========================  ===================================================================================
``config.json``           everything that determines the results: prompts in full, sampling, seed, versions
``results.jsonl``         one `QueryResult` per finished query, without its trace
``traces.jsonl``          the whole `TPOTrace` of each, with its id
``failures.jsonl``        queries that gave nothing, and why
``journal.jsonl``         every record of the queries under way, for resuming
``progress.json``         the latest figures of the run, while it runs
``.lock``                 held while a process writes here
========================  ===================================================================================

Lines are appended and flushed one by one; a last line torn by a crash is dropped when the folder is opened. A
result is written last, so a query without one is resumed from its journal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson
from filelock import FileLock, Timeout

from tpo_modules.errors import RunFolderError
from tpo_modules.results import FailedQuery, QueryResult
from tpo_modules.run import Event
from tpo_modules.trace import Call, Failure, Scoring, TPOTrace

_FILES = ("results", "traces", "failures", "journal")


class RunFolder:
    """A folder that one process at a time writes a run to.

    Args:
        path: The folder; made if it is missing.
        config: What determines the results; compared with what the folder holds.
        ignore: Names of settings that may differ, such as ``depth`` to extend runs.

    Attributes:
        finished: Ids of the queries that have a result.
        failed: Ids of the queries whose last attempt failed, with the error's name.

    Raises:
        RunFolderError: Another process writes here; the folder holds another run (the message shows the
            difference), or something that is no run; or it cannot be written.
    """

    def __init__(
        self, path: str | Path, *, config: dict[str, Any], ignore: tuple[str, ...] = ()
    ) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / ".lock", timeout=0)
        self._open_lock()
        try:
            self._check_config(config, ignore)
            self._sinks: dict[str, IO[bytes]] = {}
            self.finished = {row["id"] for row in self._rows("results")}
            self.failed = {
                row["id"]: row["error"]
                for row in self._rows("failures")
                if row["id"] not in self.finished
            }
            self._compact_journal()
            for name in _FILES:
                self._sinks[name] = self._file(name).open("ab")
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> RunFolder:
        """Return the folder, open for writing."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the files and let other processes write."""
        for sink in self._sinks.values():
            sink.close()
        self._lock.release()

    def journal(self, identity: str, event: Event) -> None:
        """Append a record of a query under way; a call that gave nothing is left out, to be made again."""
        record = event.record
        if event.replayed or isinstance(record, Failure):
            return
        if isinstance(record, Call) and not any(c.text for c in record.completions):
            return
        kind = "call" if isinstance(record, Call) else "scoring"
        self._write("journal", {"id": identity, kind: record.model_dump(mode="json")})

    def finish(self, result: QueryResult, trace: TPOTrace) -> None:
        """Write a finished query: its trace first, then the result that makes it count."""
        self._write("traces", {"id": result.id, "trace": trace.model_dump(mode="json")})
        self._write("results", result.model_dump(mode="json", exclude={"trace"}))
        self.finished.add(result.id)
        self.failed.pop(result.id, None)

    def fail(self, failed: FailedQuery) -> None:
        """Write a query that gave nothing."""
        self._write("failures", failed.model_dump(mode="json"))
        self.failed[failed.id] = failed.error

    def progress(self, figures: dict[str, Any]) -> None:
        """Replace the progress file, whole or not at all."""
        temporary = self.path / ".progress.json"
        temporary.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
        temporary.replace(self.path / "progress.json")

    def unfinished(self, base: TPOTrace) -> dict[str, TPOTrace]:
        """Return what was recorded of the queries without a result, as traces to resume from, by id."""
        traces: dict[str, TPOTrace] = {}
        for row in self._rows("journal"):
            if row["id"] in self.finished:
                continue
            trace = traces.setdefault(row["id"], base.model_copy(deep=True))
            if "call" in row:
                trace.calls.append(Call.model_validate(row["call"]))
            else:
                trace.scorings.append(Scoring.model_validate(row["scoring"]))
        return traces

    def traces(self) -> Iterator[tuple[str, TPOTrace]]:
        """Read the traces of the finished queries, one at a time; a later one of an id replaces the earlier."""
        for row in self._rows("traces"):
            if row["id"] in self.finished:
                yield row["id"], TPOTrace.model_validate(row["trace"])

    def results(self) -> list[QueryResult]:
        """Read the results, each id's latest, in the order of finishing."""
        latest = {row["id"]: row for row in self._rows("results")}
        return [QueryResult.model_validate(row) for row in latest.values()]

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def _open_lock(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise RunFolderError(
                f"another process writes to {self.path}; wait for it, or use another folder"
            ) from None
        except OSError as error:
            raise RunFolderError(f"cannot write to {self.path}: {error}") from error

    def _check_config(self, config: dict[str, Any], ignore: tuple[str, ...]) -> None:
        file = self.path / "config.json"
        config = json.loads(json.dumps(config))
        if not file.exists():
            if any(self._file(name).exists() for name in _FILES):
                raise RunFolderError(
                    f"{self.path} holds results but no config.json: not a run's folder"
                )
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            return
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunFolderError(
                f"{file} is not JSON: {error}; restore it or use another folder"
            ) from error
        differing = [
            f"{name}: {there!r} there, {here!r} here"
            for name, there, here in difference(saved, config)
            if name.split(".")[0] not in (*ignore, "versions")
        ]
        if differing:
            raise RunFolderError(
                f"{self.path} holds a run of another configuration; use another folder, or the same settings. "
                + "; ".join(differing)
            )

    def _write(self, name: str, row: dict[str, Any]) -> None:
        sink = self._sinks[name]
        try:
            sink.write(orjson.dumps(row) + b"\n")
            sink.flush()
        except OSError as error:
            raise RunFolderError(
                f"cannot write to {self._file(name)}: {error}; make room and run the same command again"
            ) from error

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Read a file's lines; a torn last line is cut off the file, any other bad one is an error."""
        file = self._file(name)
        if not file.exists():
            return
        whole = 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise RunFolderError(
                        f"{file}, line {number}: not JSON ({error}); was it edited by hand?"
                    ) from error
                if not isinstance(row, dict) or "id" not in row:
                    raise RunFolderError(f"{file}, line {number}: expected a record with an id")
                yield row
        if whole < file.stat().st_size:
            os.truncate(file, whole)

    def _compact_journal(self) -> None:
        """Drop the journal of finished queries, which their traces hold."""
        file = self._file("journal")
        if not file.exists():
            return
        kept = [
            orjson.dumps(row) for row in self._rows("journal") if row["id"] not in self.finished
        ]
        temporary = file.with_suffix(".tmp")
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        temporary.replace(file)


def difference(saved: Any, given: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Walk two configurations and yield where they differ: dotted name, saved value, given value."""
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in {**saved, **given}:
            inner = f"{name}.{key}" if name else str(key)
            yield from difference(saved.get(key), given.get(key), inner)
    elif saved != given:
        yield name, saved, given
