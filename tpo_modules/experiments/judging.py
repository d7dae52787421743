"""Judging: a second scorer, which nobody optimised, scores what the methods returned."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import orjson
from pydantic import BaseModel

from tpo_modules.baselines import BestOfNModule
from tpo_modules.errors import explain
from tpo_modules.query import make_query
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.records import as_record, read_rows
from tpo_modules.scorers.base import Query, Scorer
from tpo_modules.step import Step

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Judged:
    """What the judge said.

    Attributes:
        rewards: By query and response.
        failed: Queries that it failed on, with the reason.
    """

    rewards: dict[str, dict[str, float]]
    failed: dict[str, str]

    def reward(self, identity: str, response: str) -> float:
        """Return the judge's reward of a response that it was given."""
        return self.rewards[identity][response]


class _Judgement(BaseModel):
    """One line of the file: what a judge said of responses to a query."""

    id: str
    judge: str
    rewards: dict[str, float]


def judge_responses(
    judge: Scorer,
    wanted: Sequence[tuple[QueryRow, Sequence[str]]],
    *,
    policy: Step,
    out: Path,
) -> Judged:
    """Score responses by a judge, eight queries at a time; each query's rewards are kept as they come.

    An interruption waits for the queries under way, and keeps what comes of them; the same call then asks the rest.

    Args:
        judge: The scorer.
        wanted: Queries, each with its distinct responses.
        policy: The policy step, which knows a query's conversation.
        out: A JSONL file; what it holds of this judge is not asked again. A last line that a crash tore is cut off.

    Raises:
        RunFolderError: The file holds a line that is no judgement; the message names it.
    """
    name = name_of(judge)
    known = _read(out, name)
    failed: dict[str, str] = {}
    lock = Lock()

    def ask(row: QueryRow, responses: Sequence[str]) -> None:
        try:
            query: Query = make_query(policy, row.inputs)
            rewards = _rewards(judge, query, responses)
        except Exception as error:  # noqa: BLE001  a judge may be anything; the query is left out and counted
            failed[row.id] = f"the judge failed: {explain(error)}"
            return
        line = orjson.dumps({"id": row.id, "judge": name, "rewards": rewards}) + b"\n"
        with lock:
            known.setdefault(row.id, {}).update(rewards)
            sink.write(line)
            sink.flush()

    with out.open("ab") as sink, ThreadPoolExecutor(_AT_ONCE) as pool:
        jobs: list[Future[None]] = []
        try:
            for row, responses in wanted:
                missing = [text for text in responses if text not in known.get(row.id, {})]
                if missing:
                    jobs.append(pool.submit(copy_context().run, ask, row, missing))
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not ask the judge of all the rest
            raise
    return Judged(known, {row.id: failed[row.id] for row, _ in wanted if row.id in failed})


def name_of(judge: Scorer) -> str:
    """Name a judge as a run's configuration names its scorer: alike in every process."""
    return str(BestOfNModule(scorer=judge).config()["scorer"])


def _rewards(judge: Scorer, query: Query, responses: Sequence[str]) -> dict[str, float]:
    rewards = [float(reward) for reward in judge.score(query, list(responses))]
    if len(rewards) != len(responses) or not all(map(math.isfinite, rewards)):
        raise ValueError(f"expected {len(responses)} finite rewards, got {rewards}")
    return dict(zip(responses, rewards, strict=True))


def _read(path: Path, judge: str) -> dict[str, dict[str, float]]:
    """Read what a judge said before, and cut off what follows the last whole line, for others to follow it."""
    known: dict[str, dict[str, float]] = {}
    whole = 0
    for at, row, size in read_rows(path):
        judgement = as_record(_Judgement, row, at)
        whole += size
        if judgement.judge == judge:
            known.setdefault(judgement.id, {}).update(judgement.rewards)
    if path.exists() and whole < path.stat().st_size:
        os.truncate(path, whole)
    return known
