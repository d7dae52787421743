"""Scorers made of scorers: `EnsembleScorer` and `LengthPenalisedScorer`.

**Over what an ensemble normalises.** Members of different scales (a logit, a share, a length) have
to be brought to one scale before they are averaged. Normalising "over the pool" is not possible in
a scorer: the loop scores each round on its own and compares the rewards of all rounds, so
statistics of one round would make equal responses of two rounds unequal, and could let a late, poor
round win. Keeping statistics from call to call would make the reward of a response depend on what
was scored before it, in whatever order threads happened to run. So there are three ways, and only
the first two keep rewards of different rounds comparable:

- ``scales=None`` (the default): members are used as they are. Right where they share a scale
already.
- ``scales={name: Scale(mean, std)}``: each member is z-normalised by fixed statistics, mostly
  measured once by `EnsembleScorer.calibrate` on pairs like those to come. A monotone, stateless
  transformation: the same response has the same reward in every round, thread and process.
- ``scales="batch"``: each member is z-normalised over the responses of one ``score`` call.
  Comparable only within that call: use it for best-of-N (depth 0) or offline ranking, **not** in a
  loop with depth above 0. A member that rewards all alike (but for rounding) gives 0 to each.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, Literal

from tpo_modules.errors import ConfigurationError, RewardError
from tpo_modules.scorers.base import AsyncScorer, Reward, Scorer
from tpo_modules.scorers.function import as_scorer
from tpo_modules.scorers.pairs import as_pair_scorer
from tpo_modules.scorers.scale import Scale, measured_scale

Combine = Literal["mean", "min"]
Unit = Literal["characters", "words"]


class EnsembleScorer:
    """The rewards of several scorers as one: their mean, their minimum, or a cautious mean.

    With m_i the members' (normalised) rewards of a response and w_i their weights, which are made
    to sum to 1, the reward is

    - ``"mean"``: sum of w_i m_i, minus ``uncertainty_penalty`` times the weighted standard
      deviation of the m_i. A penalty above 0 prefers responses that the members agree on, against
      over-optimising one of them (Coste et al., 2023, "Reward Model Ensembles Help Mitigate
      Overoptimization", there with the variance; the standard deviation keeps the unit of the
      reward).
    - ``"min"``: the smallest of the m_i; weights and penalty do not apply.

    See the module's docstring for what ``scales`` normalises over. If one member cannot score a
    response (NaN), the ensemble cannot either: leaving the member out would compare unlike sums.
    Each member scores all responses; the members' feedback and notes are kept, each with the
    member's name.

    Args:
        members: The scorers (or reward functions, see `as_scorer`) by name, at least one.
        combine: How to combine.
        weights: By name, not negative, at least one positive; equal by default.
        uncertainty_penalty: Not negative.
        scales: None, one `Scale` for every member, or ``"batch"``.

    Raises:
        ConfigurationError: Names that do not match, or numbers that cannot work.
    """

    def __init__(
        self,
        members: Mapping[str, Any],
        *,
        combine: Combine = "mean",
        weights: Mapping[str, float] | None = None,
        uncertainty_penalty: float = 0.0,
        scales: Mapping[str, Scale] | Literal["batch"] | None = None,
    ) -> None:
        if not members:
            raise ConfigurationError("Expected at least one member, got none.")
        self.members = {name: as_scorer(member) for name, member in members.items()}
        self.combine: Combine = combine
        self.weights = _normalised(self.members, weights)
        self.uncertainty_penalty = uncertainty_penalty
        self.scales = _checked_scales(scales, self.members)
        if combine not in ("mean", "min"):
            raise ConfigurationError(f"Expected combine to be 'mean' or 'min', got {combine!r}.")
        if combine == "min" and (weights is not None or uncertainty_penalty):
            raise ConfigurationError("combine='min' takes no weights and no uncertainty_penalty.")
        if not (uncertainty_penalty >= 0 and math.isfinite(uncertainty_penalty)):
            raise ConfigurationError(
                f"Expected uncertainty_penalty not to be negative, got {uncertainty_penalty}."
            )

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Reward each response; the members are called one after the other.

        Raises:
            ScorerError: A member failed as a whole.
        """
        found = {name: m.score(query, responses) for name, m in self.members.items()}
        return self._combined(found, len(responses))

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Do what `score` does, with all members at once."""
        found = await asyncio.gather(
            *(_ascore(member, query, responses) for member in self.members.values())
        )
        return self._combined(dict(zip(self.members, found, strict=True)), len(responses))

    def calibrate(self, pairs: Sequence[tuple[str, str]]) -> EnsembleScorer:
        """Measure each member's scale once, and return an ensemble that is fixed to it.

        The mean is taken over all pairs. The standard deviation is that within queries (of rewards
        minus their query's mean) where some query has several responses, since responses compete
        only within a query; otherwise that of all rewards. Keep the result's ``scales`` (they are
        plain numbers) to build the same ensemble again without measuring.

        Args:
            pairs: (query, response) pairs like those to come; a few dozen, best several responses
                of the policy per query. Each member scores all of them.

        Returns:
            A new ensemble; this one is not changed.

        Raises:
            ConfigurationError: Fewer than two pairs, or a member that rewards all alike.
        """
        if len(pairs) < 2:
            raise ConfigurationError(f"Expected at least two pairs, got {len(pairs)}.")
        queries = [query for query, _ in pairs]
        scales = {
            name: measured_scale(name, queries, as_pair_scorer(member).score_pairs(pairs))
            for name, member in self.members.items()
        }
        return EnsembleScorer(
            self.members,
            combine=self.combine,
            weights=None if self.combine == "min" else self.weights,
            uncertainty_penalty=self.uncertainty_penalty,
            scales=scales,
        )

    def _combined(self, found: Mapping[str, Sequence[float]], count: int) -> list[float]:
        for name, rewards in found.items():
            if len(rewards) != count:
                raise RewardError(
                    f"The member {name!r} gave {len(rewards)} rewards for {count} responses; "
                    "expected one for each, in the same order."
                )
        scaled = {name: self._scaled(name, rewards) for name, rewards in found.items()}
        return [
            self._one(
                {name: rewards[i] for name, rewards in found.items()},
                {name: rewards[i] for name, rewards in scaled.items()},
            )
            for i in range(count)
        ]

    def _scaled(self, name: str, rewards: Sequence[float]) -> list[float]:
        if self.scales is None:
            return [float(reward) for reward in rewards]
        if isinstance(self.scales, dict):
            return [self.scales[name](reward) for reward in rewards]
        finite = [reward for reward in rewards if math.isfinite(reward)]
        if not finite or math.isclose(min(finite), max(finite)):  # but for rounding
            return [reward - reward for reward in rewards]  # 0; stays NaN for NaN
        mean, spread = fmean(finite), pstdev(finite)
        return [(reward - mean) / spread for reward in rewards]

    def _one(self, raw: Mapping[str, float], scaled: Mapping[str, float]) -> Reward:
        feedback, notes = _words(raw)
        missing = [name for name, value in scaled.items() if not math.isfinite(value)]
        if missing:
            notes.append(f"not scored by {', '.join(missing)}")
            return Reward(math.nan, feedback, notes)
        if self.combine == "min":
            return Reward(min(scaled.values()), feedback, notes)
        mean = sum(self.weights[name] * value for name, value in scaled.items())
        deviation = math.hypot(  # the squares themselves could overflow
            *(math.sqrt(self.weights[name]) * (value - mean) for name, value in scaled.items())
        )
        return Reward(mean - self.uncertainty_penalty * deviation, feedback, notes)


class LengthPenalisedScorer:
    """A scorer's reward minus a penalty for each word (or character) beyond a free length.

    The reward is r - weight * max(0, length - free_length). It depends on the response alone, so
    rewards of different rounds stay comparable. Feedback passes through; a note tells the penalty.

    Args:
        scorer: The scorer, or a reward function (see `as_scorer`).
        weight: What one unit costs, in the scorer's unit of reward; not negative.
        free_length: Units that cost nothing.
        unit: What is counted: whitespace-separated words, or characters.

    Raises:
        ConfigurationError: A negative weight or length, or another unit.
    """

    def __init__(
        self, scorer: Any, *, weight: float, free_length: int = 0, unit: Unit = "words"
    ) -> None:
        if not (weight >= 0 and math.isfinite(weight) and free_length >= 0):
            raise ConfigurationError(
                f"Expected weight and free_length not to be negative; got weight={weight} and "
                f"free_length={free_length}."
            )
        if unit not in ("words", "characters"):
            raise ConfigurationError(f"Expected unit to be 'words' or 'characters', got {unit!r}.")
        self.scorer = as_scorer(scorer)
        self.weight = weight
        self.free_length = free_length
        self.unit: Unit = unit

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Reward each response; see `Scorer.score`."""
        return self._penalised(self.scorer.score(query, responses), responses)

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Do what `score` does, without blocking the event loop."""
        return self._penalised(await _ascore(self.scorer, query, responses), responses)

    def _penalised(self, rewards: Sequence[float], responses: Sequence[str]) -> list[float]:
        if len(rewards) != len(responses):
            raise RewardError(
                f"The scorer gave {len(rewards)} rewards for {len(responses)} responses; "
                "expected one for each, in the same order."
            )
        return [self._one(reward, text) for reward, text in zip(rewards, responses, strict=True)]

    def _one(self, reward: float, response: str) -> Reward:
        length = len(response.split()) if self.unit == "words" else len(response)
        penalty = self.weight * max(0, length - self.free_length)
        feedback = reward.feedback if isinstance(reward, Reward) else None
        notes = reward.notes if isinstance(reward, Reward) else ()
        if penalty:
            notes = (*notes, f"length penalty {penalty:.4g} ({length} {self.unit})")
        return Reward(float(reward) - penalty, feedback, notes)


async def _ascore(scorer: Scorer, query: str, responses: Sequence[str]) -> Sequence[float]:
    if isinstance(scorer, AsyncScorer):
        return await scorer.ascore(query, responses)
    return await asyncio.to_thread(scorer.score, query, responses)


def _words(raw: Mapping[str, float]) -> tuple[str | None, list[str]]:
    """Gather the members' feedback and notes, each with the member's name."""
    said = {n: r.feedback for n, r in raw.items() if isinstance(r, Reward) and r.feedback}
    feedback = "\n".join(f"{name} ({raw[name]:.4g}): {text}" for name, text in said.items())
    notes = [
        f"{name}: {note}" for name, r in raw.items() if isinstance(r, Reward) for note in r.notes
    ]
    return feedback or None, notes


def _same_names(what: str, given: Mapping[str, object], members: Mapping[str, Scorer]) -> None:
    if set(given) != set(members):
        raise ConfigurationError(
            f"Expected {what} for the members {sorted(members)}, got them for {sorted(given)}."
        )


def _checked_scales(
    scales: Any, members: Mapping[str, Scorer]
) -> dict[str, Scale] | Literal["batch"] | None:
    if scales is None or scales == "batch":
        return scales
    if not (isinstance(scales, Mapping) and all(isinstance(s, Scale) for s in scales.values())):
        raise ConfigurationError(
            f"Expected scales to be None, 'batch' or a Scale(mean, std) by name, got {scales!r}."
        )
    given: dict[str, Scale] = {**scales}
    _same_names("scales", given, members)
    return given


def _normalised(
    members: Mapping[str, Scorer], weights: Mapping[str, float] | None
) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(members, 1 / len(members))
    _same_names("weights", weights, members)
    total = sum(weights.values())
    if not (math.isfinite(total) and total > 0 and min(weights.values()) >= 0):
        raise ConfigurationError(
            f"Expected weights that are not negative, one of them positive; got {dict(weights)}."
        )
    return {name: weights[name] / total for name in members}
