"""Any scorer as one of (query, response) pairs, which is what batching and evaluation work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tpo_modules.errors import RewardError
from tpo_modules.scorers.base import Query, Scorer


@runtime_checkable
class ScoresPairs(Protocol):
    """A scorer that takes pairs of many queries at once, as reward models and servers do."""

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        """Reward each (query, response); one reward per pair, same order."""
        ...


class QueryByQuery:
    """A scorer without ``score_pairs`` as one with it: the pairs of one query are scored together.

    Args:
        scorer: The scorer.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Call ``score`` once for each distinct query, in the order of their first pairs.

        Raises:
            RewardError: The scorer gave another number of rewards than there were responses.
        """
        groups: dict[object, list[int]] = {}
        for index, (query, _) in enumerate(pairs):
            groups.setdefault(query_identity(query), []).append(index)
        rewards: dict[int, float] = {}
        for indices in groups.values():
            found = self.scorer.score(pairs[indices[0]][0], [pairs[i][1] for i in indices])
            if len(found) != len(indices):
                raise RewardError(
                    f"{type(self.scorer).__name__} gave {len(found)} rewards for {len(indices)} "
                    "responses; expected one for each, in the same order."
                )
            rewards.update(zip(indices, found, strict=True))
        return [rewards[index] for index in range(len(pairs))]


def query_identity(query: str) -> object:
    """Tell queries apart that have the same text but other messages or inputs."""
    if not isinstance(query, Query):
        return query
    turns = tuple((message["role"], message["content"]) for message in query.messages)
    return (str(query), turns, repr(sorted(query.inputs.items(), key=lambda pair: pair[0])))


def as_pair_scorer(scorer: Scorer) -> ScoresPairs:
    """Return a scorer that takes pairs: the scorer itself where it does, else a wrapper."""
    return scorer if isinstance(scorer, ScoresPairs) else QueryByQuery(scorer)
