"""Many queries: nothing computed twice, nothing lost, failures kept to their query."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest

from tpo_modules import TPOModule
from tpo_modules.errors import ConfigurationError, LMCallError, RunFolderError
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.runner import RunSettings, RunSummary, arun_queries, run_queries
from tpo_modules.runs.saved_run import SavedRun
from tpo_modules.runs.tally import Limits
from tpo_modules.testing import ScriptedLM
from tpo_modules.trace import TPOTrace

QUERIES = [QueryRow(f"q{i}", {"query": f"What is {i} plus {i}?"}) for i in range(6)]


really_sleep = asyncio.sleep


def words(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def reward(query: str, response: str) -> float:
    return int(hashlib.sha256(response.encode()).hexdigest()[:4], 16) / 1000


def module(**options: Any) -> TPOModule:
    return TPOModule(scorer=reward, width=2, depth=2, **options)


def answer(
    lm: dspy.LM,
    folder: Path,
    queries: Sequence[QueryRow | str] = QUERIES,
    made: TPOModule | None = None,
    **settings: Any,
) -> RunSummary:
    with dspy.context(lm=lm):
        return run_queries(made or module(), queries, out=folder, settings=RunSettings(**settings))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def outcome(folder: Path) -> dict[str, tuple[str, float, list[list[float]]]]:
    return {
        i: (row["response"], row["reward"], row["rewards_by_step"])
        for i, row in results(folder).items()
    }


@pytest.fixture(autouse=True)
def quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a query that waits for an error to pass wait no time at all."""
    sleep = asyncio.sleep

    async def no_wait(seconds: float) -> None:
        await sleep(0)

    monkeypatch.setattr("tpo_modules.runs.runner.asyncio.sleep", no_wait)


def test_every_query_has_a_result_and_a_trace(tmp_path: Path) -> None:
    summary = answer(ScriptedLM(words), tmp_path / "run")
    assert (summary.finished, summary.failed, summary.left) == (6, 0, 0)
    assert set(results(tmp_path / "run")) == {row.id for row in QUERIES}
    lines = (tmp_path / "run" / "traces.jsonl").read_text().splitlines()
    traces = {row["id"]: TPOTrace.model_validate(row["trace"]) for row in map(json.loads, lines)}
    assert {i: t.pool.chosen.reward for i, t in traces.items()} == {
        i: row["reward"] for i, row in results(tmp_path / "run").items()
    }


def test_the_same_call_again_sends_nothing(tmp_path: Path) -> None:
    answer(ScriptedLM(words), tmp_path / "run")
    again = ScriptedLM(words)
    assert answer(again, tmp_path / "run").finished == 6
    assert again.requests == []


@pytest.mark.parametrize("cut", [1, 5, 9, 20, 33, 47])
def test_a_run_that_broke_off_continues_without_repeating_a_call(tmp_path: Path, cut: int) -> None:
    whole = ScriptedLM(words)
    answer(whole, tmp_path / "whole", max_in_flight=1)

    broken = ScriptedLM(words)

    async def interrupted() -> None:
        job = asyncio.ensure_future(
            arun_queries(
                module(), QUERIES, out=tmp_path / "run", settings=RunSettings(max_in_flight=1)
            )
        )
        while len(broken.requests) < cut:
            await asyncio.wait([job], timeout=0.0005)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    with dspy.context(lm=broken):
        asyncio.run(interrupted())
    assert len(broken.requests) < len(whole.requests)
    resumed = ScriptedLM(words)
    answer(resumed, tmp_path / "run", max_in_flight=1)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    # At most the step in flight is asked again: its samples were not yet recorded.
    repeated = len(broken.requests) + len(resumed.requests) - len(whole.requests)
    assert repeated <= module().width


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    answer(ScriptedLM(words), tmp_path / "run")
    file = tmp_path / "run" / "results.jsonl"
    text = file.read_bytes()
    last = text.rstrip(b"\n").rsplit(b"\n", 1)[1]
    file.write_bytes(text[: -len(last) // 2])
    before = outcome_of_lines(text)
    lm = ScriptedLM(words)
    assert answer(lm, tmp_path / "run").finished == 6
    assert outcome(tmp_path / "run") == before


def outcome_of_lines(text: bytes) -> dict[str, tuple[str, float, list[list[float]]]]:
    rows = [json.loads(line) for line in text.splitlines()]
    return {row["id"]: (row["response"], row["reward"], row["rewards_by_step"]) for row in rows}


def test_a_line_edited_by_hand_is_an_error_that_names_it(tmp_path: Path) -> None:
    answer(ScriptedLM(words), tmp_path / "run")
    file = tmp_path / "run" / "results.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2].replace('"', "'", 3)
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunFolderError, match=r"results\.jsonl, line 3: not JSON"):
        answer(ScriptedLM(words), tmp_path / "run")


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    answer(ScriptedLM(words), tmp_path / "run")
    with pytest.raises(RunFolderError, match="seed: None there, 3 here"):
        answer(ScriptedLM(words), tmp_path / "run", made=module(seed=3))


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    async def both() -> None:
        with dspy.context(lm=ScriptedLM(words)):
            first = asyncio.ensure_future(arun_queries(module(), QUERIES, out=tmp_path / "run"))
            await asyncio.sleep(0)
            with pytest.raises(RunFolderError, match="another process writes"):
                await arun_queries(module(), QUERIES, out=tmp_path / "run")
            await first

    asyncio.run(both())


def test_a_larger_depth_extends_from_the_pools(tmp_path: Path) -> None:
    answer(ScriptedLM(words), tmp_path / "run")
    deeper = TPOModule(scorer=reward, width=2, depth=3)
    lm = ScriptedLM(words)
    summary = answer(lm, tmp_path / "run", made=deeper, extend_depth=True)
    assert summary.finished == 6
    assert len(lm.requests) == 6 * (2 + 2)  # one loss, one gradient, two samples each
    straight = ScriptedLM(words)
    answer(straight, tmp_path / "straight", made=TPOModule(scorer=reward, width=2, depth=3))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_a_passing_error_is_waited_out_and_repeats_no_recorded_call(tmp_path: Path) -> None:
    down = {"left": 0}

    def flaky(prompt: str) -> str | Exception:
        if len(lm.requests) in (20, 21, 30, 31, 45):
            down["left"] += 1
            return dspy.LMServerError("restarting")
        return words(prompt)

    lm = ScriptedLM(flaky)
    summary = answer(lm, tmp_path / "run", max_in_flight=1)
    assert (summary.finished, summary.failed) == (6, 0)
    answer(ScriptedLM(words), tmp_path / "calm")
    assert down["left"] == 5
    statuses = {row["status"] for row in results(tmp_path / "run").values()}
    assert statuses == {"complete"}


def test_an_error_that_cannot_pass_costs_its_query_only(tmp_path: Path) -> None:
    def picky(prompt: str) -> str | Exception:
        if "What is 3" in prompt:
            return dspy.ContextWindowExceededError(message="too long by 12 tokens")
        return words(prompt)

    summary = answer(ScriptedLM(picky), tmp_path / "run")
    assert (summary.finished, summary.failed) == (5, 1)
    (line,) = (tmp_path / "run" / "failures.jsonl").read_text().splitlines()
    failed = json.loads(line)
    assert failed["id"] == "q3"
    assert failed["error"] == "ContextWindowExceededError"
    assert "too long by 12 tokens" in failed["message"]
    untouched = ScriptedLM(words)
    answer(untouched, tmp_path / "run")
    assert untouched.requests == []
    assert answer(ScriptedLM(words), tmp_path / "run", retry_failures=True).failed == 0


def test_a_wrong_key_ends_the_run_at_once(tmp_path: Path) -> None:
    lm = ScriptedLM(lambda _: dspy.LMAuthError("bad key"))
    queries = [f"query {i}" for i in range(500)]
    with pytest.raises(LMCallError, match="nothing works"):
        answer(lm, tmp_path / "run", queries=queries, max_in_flight=4)
    assert len(lm.requests) < 40


def test_a_budget_ends_the_run_with_the_best_so_far(tmp_path: Path) -> None:
    lm = ScriptedLM(words)
    summary = answer(lm, tmp_path / "run", max_in_flight=1, limits=Limits(requests=13))
    assert summary.left > 0
    assert summary.stop_reason is not None
    assert "requests spent" in summary.stop_reason
    statuses = Counter(row["status"] for row in results(tmp_path / "run").values())
    assert statuses["stopped"] >= 1


def test_requests_in_flight_never_exceed_the_cap(tmp_path: Path) -> None:
    most, now = 0, 0

    async def slow(_: Any, request: Any) -> Any:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await really_sleep(0.02)
        now -= 1
        return lm._script_engine.complete(request)  # pyright: ignore[reportPrivateUsage]

    lm = ScriptedLM(words)
    lm._async_engine_spec = type("Slow", (), {"complete": slow})()  # pyright: ignore[reportPrivateUsage]
    answer(lm, tmp_path / "run", max_in_flight=3)
    assert most == 3


def test_torn_lines_of_every_file_are_dropped_before_more_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    answer(ScriptedLM(words), folder, queries=QUERIES[:3])
    for name in ("results", "traces", "failures", "journal"):
        with (folder / f"{name}.jsonl").open("ab") as file:
            file.write(b'{"id": "q3", "half a line' + b"x" * 100_000)
    answer(ScriptedLM(words), folder)
    saved = SavedRun(folder)
    assert set(saved.results) == {row.id for row in QUERIES}
    assert {identity for identity, _ in saved.traces()} == {row.id for row in QUERIES}


def test_records_that_lack_something_are_errors_that_name_the_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    answer(ScriptedLM(words), folder)
    file = folder / "traces.jsonl"
    lines = file.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    del rows[3]["trace"]["calls"][0]["name"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    deeper = TPOModule(scorer=reward, width=2, depth=3)
    with pytest.raises(
        RunFolderError, match=r"traces\.jsonl, line 4: expected a TPOTrace .*edited"
    ):
        answer(ScriptedLM(words), folder, made=deeper, extend_depth=True)


def test_a_folder_of_other_queries_is_refused(tmp_path: Path) -> None:
    answer(ScriptedLM(words), tmp_path / "run")
    others = [QueryRow("q9", {"query": "New?"}), QueryRow("q2", {"query": "Another one?"})]
    with pytest.raises(RunFolderError, match="another query under the id 'q2'"):
        answer(ScriptedLM(words), tmp_path / "run", queries=others)


def test_a_folder_of_other_queries_that_were_only_begun_is_refused(tmp_path: Path) -> None:
    def down_later(prompt: str) -> str | Exception:
        return dspy.LMAuthError("revoked") if "worse grade" in prompt else words(prompt)

    lm = ScriptedLM(down_later)
    with pytest.raises(LMCallError, match="nothing works any more"):
        answer(lm, tmp_path / "run", queries=[f"Why {i}?" for i in range(20)], max_in_flight=1)
    (tmp_path / "run" / "results.jsonl").write_text("")
    with pytest.raises(RunFolderError, match="another query under the id '0'"):
        answer(ScriptedLM(words), tmp_path / "run", queries=["What?"])


def test_a_run_that_cannot_go_on_says_what_failed(tmp_path: Path) -> None:
    def no_critiques(prompt: str) -> str | Exception:
        return dspy.LMAuthError("revoked") if "worse grade" in prompt else words(prompt)

    def down(prompt: str) -> Exception:
        return dspy.LMTransportError("no route to the server")

    queries = [f"Why {i}?" for i in range(20)]
    with pytest.raises(LMCallError, match="nothing works any more"):
        answer(ScriptedLM(no_critiques), tmp_path / "run", queries=queries)
    with pytest.raises(LMCallError, match=r"nothing works: .*: LMTransportError: no route"):
        answer(ScriptedLM(down), tmp_path / "run", queries=queries)


def test_without_an_lm_the_run_ends_with_an_error(tmp_path: Path) -> None:
    with dspy.context(lm=None), pytest.raises(ConfigurationError, match="no LM"):
        run_queries(module(), QUERIES, out=tmp_path / "run")


@pytest.mark.parametrize("bad", [QueryRow(3, {"query": "x"}), {"query": "x"}, None])  # pyright: ignore[reportArgumentType]
def test_what_is_no_query_is_refused(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a string as id"):
        answer(ScriptedLM(words), tmp_path / "run", queries=[bad])


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    twice = [QueryRow("a", {"query": "x"}), QueryRow("a", {"query": "y"})]
    with pytest.raises(ConfigurationError, match="unique"):
        answer(ScriptedLM(words), tmp_path / "run", queries=twice)
