"""The scale of a scorer's rewards: a mean and a standard deviation, measured once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from tpo_modules.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Scale:
    """Fixed statistics of one member's rewards.

    Attributes:
        mean: Subtracted from each reward.
        std: What the difference is divided by; positive.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ConfigurationError(
                f"Expected a finite mean and a positive, finite std; got {self}."
            )

    def __call__(self, reward: float) -> float:
        """Normalise one reward."""
        return (reward - self.mean) / self.std


def measured_scale(name: str, queries: Sequence[str], rewards: Sequence[float]) -> Scale:
    """Measure a member's scale on rewards of known queries; see `EnsembleScorer.calibrate`.

    Raises:
        ConfigurationError: All rewards are alike (but for rounding), or NaN.
    """
    finite = [(q, float(r)) for q, r in zip(queries, rewards, strict=True) if math.isfinite(r)]
    groups: dict[str, list[float]] = {}
    for query, reward in finite:
        groups.setdefault(query, []).append(reward)
    several = [group for group in groups.values() if len(group) > 1]
    squares = sum((r - fmean(group)) ** 2 for group in several for r in group)
    freedom = sum(len(group) - 1 for group in several)
    rounding = 1e-9 * max((abs(reward) for _, reward in finite), default=0.0)
    std = math.sqrt(squares / freedom) if freedom else 0.0
    if std <= rounding and len(finite) > 1:
        std = pstdev([reward for _, reward in finite])
    if std <= rounding:
        raise ConfigurationError(
            f"The member {name!r} gave all {len(rewards)} pairs the same reward (or none), so it "
            "has no scale. Calibrate on responses that differ, or leave the member out."
        )
    return Scale(fmean(reward for _, reward in finite), std)
