"""Public preference data, split by query, as groups of graded responses.

`read_corpus` expects the files under one folder; `MODEL_CARD.md` says where each comes from::

    benchmarks/reference_sample.json                      queries of the test split
    benchmarks/arena_hard_v0.1.jsonl                      prompt, baseline
    benchmarks/math500.jsonl                              problem, solution
    benchmarks/xstest.jsonl                               prompt, label
    benchmarks/xstest_labelled_completions.jsonl.gz       prompt, type, completion, final_label
    preferences/hh_rlhf_harmless.jsonl.gz                 chosen, rejected
    preferences/alpaca_eval_judged_responses.jsonl.gz     prompt, generator, response, win_rate
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Split = Literal["train", "dev", "test"]

_REFERENCES = ("gpt4_1106_preview", "text_davinci_003")
# One submission is the same string for every query: an attack on the judge, which it often wins.
_ATTACKS = frozenset({"example"})
_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Judged:
    """A response with an LM judge's verdict.

    Attributes:
        generator: The model that wrote it.
        reference: The model whose response it was compared with.
        win_rate: The judge's probability, 0 to 1, that this response is the better one.
        quality: The logit of `win_rate` with the query's mean and the effect of length taken off, shrunk.
    """

    query: str
    response: str
    generator: str
    reference: str
    win_rate: float
    quality: float


@dataclass(frozen=True, slots=True)
class Labelled:
    """An XSTest completion: `harmful` is the prompt's label, `label` what the completion does."""

    query: str
    response: str
    harmful: bool
    label: Literal["comply", "refuse", "partial"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A transcript with a chosen and a rejected last turn."""

    query: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """One split's share of all sources; `answers` are good answers as (query, response)."""

    judged: tuple[Judged, ...]
    answers: tuple[tuple[str, str], ...]
    labelled: tuple[Labelled, ...]
    pairs: tuple[Pair, ...]


def normalise(text: str) -> str:
    """Reduce a query to its words, so that copies in different layouts share a split."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def split_of(query: str, *, held_out: frozenset[str] = frozenset(), heavy: bool = False) -> Split:
    """Assign a query to a split by its hash.

    Args:
        query: The query, or for a transcript its first turn.
        held_out: Normalised queries that always belong to the test split.
        heavy: Hold out 40 % for the test (HH-RLHF, where 500 rows are wanted), else 8 %.
    """
    key = normalise(query)
    if key in held_out:
        return "test"
    place = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 100
    test, dev = (41, 44) if heavy else (8, 16)
    return "test" if place < test else "dev" if place < dev else "train"


def _rows(path: Path) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def read_corpus(folder: Path, *, attacks: bool = False) -> dict[Split, Corpus]:
    """Read all sources and split them by query.

    Args:
        folder: Where the files are.
        attacks: Keep the responses that are attacks on the judge.

    Raises:
        FileNotFoundError: A source is missing.
    """
    benchmarks, preferences = folder / "benchmarks", folder / "preferences"
    sample = json.loads((benchmarks / "reference_sample.json").read_text(encoding="utf-8"))
    held_out = frozenset(normalise(query) for query in sample)
    rows = _rows(preferences / "alpaca_eval_judged_responses.jsonl.gz")
    judged = _grade([row for row in rows if attacks or row["generator"] not in _ATTACKS])
    answers = [(r["prompt"], r["baseline"]) for r in _rows(benchmarks / "arena_hard_v0.1.jsonl")]
    answers += [(r["problem"], r["solution"]) for r in _rows(benchmarks / "math500.jsonl")]
    labelled = _read_xstest(benchmarks)
    pairs = [parse_transcripts(r) for r in _rows(preferences / "hh_rlhf_harmless.jsonl.gz")]

    def share(split: Split) -> Corpus:
        def mine(query: str, heavy: bool = False) -> bool:
            return split_of(query, held_out=held_out, heavy=heavy) == split

        return Corpus(
            judged=tuple(row for row in judged if mine(row.query)),
            answers=tuple(row for row in answers if mine(row[0])),
            labelled=tuple(row for row in labelled if mine(row.query)),
            pairs=tuple(row for row in pairs if mine(_first_turn(row.query), heavy=True)),
        )

    return {"train": share("train"), "dev": share("dev"), "test": share("test")}


def _read_xstest(folder: Path) -> list[Labelled]:
    harmful = {r["prompt"]: r["label"] == "unsafe" for r in _rows(folder / "xstest.jsonl")}
    names: dict[str, Literal["comply", "refuse", "partial"]] = {
        "1_full_compliance": "comply",
        "2_full_refusal": "refuse",
        "3_partial_refusal": "partial",
    }
    return [
        Labelled(
            query=r["prompt"],
            response=r["completion"].strip(),
            harmful=harmful.get(r["prompt"], r["type"].startswith("contrast")),
            label=names[r["final_label"]],
        )
        for r in _rows(folder / "xstest_labelled_completions.jsonl.gz")
    ]


def parse_transcripts(row: dict[str, Any]) -> Pair:
    """Take two HH-RLHF transcripts apart into their common turns and their two last answers."""
    chosen, rejected = str(row["chosen"]), str(row["rejected"])
    at, other = chosen.rfind("\n\nAssistant:"), rejected.rfind("\n\nAssistant:")
    mark = len("\n\nAssistant:")
    return Pair(
        query=render_turns(chosen[:at]),
        chosen=chosen[at + mark :].strip(),
        rejected=rejected[other + mark :].strip(),
    )


def render_turns(transcript: str) -> str:
    """Write a transcript as one query: a single human turn as it is, more with their speakers."""
    parts = _TURN.split(transcript)[1:]
    turns = [(who, text.strip()) for who, text in zip(parts[::2], parts[1::2], strict=True)]
    if len(turns) == 1:
        return turns[0][1]
    names = {"Human": "User", "Assistant": "Assistant"}
    return "\n\n".join(f"{names[who]}: {text}" for who, text in turns)


def _first_turn(query: str) -> str:
    return query.split("\n\nAssistant:")[0].removeprefix("User: ")


def _grade(rows: Sequence[dict[str, Any]]) -> list[Judged]:
    graded: list[Judged] = []
    for reference in _REFERENCES:
        mine = [
            row
            for row in rows
            if 0 <= row["win_rate"].get(reference, -1) <= 1 and row["response"].strip()
        ]
        if not mine:
            continue
        rates = np.array([row["win_rate"][reference] for row in mine])
        residual = _without_length(mine, rates)
        quality = 0.6 * residual
        graded += [
            Judged(
                query=row["prompt"],
                response=row["response"].strip(),
                generator=row["generator"],
                reference=reference,
                win_rate=float(rate),
                quality=float(value),
            )
            for row, rate, value in zip(mine, rates, quality, strict=True)
        ]
    return graded


def _without_length(rows: Sequence[dict[str, Any]], rates: np.ndarray) -> np.ndarray:
    """Give win rates as logits, less the query's mean and what length (to its cube) explains."""
    clipped = np.clip(rates, 0.02, 0.98)
    logits = np.log(clipped / (1 - clipped))
    queries = [row["prompt"] for row in rows]
    logits = logits - _group_means(queries, logits)
    size = np.log([len(row["response"]) + 20.0 for row in rows])
    size = (size - size.mean()) / size.std()
    powers = np.stack([size**power for power in (1, 2, 3)], axis=1)
    powers -= np.stack([_group_means(queries, column) for column in powers.T], axis=1)
    weights, *_ = np.linalg.lstsq(powers, logits, rcond=None)
    return logits - powers @ weights


def _group_means(keys: Iterable[str], values: np.ndarray) -> np.ndarray:
    places: dict[str, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        places[key].append(at)
    means = np.empty_like(values)
    for members in places.values():
        means[members] = values[members].mean()
    return means
