"""`Candidate` and `CandidatePool`: everything sampled so far for one query, with its rewards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Candidate(BaseModel):
    """One scored response.

    Attributes:
        index: Place in the pool, counted from 0 in the order of sampling.
        step: The step that sampled it; 0 is the first round.
        response: The text that was scored.
        reward: Finite; higher is better.
        fields: The policy's other output fields, as the candidate's own policy call gave them, or, for an
            updated candidate, as the candidate it was updated from had them.
        parent: Index of the candidate that the update rewrote; None in the first round.
        copies_parent: Whether the update gave its draft back unchanged, but for white space.
        finish_reason: As the endpoint said it: ``"stop"``, or ``"length"`` for a response cut at the token
            limit. None where the endpoint did not say.
        tokens: Completion tokens: exact where one request gave one sequence, else a share of the
            request's total, or an estimate from the text where the endpoint did not count all sequences.
        thinking: The thinking block that was split off, if any.
        feedback: What the scorer said about the reward, if anything.
        notes: Facts from the scorer, such as a cut input.
    """

    model_config = ConfigDict(frozen=True)

    index: int
    step: int
    response: str
    reward: float
    fields: dict[str, Any] = Field(default_factory=dict)
    parent: int | None = None
    copies_parent: bool = False
    finish_reason: str | None = None
    tokens: int | None = None
    thinking: str | None = None
    feedback: str | None = None
    notes: tuple[str, ...] = ()


class CandidatePool:
    """The candidates of one query (the paper's cache C); it only grows.

    Ties: `chosen` is the *first* of the highest reward, `rejected` the *last* of the lowest, so that they
    differ whenever the pool holds two candidates. The rejected one also differs in text from the chosen one
    whenever the pool holds two texts. A pool with a single text has no rejected candidate.
    """

    def __init__(self, candidates: Iterable[Candidate] = ()) -> None:
        self._candidates = list(candidates)

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Append candidates; nothing is ever taken out or merged."""
        self._candidates.extend(candidates)

    @property
    def chosen(self) -> Candidate:
        """The candidate of the highest reward; the first one of a tie."""
        return self.ranked[0]

    @property
    def rejected(self) -> Candidate | None:
        """The candidate of the lowest reward whose text differs from the chosen one's, or None."""
        return lowest_unlike(self.ranked, self.chosen)

    @property
    def ranked(self) -> list[Candidate]:
        """All candidates, the highest reward first; of a tie, the one sampled first."""
        return sorted(self._candidates, key=lambda candidate: -candidate.reward)

    def of_step(self, step: int) -> list[Candidate]:
        """The candidates that a step sampled, in order."""
        return [candidate for candidate in self._candidates if candidate.step == step]

    def find(self, response: str, fields: dict[str, Any]) -> Candidate | None:
        """Find the first candidate with this text and these other fields: its reward is known."""
        for candidate in self._candidates:
            if candidate.response == response and candidate.fields == fields:
                return candidate
        return None

    def __len__(self) -> int:
        return len(self._candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._candidates)

    def __getitem__(self, index: int) -> Candidate:
        return self._candidates[index]


def lowest_unlike(ranked: list[Candidate], chosen: Candidate) -> Candidate | None:
    """Return the last candidate of a ranking whose text differs from the chosen one's, or None."""
    unlike = (c for c in reversed(ranked) if c.response.strip() != chosen.response.strip())
    return next(unlike, None)
