"""Many queries: nothing computed twice, nothing lost, failures kept to their query."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest

from tpo_modules import Reward, TPOModule
from tpo_modules.errors import ConfigurationError, LMCallError, RunFolderError, ScorerError
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


def test_a_smaller_depth_is_no_extension(tmp_path: Path) -> None:
    answer(ScriptedLM(words), tmp_path / "run")
    before = outcome(tmp_path / "run")
    shallower = TPOModule(scorer=reward, width=2, depth=1)
    with pytest.raises(ConfigurationError, match=r"depth of at least 2 .*, got 1; use another"):
        answer(ScriptedLM([]), tmp_path / "run", made=shallower, extend_depth=True)
    assert outcome(tmp_path / "run") == before


def test_queries_of_one_folder_may_be_extended_to_different_depths(tmp_path: Path) -> None:
    rows = [QueryRow(str(n), {"query": f"Why {n}?"}) for n in range(3)]
    made = {depth: TPOModule(scorer=reward, width=2, depth=depth) for depth in (1, 2, 3)}
    answer(ScriptedLM(words), tmp_path / "run", rows, made=made[1])
    for depth, some in ((3, rows[:1]), (2, rows[1:2])):
        answer(ScriptedLM(words), tmp_path / "run", some, made=made[depth], extend_depth=True)
    steps = {name: len(row["rewards_by_step"]) for name, row in results(tmp_path / "run").items()}
    assert steps == {"0": 4, "1": 3, "2": 2}


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


class Flaky:
    """A scorer that is down for so many calls, the first ones or those after so many; it rewards length."""

    def __init__(self, down: int, after: int = 0) -> None:
        self.down = range(after, after + down)
        self.calls = itertools.count()

    def __repr__(self) -> str:
        return "Flaky()"

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        if next(self.calls) in self.down:
            raise ScorerError("the server restarts")
        return [float(len(response)) for response in responses]


def longer_and_longer() -> ScriptedLM:
    lengths = itertools.count(1)
    return ScriptedLM(lambda _: "y" * next(lengths))


def test_samples_whose_scoring_failed_are_kept_and_scored_later(tmp_path: Path) -> None:
    lm, made = longer_and_longer(), TPOModule(scorer=Flaky(4), depth=0, width=3)
    summary = answer(lm, tmp_path / "run", made=made, max_in_flight=1)
    assert (summary.finished, summary.figures["waits"]) == (6, {"ScorerError": 4})
    assert len(lm.requests) == 6 * 3
    assert all(row["reward"] == len(row["response"]) for row in results(tmp_path / "run").values())


@pytest.mark.parametrize("first_round", [["z", "zz", "zzz"], ["z", "", "zzz"]])
def test_rewards_in_a_journal_stay_with_the_samples_that_they_were_given_to(
    first_round: list[str], tmp_path: Path
) -> None:
    folder, made = tmp_path / "run", TPOModule(scorer=Flaky(0), depth=0, width=3)
    answer(longer_and_longer(), folder, queries=["a"], made=made)
    whole = outcome(folder)
    scored, scoring = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    unscored = json.loads(json.dumps(scored))
    for completion, text in zip(unscored["call"]["completions"], first_round, strict=True):
        completion["text"] = text
    lines = [json.dumps(row) + "\n" for row in (unscored, scored, scoring)]
    (folder / "journal.jsonl").write_text("".join(lines))
    (folder / "results.jsonl").write_text("")
    answer(ScriptedLM([]), folder, queries=["a"], made=made)
    assert outcome(folder) == whole


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


@pytest.mark.parametrize("where", ["", "how to change the draft"], ids=["first round", "update"])
@pytest.mark.parametrize("odd", ["", "no number"])
def test_an_outage_is_waited_out_although_one_sample_said_nothing(
    where: str, odd: str, tmp_path: Path
) -> None:
    asked = itertools.count()

    def says(prompt: str) -> str | Exception:
        number = next(asked) if "down" in prompt and where in prompt else 5
        if number < 4:
            return dspy.LMTransportError("connection refused")
        return odd if number == 4 else words(prompt)

    def rated(query: str, response: str) -> float:
        return math.nan if response == odd else 1.0

    lm, made = ScriptedLM(says), TPOModule(scorer=rated, depth=1, width=5)
    summary = answer(lm, tmp_path / "run", queries=["up", "down"], made=made)
    assert (summary.finished, summary.failed) == (2, 0)
    assert {row["status"] for row in results(tmp_path / "run").values()} == {"complete"}
    assert summary.figures["waits"] == {"LMTransportError": 1}
    assert len(lm.requests) == 2 * (5 + 2 + 5) + 5


def test_a_scorer_that_is_down_is_waited_out_although_a_sample_was_refused(tmp_path: Path) -> None:
    refused, serial = itertools.count(), itertools.count()

    def says(prompt: str) -> str | Exception:
        first = "how to change the draft" in prompt and next(refused) == 0
        return dspy.LMInvalidRequestError("filtered") if first else f"{words(prompt)}{next(serial)}"

    lm = ScriptedLM(says)
    made = TPOModule(scorer=Flaky(down=1, after=1), depth=1, width=3)
    summary = answer(lm, tmp_path / "run", queries=["a"], made=made)
    assert summary.figures["waits"] == {"ScorerError": 1}
    assert {row["status"] for row in results(tmp_path / "run").values()} == {"complete"}


class NoNumbers:
    """A scorer that gives NaN, for texts longer than a bound, until it is mended."""

    def __init__(self, bound: int) -> None:
        self.bound = bound

    def __repr__(self) -> str:
        return "NoNumbers()"

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        return [len(r) if len(r) <= self.bound else math.nan for r in responses]


@pytest.mark.parametrize(("bound", "finished"), [(0, 0), (2, 1)])
def test_rewards_that_were_not_finite_are_asked_for_again(
    bound: int, finished: int, tmp_path: Path
) -> None:
    made = TPOModule(scorer=NoNumbers(bound), depth=1, width=2)
    lm = longer_and_longer()
    assert answer(lm, tmp_path / "run", queries=["a"], made=made).finished == finished
    drawn = len(lm.requests)
    made = TPOModule(scorer=NoNumbers(100), depth=1, width=2)
    summary = answer(lm, tmp_path / "run", queries=["a"], made=made, retry_failures=True)
    assert (summary.finished, summary.failed) == (1, 0)
    assert len(lm.requests) == 6  # the samples that were there are scored, not drawn again
    assert drawn == (2 if bound == 0 else 6)
    assert outcome(tmp_path / "run")["0"] == ("y" * 6, 6.0, [[1.0, 2.0], [5.0, 6.0]])


def half(name: str) -> dict[str, Any]:
    """Return what a run with half a character in one place takes."""
    cut = f"{name} \ud83d"
    rows = [QueryRow(cut if name == "id" else "a", {"query": cut if name == "query" else "x"})]
    said = f"<think>{cut}</think>yes" if name == "thinking" else "yes"
    if name == "field":
        said = f"[[ ## reasoning ## ]]\n{cut}\n\n[[ ## response ## ]]\nyes\n\n[[ ## completed ## ]]"
    policy = "query -> reasoning, response" if name == "field" else "query -> response"

    def given(query: str, response: str) -> Reward:
        feedback, notes = cut if name == "feedback" else None, [cut] if name == "notes" else []
        return Reward(1.0, feedback=feedback, notes=notes)

    made = TPOModule(policy, scorer=given, depth=0, width=1, response_field="response")
    return {"lm": ScriptedLM(lambda _: said), "queries": [*rows, "other"], "made": made}


@pytest.mark.parametrize("name", ["id", "query", "thinking", "field", "feedback", "notes"])
def test_half_a_character_costs_no_more_than_its_query(name: str, tmp_path: Path) -> None:
    run, failed = half(name), int(name == "query")
    for _ in range(2):
        summary = answer(folder=tmp_path / "run", **run)
        assert (summary.finished, summary.failed) == (2 - failed, failed)
    assert len(run["lm"].requests) == 2 - failed
    kept = "".join(file.read_text() for file in (tmp_path / "run").glob("*.jsonl"))
    assert f"{name} \ufffd" in kept


def test_an_odd_query_costs_itself_only(tmp_path: Path) -> None:
    class Once(TPOModule):
        async def acall(self, *args: Any, **inputs: Any) -> Any:
            if "3" in inputs["query"]:
                raise ZeroDivisionError("odd")
            return await super().acall(*args, **inputs)

    made = Once(scorer=reward, depth=0, width=1)
    summary = answer(ScriptedLM(words), tmp_path / "run", made=made)
    assert (summary.finished, summary.failed) == (5, 1)
    (line,) = (tmp_path / "run" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == "ZeroDivisionError"


@pytest.mark.parametrize("turn", ["hi", 1, None])
def test_a_history_of_other_things_than_messages_costs_its_query_only(
    turn: Any, tmp_path: Path
) -> None:
    made = TPOModule("history: dspy.History, query -> response", scorer=reward, depth=0, width=1)
    rows = [
        QueryRow(str(i), {"query": "x", "history": {"messages": turns}})
        for i, turns in enumerate(([turn], []))
    ]
    summary = answer(ScriptedLM(words), tmp_path / "run", queries=rows, made=made)
    assert (summary.finished, summary.failed) == (1, 1)
    (line,) = (tmp_path / "run" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == "InputError"


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


@pytest.mark.parametrize("number", [0, -1, "8", 2.0, True])
def test_requests_in_flight_are_a_whole_number(number: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_in_flight to be a whole number of at least"):
        RunSettings(max_in_flight=number)


def test_a_budget_of_money_needs_a_price(tmp_path: Path) -> None:
    lm = ScriptedLM(words)
    with pytest.raises(ConfigurationError, match=r"a price for 'scripted/lm'.*Limits\(prices="):
        answer(lm, tmp_path / "run", limits=Limits(money=0.01))
    assert lm.requests == []
    limits = Limits(money=1e-6 * 20, prices={"scripted/lm": (1.0, 1.0)})
    summary = answer(lm, tmp_path / "run", limits=limits, max_in_flight=1)
    assert summary.left > 0
    assert "money spent" in str(summary.stop_reason)
    known = ScriptedLM(words, model="openai/gpt-4o-mini")
    assert answer(known, tmp_path / "known", limits=Limits(money=100.0)).finished == 6


def test_an_interrupt_inside_a_running_loop_stops_the_run(tmp_path: Path) -> None:
    def slow(prompt: str) -> str:
        time.sleep(0.005)
        if len(lm.requests) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return words(prompt)

    async def cell() -> None:
        answer(lm, tmp_path / "run", queries=queries, max_in_flight=1)

    lm, queries = ScriptedLM(slow), [f"Why {i}?" for i in range(60)]
    loop = (
        asyncio.new_event_loop()
    )  # as Jupyter runs one: `asyncio.run` would take the signal itself
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell())
    loop.close()
    assert len(lm.requests) < 100
    assert answer(ScriptedLM(words), tmp_path / "run", queries=queries).finished == 60


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
        answer(ScriptedLM(no_critiques), tmp_path / "run", queries=queries, max_in_flight=4)
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
