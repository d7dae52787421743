"""Grading runs: the same items of all of them, so that figures are of the same queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass

from tpo_modules.benchmarks.base import Answer, Benchmark, Grader, Item, Mark
from tpo_modules.errors import ScorerError
from tpo_modules.estimates import Estimate


@dataclass(frozen=True, slots=True)
class GradedRun:
    """One run's marks and metrics.

    Attributes:
        name: The run's.
        metrics: Over the items that every run has a mark for; the headline first.
        marks: By item id, failed ones too.
        unanswered: Items that the run has no answer to.
        failed: Answers that the grader failed on.
    """

    name: str
    metrics: Mapping[str, Estimate]
    marks: Mapping[str, Mark]
    unanswered: int
    failed: int


@dataclass(frozen=True, slots=True)
class GradeReport:
    """What grading came to.

    Attributes:
        runs: In the order given.
        items: Ids that the metrics rest on: those that every run answered and every answer was marked.
        left_out: How many others there are, left out of all runs alike.
    """

    runs: tuple[GradedRun, ...]
    items: tuple[str, ...]
    left_out: int


def grade_runs(
    benchmark: Benchmark,
    items: Sequence[Item],
    runs: Mapping[str, Mapping[str, Answer]],
    grader: Grader,
    *,
    workers: int = 1,
) -> GradeReport:
    """Grade runs of a benchmark on the items that can be graded in all of them.

    Args:
        benchmark: Whose metrics are taken.
        items: What was asked.
        runs: Answers by item id, by the run's name.
        grader: Marks each answer once.
        workers: Answers marked at a time.

    Raises:
        ScorerError: No item is left: nothing was answered by every run, or the grader failed on everything; the
            message says which, and why.
    """
    marks = {name: mark_answers(items, answers, grader, workers) for name, answers in runs.items()}
    common = [
        item
        for item in items
        if all(item.id in found and found[item.id].value is not None for found in marks.values())
    ]
    if not common:
        raise ScorerError(_why_nothing(marks))
    graded: list[GradedRun] = []
    for name, answers in runs.items():
        values = [marks[name][item.id].value or 0.0 for item in common]
        metrics = benchmark.metrics(common, [answers[item.id] for item in common], values)
        failed = sum(mark.value is None for mark in marks[name].values())
        unanswered = len(items) - len(marks[name])
        graded.append(GradedRun(name, metrics, marks[name], unanswered, failed))
    ids = tuple(item.id for item in common)
    return GradeReport(tuple(graded), ids, len(items) - len(common))


def mark_answers(
    items: Sequence[Item], answers: Mapping[str, Answer], grader: Grader, workers: int
) -> dict[str, Mark]:
    """Mark the items that have an answer, several at a time; where the grader fails, the mark has no value.

    Interrupted, it waits for the answers that are being marked, and begins no other.
    """
    asked = [item for item in items if item.id in answers]
    pool = ThreadPoolExecutor(max_workers=max(1, workers))
    try:
        jobs = [
            pool.submit(copy_context().run, _mark, grader, item, answers[item.id]) for item in asked
        ]
        return {item.id: job.result() for item, job in zip(asked, jobs, strict=True)}
    finally:
        pool.shutdown(cancel_futures=True)


def _mark(grader: Grader, item: Item, answer: Answer) -> Mark:
    try:
        return grader.grade(item, answer)
    except ScorerError as error:
        return Mark(None, str(error))


def _why_nothing(marks: Mapping[str, Mapping[str, Mark]]) -> str:
    notes = [mark.note for found in marks.values() for mark in found.values() if mark.value is None]
    if notes:
        return f"expected marks to report, but the grader failed on every common item: {notes[0]}"
    return f"expected items that all of these runs answered, found none: {', '.join(marks)}"
