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

Lines are appended and flushed one by one; a last line torn by a crash or a full disk is dropped when the folder is
opened. A result is written last, so a query without one is resumed from its journal.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson
from filelock import FileLock, Timeout
from pydantic import BaseModel

from tpo_modules.errors import RunFolderError
from tpo_modules.run import Event, is_blank
from tpo_modules.runs.records import as_line, as_record, read_rows, with_record
from tpo_modules.runs.results import FailedQuery, QueryResult
from tpo_modules.trace import Call, Failure, Scoring, TPOTrace

_FILES = ("results", "traces", "failures", "journal")
_BLOCK = 2**16


class RunFolder:
    """A folder that one process at a time writes a run to.

    Args:
        path: The folder; made if it is missing.
        config: What determines the results; compared with what the folder holds.
        ignore: Names of settings that may differ, such as ``depth`` to extend runs.

    Attributes:
        finished: Ids of the queries that have a result, each with `digest_of` its query.
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
            self._refused: OSError | None = None
            for name in _FILES:
                self._cut_torn_line(name)
            self.finished: dict[str, bytes] = {
                row["id"]: digest_of(row.get("query")) for _, row in self._rows("results")
            }
            self.failed: dict[str, str] = {
                row["id"]: str(row.get("error"))
                for _, row in self._rows("failures")
                if row["id"] not in self.finished
            }
            self._compact_journal()
            for name in _FILES:
                self._sinks[name] = _open_sink(self._file(name))
        except OSError as error:
            self._lock.release()
            if isinstance(error, RunFolderError):
                raise
            raise self._cannot_write(self.path, error) from error
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
        """Append a record of a query under way; one that gave nothing is left out, to be made again."""
        record = event.record
        if event.replayed or isinstance(record, Failure) or is_blank(record):
            return
        self._write("journal", identity, "call" if isinstance(record, Call) else "scoring", record)

    def finish(self, result: QueryResult, trace: TPOTrace) -> None:
        """Write a finished query: its trace first, then the result that makes it count."""
        self._write("traces", result.id, "trace", trace)
        self._append("results", as_line(result, exclude={"trace"}))
        self.finished[result.id] = digest_of(result.query)
        self.failed.pop(result.id, None)

    def fail(self, failed: FailedQuery) -> None:
        """Write a query that gave nothing."""
        self._append("failures", as_line(failed))
        self.failed[failed.id] = failed.error

    def progress(self, figures: dict[str, Any]) -> None:
        """Replace the progress file, whole or not at all."""
        self._replace("progress.json", orjson.dumps(figures, option=orjson.OPT_INDENT_2))

    def unfinished(self, base: TPOTrace) -> dict[str, TPOTrace]:
        """Return what was recorded of the queries without a result, as traces to resume from, by id."""
        traces: dict[str, TPOTrace] = {}
        for at, row in self._rows("journal"):
            if row["id"] in self.finished:
                continue
            trace = traces.get(row["id"], base)
            kind, name = (Call, "call") if "call" in row else (Scoring, "scoring")
            traces[row["id"]] = with_record(trace, as_record(kind, row.get(name), at))
        return traces

    def traces(self) -> Iterator[tuple[str, TPOTrace]]:
        """Read the traces of the finished queries, one at a time; a later one of an id replaces the earlier."""
        for at, row in self._rows("traces"):
            if row["id"] in self.finished:
                yield row["id"], as_record(TPOTrace, row.get("trace"), at)

    def results(self) -> list[QueryResult]:
        """Read the results, each id's latest, in the order of finishing."""
        latest = {row["id"]: (at, row) for at, row in self._rows("results")}
        return [as_record(QueryResult, row, at) for at, row in latest.values()]

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
            self._replace("config.json", json.dumps(config, indent=2).encode() + b"\n")
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

    def _write(self, name: str, identity: str, kind: str, record: BaseModel) -> None:
        written = as_line(record)
        self._append(name, b'{"id":%b,"%b":%b}' % (orjson.dumps(identity), kind.encode(), written))

    def _append(self, name: str, line: bytes) -> None:
        if self._refused is not None:  # a line may be torn: it must stay the last of its file
            raise self._cannot_write(self._file(name), self._refused)
        left = memoryview(line + b"\n")
        try:
            while left:
                left = left[self._sinks[name].write(left) :]
        except OSError as error:
            self._refused = error
            raise self._cannot_write(self._file(name), error) from error

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        temporary = self.path / f".{name}.tmp"
        try:
            temporary.write_bytes(content)
            temporary.replace(self.path / name)
        except OSError as error:
            raise self._cannot_write(self.path / name, error) from error

    @staticmethod
    def _cannot_write(file: Path, error: OSError) -> RunFolderError:
        return RunFolderError(
            f"cannot write to {file}: {error}; what was recorded before is safe: make room, or mend what is "
            "wrong, and run the same command again"
        )

    def _rows(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from ((at, row) for at, row, _ in read_rows(self._file(name)))

    def _cut_torn_line(self, name: str) -> None:
        """Cut what follows the last whole line off a file."""
        file = self._file(name)
        if not file.exists():
            return
        with file.open("r+b") as opened:
            end = size = opened.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - _BLOCK)
                opened.seek(start)
                found = opened.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            if end < size:
                opened.truncate(end)

    def _compact_journal(self) -> None:
        """Drop the journal of finished queries, which their traces hold."""
        if self._file("journal").exists():
            rows = (row for _, row in self._rows("journal") if row["id"] not in self.finished)
            self._replace("journal.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _open_sink(file: Path) -> IO[bytes]:
    """Open a file to append to, unbuffered: what the disk has no room for must not come out later."""
    return file.open("ab", buffering=0)


def digest_of(query: Any) -> bytes:
    """Return what tells one query from another, in 16 bytes."""
    return hashlib.blake2b(repr(query).encode("utf-8", "replace"), digest_size=16).digest()


def difference(saved: Any, given: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Walk two configurations and yield where they differ: dotted name, saved value, given value."""
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in {**saved, **given}:
            inner = f"{name}.{key}" if name else str(key)
            yield from difference(saved.get(key), given.get(key), inner)
    elif saved != given:
        yield name, saved, given
