"""What rewards say about a scorer: accuracy on preferences, and how much it goes by length.

Pure functions from records to numbers; `tpo score` prints them. Lengths are in characters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean, pstdev

from tpo_modules.scorers.base import Query, Scorer
from tpo_modules.scorers.function import as_reward
from tpo_modules.scorers.pairs import as_pair_scorer, query_identity
from tpo_modules.scorers.preference_data import PreferenceRow, ResponseRow

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often the chosen response has the higher reward.

    Attributes:
        pairs: Pairs with two finite rewards; the basis of all the others.
        wins: Those where the chosen response has the higher reward.
        ties: Those with equal rewards; each counts as half a win.
        unscored: Pairs left out since a reward is NaN.
        value: (wins + ties / 2) / pairs; NaN without pairs.
        low: Lower end of the 95 % confidence interval (Wilson).
        high: Its upper end.
    """

    pairs: int
    wins: int
    ties: int
    unscored: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How rewards go with the length of responses.

    Attributes:
        longer_wins: Share of pairs of different lengths in which the longer response has the higher
            reward (ties count half); None without such pairs.
        longer_chosen: Share of the same pairs in which the longer response is the chosen one: what
            the data itself prefers.
        correlation: Pearson's correlation of reward with length over all responses; None where one
            of the two does not vary.
        within_query: The same after subtracting each query's own means, over queries with several
            responses: what matters when responses to one query compete.
    """

    longer_wins: float | None
    longer_chosen: float | None
    correlation: float | None
    within_query: float | None


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """What a preference file says about a scorer.

    Attributes:
        overall: Accuracy on all pairs.
        by_category: Accuracy by category, sorted by name; empty where no row has one.
        mean_margin: Mean reward of the chosen minus that of the rejected; None without pairs.
        length: The length bias.
    """

    overall: Accuracy
    by_category: dict[str, Accuracy]
    mean_margin: float | None
    length: LengthBias


@dataclass(frozen=True, slots=True)
class Summary:
    """The distribution of some rewards.

    Attributes:
        responses: Responses with a finite reward; the basis of all the others.
        unscored: Responses left out since their reward is NaN.
        mean: Their mean; None without responses, as the next three.
        std: Their standard deviation (of the population).
        lowest: The lowest.
        highest: The highest.
    """

    responses: int
    unscored: int
    mean: float | None
    std: float | None
    lowest: float | None
    highest: float | None


@dataclass(frozen=True, slots=True)
class RewardReport:
    """What a file of responses says about a scorer.

    Attributes:
        overall: All rewards.
        by_category: Rewards by category, sorted by name; empty where no row has one.
        length: The length bias; its shares of pairs are None.
    """

    overall: Summary
    by_category: dict[str, Summary]
    length: LengthBias


def score_all(
    scorer: Scorer,
    pairs: Sequence[tuple[str, str]],
    *,
    chunk: int = 128,
    workers: int = 1,
    on_progress: Callable[[Sequence[float]], None] | None = None,
) -> list[float]:
    """Score many pairs, a chunk at a time.

    Args:
        scorer: The scorer; one with ``score_pairs`` gets a chunk in one call.
        pairs: (query, response) pairs.
        chunk: Pairs per chunk.
        workers: Chunks scored at once, in threads; more than 1 suits judges.
        on_progress: Called after each chunk with the rewards of all pairs so far.

    Returns:
        One reward per pair, same order.

    Raises:
        ScorerError: The scorer failed as a whole, or gave something that is no number.
    """
    many = as_pair_scorer(scorer)
    chunks = [pairs[i : i + chunk] for i in range(0, len(pairs), chunk)]
    rewards: list[float] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="tpo-score") as pool:
        for found in pool.map(many.score_pairs, chunks):
            rewards += map(as_reward, found)
            if on_progress is not None:
                on_progress(rewards)
    return rewards


def preference_report(
    rows: Sequence[PreferenceRow], rewards: Sequence[tuple[float, float]]
) -> PreferenceReport:
    """Report on preferences.

    Args:
        rows: The preferences.
        rewards: For each row the rewards of its chosen and its rejected response.
    """
    margins = [chosen - rejected for chosen, rejected in rewards]
    scored = [margin for margin in margins if math.isfinite(margin)]
    responses = [
        (row.query, len(text), reward)
        for row, (chosen, rejected) in zip(rows, rewards, strict=True)
        for text, reward in ((row.chosen, chosen), (row.rejected, rejected))
    ]
    return PreferenceReport(
        overall=accuracy(margins),
        by_category={
            name: accuracy([margins[i] for i in indices])
            for name, indices in _by_category([row.category for row in rows]).items()
        },
        mean_margin=fmean(scored) if scored else None,
        length=LengthBias(*_longer(rows, margins), *_correlations(responses)),
    )


def reward_report(rows: Sequence[ResponseRow], rewards: Sequence[float]) -> RewardReport:
    """Report on responses: one reward per row."""
    responses = [
        (row.query, len(row.response), reward) for row, reward in zip(rows, rewards, strict=True)
    ]
    return RewardReport(
        overall=_summary(rewards),
        by_category={
            name: _summary([rewards[i] for i in indices])
            for name, indices in _by_category([row.category for row in rows]).items()
        },
        length=LengthBias(None, None, *_correlations(responses)),
    )


def accuracy(margins: Sequence[float]) -> Accuracy:
    """Count margins above zero as wins, zeros as half a win, and leave NaN out."""
    scored = [margin for margin in margins if math.isfinite(margin)]
    wins = sum(margin > 0 for margin in scored)
    ties = sum(margin == 0 for margin in scored)
    value, low, high = wilson(wins + ties / 2, len(scored))
    return Accuracy(len(scored), wins, ties, len(margins) - len(scored), value, low, high)


def wilson(successes: float, trials: int) -> tuple[float, float, float]:
    """Give a share and its 95 % confidence interval by Wilson's score method.

    Returns:
        The share, and the interval's ends; NaN, 0 and 1 without trials.
    """
    if trials == 0:
        return math.nan, 0.0, 1.0
    share = successes / trials
    shrink = 1 + _Z95**2 / trials
    centre = (share + _Z95**2 / (2 * trials)) / shrink
    spread = share * (1 - share) / trials + _Z95**2 / (4 * trials**2)
    half = _Z95 * math.sqrt(spread) / shrink
    # At 0 and at 1 rounding could put an end on the wrong side of the share.
    return share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Give Pearson's correlation, or None where one side does not vary."""
    if len(left) < 2:
        return None
    mean_left, mean_right = fmean(left), fmean(right)
    a = [x - mean_left for x in left]
    b = [y - mean_right for y in right]
    if max(map(abs, a)) <= 1e-12 * max(map(abs, left)):  # only rounding varies
        return None
    if max(map(abs, b)) <= 1e-12 * max(map(abs, right)):
        return None
    norm = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return max(-1.0, min(1.0, sum(x * y for x, y in zip(a, b, strict=True)) / norm))


def _by_category(categories: Sequence[str | None]) -> dict[str, list[int]]:
    if all(category is None for category in categories):
        return {}
    found: dict[str, list[int]] = {}
    for index, category in enumerate(categories):
        found.setdefault(category or "(none)", []).append(index)
    return dict(sorted(found.items()))


def _summary(rewards: Sequence[float]) -> Summary:
    scored = [float(reward) for reward in rewards if math.isfinite(reward)]
    unscored = len(rewards) - len(scored)
    if not scored:
        return Summary(0, unscored, None, None, None, None)
    return Summary(len(scored), unscored, fmean(scored), pstdev(scored), min(scored), max(scored))


def _longer(
    rows: Sequence[PreferenceRow], margins: Sequence[float]
) -> tuple[float | None, float | None]:
    """Give the shares in which the longer response wins, and in which it is the chosen one."""
    wins: list[float] = []
    chosen: list[bool] = []
    for row, margin in zip(rows, margins, strict=True):
        longer = len(row.chosen) - len(row.rejected)
        if longer and math.isfinite(margin):
            chosen.append(longer > 0)
            wins.append(0.5 if margin == 0 else float((margin > 0) == (longer > 0)))
    return (fmean(wins), fmean(chosen)) if wins else (None, None)


def _correlations(
    responses: Sequence[tuple[Query, int, float]],
) -> tuple[float | None, float | None]:
    """Correlate length with reward: over all responses, and within queries."""
    scored = [(q, float(n), float(r)) for q, n, r in responses if math.isfinite(r)]
    groups: dict[object, list[tuple[float, float]]] = {}
    for query, length, reward in scored:
        groups.setdefault(query_identity(query), []).append((length, reward))
    lengths: list[float] = []
    rewards: list[float] = []
    for group in groups.values():
        if len(group) > 1:
            mean_length, mean_reward = (fmean(column) for column in zip(*group, strict=True))
            lengths += [length - mean_length for length, _ in group]
            rewards += [reward - mean_reward for _, reward in group]
    overall = correlation([n for _, n, _ in scored], [r for _, _, r in scored])
    return overall, correlation(lengths, rewards)
