"""Faults on real processes: a server that errs, hangs and restarts, and a disk that is full.

Nothing may be lost, nothing done twice, each failure named, and the folder must resume.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import dspy
import pytest

from tests.perf.fake_server import FakeServer, start_server
from tpo_modules import TPOModule
from tpo_modules.errors import LMCallError, RunFolderError
from tpo_modules.lms.openai_lm import OpenAIServerLM
from tpo_modules.runs.runner import RunSettings, RunSummary, arun_queries

pytestmark = pytest.mark.server

QUERIES = [f"[q{i}] Tell me about the number {i}." for i in range(10)]
CALLS = 7 * len(QUERIES)
IN_FLIGHT = 4


def letters(query: str, response: str) -> float:
    return sum(i * ord(letter) for i, letter in enumerate(response)) % 1009


def run(server: FakeServer, out: Path, *, timeout: float = 20.0, **settings: Any) -> RunSummary:
    return asyncio.run(arun(server, out, timeout=timeout, **settings))


async def arun(
    server: FakeServer, out: Path, *, timeout: float = 20.0, **settings: Any
) -> RunSummary:
    lm = OpenAIServerLM(
        "openai/fake",
        api_base=server.url,
        cache=False,
        timeout=timeout,
        num_retries=1,
        backoff=0.01,
    )
    module = TPOModule(scorer=letters, seed=0)
    chosen = RunSettings(max_in_flight=IN_FLIGHT, **settings)
    with dspy.context(lm=lm):
        return await arun_queries(module, QUERIES, out=out, settings=chosen)


def rows(out: Path, name: str = "results") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def outcome(out: Path) -> dict[str, Any]:
    found = rows(out)
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: (row["response"], row["rewards_by_step"], row["status"]) for row in found}


def answered(server: FakeServer) -> Counter[str]:
    return Counter(row["key"] for row in server.served() if row["outcome"] == "served")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpo_modules.runs.answering._LONGEST_PAUSE", 0.05)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what an undisturbed run comes to; the server's texts depend on the requests alone."""
    folder = tmp_path_factory.mktemp("calm")
    with start_server() as server:
        run(server, folder / "run")
        assert server.stats()["served"] == CALLS
    return outcome(folder / "run")


KINDS = {
    "rate_limit": "LMRateLimitError",
    "server_error": "LMServerError",
    "unavailable": "LMServerError",
    "gateway_timeout": "LMTimeoutError",
    "hang": "LMTimeoutError",
    "reset": "LMTransportError",
    "half_body": "LMTransportError",
    "garbage": "LMServerError",
    "no_choices": "LMServerError",
}


@pytest.mark.parametrize("kind", KINDS)
def test_errors_that_pass_leave_no_mark_on_the_results(
    kind: str, tmp_path: Path, calm: dict[str, Any]
) -> None:
    timeout = 2.0 if kind == "hang" else 20.0
    with start_server(log=tmp_path / "log", faults={kind: 0.3}, retry_after=0.02, seed=0) as server:
        summary = run(server, tmp_path / "run", timeout=timeout)
        outcomes = server.stats()["outcomes"]
        repeated = {key: n for key, n in answered(server).items() if n > 1}
    assert (summary.finished, summary.failed, summary.left) == (len(QUERIES), 0, 0)
    assert outcome(tmp_path / "run") == calm
    assert outcomes["served"] == CALLS
    assert sum(outcomes.values()) - CALLS > 0.2 * CALLS
    assert repeated == {}
    # With one retry in the LM, some requests fail twice in a row: these the run itself waited out, by name.
    assert set(summary.figures["waits"]) == {KINDS[kind]}


def test_errors_of_every_kind_at_once(tmp_path: Path, calm: dict[str, Any]) -> None:
    faults = {kind: 0.03 for kind in KINDS if kind != "hang"}
    with start_server(log=tmp_path / "log", faults=faults, retry_after=0.02) as server:
        summary = run(server, tmp_path / "run")
        assert max(answered(server).values()) == 1
    assert (summary.finished, summary.failed) == (len(QUERIES), 0)
    assert outcome(tmp_path / "run") == calm


@pytest.mark.parametrize("kind", ["empty", "null"])
def test_completions_that_say_nothing_are_named_and_can_be_tried_again(
    kind: str, tmp_path: Path, calm: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    with start_server(log=tmp_path / "log", faults={kind: 0.3}) as server:
        summary = run(server, out)
        assert summary.finished + summary.failed == len(QUERIES)
        failed, cut = rows(out, "failures"), [r for r in rows(out) if r["status"] == "failed"]
        assert failed
        assert cut
        assert {row["error"] for row in failed} == {"EmptyResponse"}
        assert {row["failures"][-1]["type"] for row in cut} == {"EmptyResponse"}
        latest: dict[str, dict[str, Any]] = {}
        for _ in range(20):
            summary = run(server, out, retry_failures=True)
            latest = {row["id"]: row for row in rows(out)}
            if not summary.failed and all(r["status"] == "complete" for r in latest.values()):
                break
        assert max(answered(server).values()) == 1
    assert {
        i: (r["response"], r["rewards_by_step"], r["status"]) for i, r in latest.items()
    } == calm


def test_a_request_that_hangs_is_given_up_and_made_again(
    tmp_path: Path, calm: dict[str, Any]
) -> None:
    with start_server(log=tmp_path / "log") as server:
        server.configure(script=["served"] * 20 + ["hang", "hang"])
        summary = run(server, tmp_path / "run", timeout=2.0)
        assert Counter(row["outcome"] for row in server.served()) == {
            "served": CALLS,
            "abandoned": 2,
        }
    assert summary.finished == len(QUERIES)
    assert outcome(tmp_path / "run") == calm


def test_a_server_that_restarts_midway(tmp_path: Path, calm: dict[str, Any]) -> None:
    async def restarted(server: FakeServer) -> RunSummary:
        job = asyncio.ensure_future(arun(server, tmp_path / "run"))
        for share in (0.3, 0.6):
            while len(server.served()) < share * CALLS:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.3)
            assert not job.done()
            await asyncio.to_thread(server.revive)
        return await job

    with start_server(log=tmp_path / "log", median=0.03) as server:
        summary = asyncio.run(restarted(server))
        assert max(answered(server).values()) == 1
    assert (summary.finished, summary.failed) == (len(QUERIES), 0)
    assert "LMTransportError" in summary.figures["waits"]
    assert outcome(tmp_path / "run") == calm


@pytest.mark.parametrize("kind", ["auth", "quota"])
def test_a_key_that_stops_working_stops_the_run_and_the_same_command_continues(
    kind: str, tmp_path: Path, calm: dict[str, Any]
) -> None:
    with start_server(log=tmp_path / "log") as server:
        server.configure(script=["served"] * 24 + [kind] * 40)
        with pytest.raises(LMCallError, match=r"nothing works any more.*same command continues"):
            run(server, tmp_path / "run")
        sent = server.stats()["requests"]
        assert sent < 24 + 20
        server.reset()
        summary = run(server, tmp_path / "run")
    assert summary.failed == 0
    assert {row["id"] for row in rows(tmp_path / "run")} == set(calm)


# --- a disk that is full


class FullDisk:
    """A file on a disk with room for so many bytes more."""

    room = 0

    def __init__(self, file: Path) -> None:
        self._file = file.open("ab", buffering=0)

    def write(self, data: memoryview) -> int:
        if FullDisk.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._file.write(data[: FullDisk.room])
        FullDisk.room -= written
        return written

    def close(self) -> None:
        self._file.close()


@pytest.mark.parametrize("room", [100, 20_000, 90_000, 150_000])
def test_a_writer_that_fails_ends_the_run_and_the_folder_resumes(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    with start_server(log=tmp_path / "log", median=0.002) as server:
        with monkeypatch.context() as patch:
            patch.setattr("tpo_modules.runs.run_folder._open_sink", FullDisk)
            FullDisk.room = room
            with pytest.raises(RunFolderError, match=r"cannot write to .*No space left"):
                run(server, out)
        assert server.stats()["requests"] < CALLS
        summary = run(server, out)
        assert sum(answered(server).values()) - CALLS <= 2 * IN_FLIGHT
    assert summary.finished == len(QUERIES)
    assert outcome(out) == calm
    assert {row["id"] for row in rows(out, "traces")} == set(calm)


class FullOnce(FullDisk):
    """A file whose disk is full in the middle of its seventh line, and then has room again."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._writes = 0

    def write(self, data: memoryview) -> int:
        self._writes += 1
        if self._writes == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data[: len(data) // 2] if self._writes == 7 else data)


def test_nothing_is_written_behind_a_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    with start_server(log=tmp_path / "log", median=0.002) as server:
        with monkeypatch.context() as patch:
            patch.setattr("tpo_modules.runs.run_folder._open_sink", FullOnce)
            with pytest.raises(RunFolderError, match=r"cannot write to .*No space left"):
                run(server, out)
        assert run(server, out).finished == len(QUERIES)
    assert outcome(out) == calm


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """Mount a file system of 160 kB, where this user may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError as error:
        pytest.skip(f"cannot mount a small file system: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_a_disk_that_is_full_ends_the_run_and_the_folder_resumes(
    small_disk: Path, tmp_path: Path, calm: dict[str, Any]
) -> None:
    out = small_disk / "run"
    with start_server(log=tmp_path / "log", median=0.002) as server:
        with pytest.raises(RunFolderError, match="No space left"):
            run(server, out)
        with pytest.raises(RunFolderError, match="No space left"):
            run(server, out)
        command = ["mount", "-o", "remount,size=10m", str(small_disk)]
        subprocess.run(command, check=True, timeout=20)
        summary = run(server, out)
        assert sum(answered(server).values()) - CALLS <= 4 * IN_FLIGHT
    assert summary.finished == len(QUERIES)
    assert outcome(out) == calm
