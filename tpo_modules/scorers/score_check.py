"""Comparing a scorer's rewards with known ones, and guessing why they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

from tpo_modules.errors import ConfigurationError, ScorerError


def check_rewards(
    got: Sequence[float], expected: Sequence[float], *, tol: float, subject: str
) -> None:
    """Compare rewards with those expected, pair by pair.

    Args:
        got: The rewards that a scorer gave.
        expected: The rewards that it should have given, in the same order; all finite.
        tol: The largest absolute difference allowed.
        subject: What gave the rewards, for the message.

    Raises:
        ConfigurationError: The two are not equally long, or empty, or one is expected to be NaN or
            infinite.
        ScorerError: They differ by more than ``tol``; the message lists the worst and guesses the
            cause.
    """
    if len(got) != len(expected) or not got:
        raise ConfigurationError(
            f"Expected one known reward for each pair, and at least one; got {len(expected)} "
            f"rewards for {len(got)} pairs."
        )
    unknown = [i for i, reward in enumerate(expected) if not math.isfinite(reward)]
    if unknown:
        raise ConfigurationError(
            f"Expected finite known rewards, got {expected[unknown[0]]} for pair {unknown[0]}. Leave "
            "out the pairs that have no reward."
        )
    gaps = [
        abs(g - e) if math.isfinite(g) else math.inf for g, e in zip(got, expected, strict=True)
    ]
    if max(gaps) <= tol:
        return
    worst = sorted(range(len(gaps)), key=lambda i: -gaps[i])[:3]
    shown = "; ".join(f"pair {i}: expected {expected[i]:.6g}, got {got[i]:.6g}" for i in worst)
    raise ScorerError(
        f"{subject} does not give the expected rewards: {sum(g > tol for g in gaps)} of "
        f"{len(gaps)} differ by more than {tol:g} ({shown}). "
        f"{guess_cause(got, expected, tol=tol)}"
    )


def guess_cause(got: Sequence[float], expected: Sequence[float], *, tol: float = 1e-3) -> str:
    """Guess in one sentence why rewards differ from those expected.

    The numbers alone cannot prove a cause; each guess says what it looks like, and what to do about
    it.
    """
    if not all(map(math.isfinite, got)):
        return (
            "Some rewards are not finite: the server could not score them (see their notes), or "
            "the model overflows in its dtype; try bfloat16 or float32."
        )
    near = max(tol, 1e-3)
    for matches, words in _CAUSES:
        if matches(got, expected, near):
            return words
    return _guess_from_correlation(got, expected)


def _close(left: Sequence[float], right: Sequence[float], near: float) -> bool:
    return all(abs(a - b) <= near for a, b in zip(left, right, strict=True))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def _offset(got: Sequence[float], expected: Sequence[float], near: float) -> bool:
    shifts = [g - e for g, e in zip(got, expected, strict=True)]
    return len(got) > 1 and max(shifts) - min(shifts) <= 2 * near


def _straight_line(got: Sequence[float], expected: Sequence[float], near: float) -> bool:
    del near
    return len(got) > 2 and abs(_correlation(got, expected)) > 0.99999


_Matches = Callable[[Sequence[float], Sequence[float], float], bool]
_CAUSES: tuple[tuple[_Matches, str], ...] = (
    (
        lambda g, e, near: _close(g, [_sigmoid(x) for x in e], near),
        "They look like the sigmoid of the expected ones: the server applies an activation. Ask "
        "for raw logits (use_activation=false; for an older vLLM start it with the pooler's "
        "activation off; raw_scores=true for TEI).",
    ),
    (
        lambda g, e, near: _close([_sigmoid(x) for x in g], e, near),
        "The expected ones look like the sigmoid of these: these are raw logits. Give raw "
        "logits as expected.",
    ),
    (
        lambda g, _, near: len(g) > 1 and _close(g, [1.0] * len(g), near),
        "They are all 1, the softmax over a single output: the server applies an activation. "
        "Ask for raw logits (use_activation=false).",
    ),
    (
        lambda g, e, near: len(g) > 1 and _close(g, _softmax(e), near),
        "They look like a softmax of the expected ones: the server applies an activation. Ask "
        "for raw logits (use_activation=false).",
    ),
    (
        lambda g, e, near: _close(g, [math.tanh(x) for x in e], near),
        "They look like the tanh of the expected ones: the server applies an activation. Ask "
        "for raw logits.",
    ),
    (
        lambda g, e, near: _close(g, [-x for x in e], near),
        "They have the opposite sign: the wrong output of the model is read (output=), or a "
        "loss instead of a reward.",
    ),
    (
        _offset,
        "They differ by a constant offset: a doubled or missing BOS token, or a bias or mean "
        "that only one side applies.",
    ),
    (
        lambda g, e, near: _close(sorted(g), sorted(e), near),
        "They are the expected numbers in another order: the pairs and the expected rewards are "
        "not in the same order, or the server's order is not the request's.",
    ),
    (
        _straight_line,
        "They are the expected ones rescaled: one side normalises its rewards (by a mean and a "
        "standard deviation, or a temperature).",
    ),
)


def _guess_from_correlation(got: Sequence[float], expected: Sequence[float]) -> str:
    correlation = _correlation(got, expected)
    if all(0 <= g <= 1 for g in got) and not all(0 <= e <= 1 for e in expected):
        return (
            "They all lie between 0 and 1, the expected ones do not: probabilities rather than "
            "logits. Ask for raw logits, and for the right output of a model with several "
            "(output=)."
        )
    if correlation > 0.999:
        return (
            "They follow the expected ones closely: another precision (bfloat16, float16, a "
            "quantised model). If that is intended, give a larger tol."
        )
    if correlation > 0.7:
        return (
            "They follow the expected ones loosely: the same model with another chat template, "
            "system message, BOS token, or a cut conversation."
        )
    return (
        "They do not follow the expected ones: another model, another output, or no chat template."
    )


def _correlation(left: Sequence[float], right: Sequence[float]) -> float:
    spread = pstdev(left) * pstdev(right)
    if spread == 0:
        return 0.0
    mean_left, mean_right = fmean(left), fmean(right)
    covariance = fmean((a - mean_left) * (b - mean_right) for a, b in zip(left, right, strict=True))
    return covariance / spread
