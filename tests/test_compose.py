from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_modules.errors import ConfigurationError, RewardError
from tpo_modules.scorers.base import Reward, Scorer
from tpo_modules.scorers.compose import EnsembleScorer, LengthPenalisedScorer
from tpo_modules.scorers.scale import Scale


class Table:
    """A scorer that knows its rewards, and raises on any other response."""

    def __init__(self, rewards: Mapping[str, float]) -> None:
        self.rewards = rewards

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        return [self.rewards[response] for response in responses]


class AsyncTable(Table):
    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        await asyncio.sleep(0)
        return self.score(query, responses)


LENIENT = Table({"x": 1.0, "y": 2.0, "z": 6.0})
HARSH = AsyncTable({"x": -10.0, "y": 30.0, "z": 20.0})
RESPONSES = ["x", "y", "z"]


def ensemble(**options: Any) -> EnsembleScorer:
    return EnsembleScorer({"lenient": LENIENT, "harsh": HARSH}, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [-4.5, 16.0, 13.0]),
        ({"combine": "min"}, [-10.0, 2.0, 6.0]),
        ({"weights": {"lenient": 3, "harsh": 1}}, [-1.75, 9.0, 9.5]),
        ({"weights": {"lenient": 1, "harsh": 0}}, [1.0, 2.0, 6.0]),
        ({"uncertainty_penalty": 0.5}, [-7.25, 9.0, 9.5]),
        (
            {"scales": {"lenient": Scale(3, 2), "harsh": Scale(0, 10)}},
            [-1.0, 1.25, 1.75],
        ),
        (
            {"scales": {"lenient": Scale(3, 2), "harsh": Scale(0, 10)}, "combine": "min"},
            [-1.0, -0.5, 1.5],
        ),
    ],
)
def test_rewards_are_combined_as_written(options: dict[str, Any], expected: list[float]) -> None:
    scorer = ensemble(**options)
    assert scorer.score("q", RESPONSES) == pytest.approx(expected)
    assert asyncio.run(scorer.ascore("q", RESPONSES)) == pytest.approx(expected)


def test_batch_scales_have_mean_zero_and_spread_one_in_each_member() -> None:
    [x, y, z] = EnsembleScorer({"one": LENIENT}, scales="batch").score("q", RESPONSES)
    assert x + y + z == pytest.approx(0)
    assert (x * x + y * y + z * z) / 3 == pytest.approx(1)
    assert EnsembleScorer({"one": LENIENT}, scales="batch").score("q", ["x", "x"]) == [0, 0]


def test_what_differs_by_rounding_alone_is_alike_to_batch_scales() -> None:
    alike = Table({"x": 0.1 + 0.2, "y": 0.3})
    assert EnsembleScorer({"one": alike}, scales="batch").score("q", ["x", "y"]) == [0, 0]


def test_what_differs_by_rounding_alone_has_no_scale() -> None:
    alike = EnsembleScorer({"one": Table({"x": 0.1 + 0.2, "y": 0.3})})
    for pairs in ([("q", "x"), ("q", "y")], [("p", "x"), ("q", "y")]):
        with pytest.raises(ConfigurationError, match="all 2 pairs the same reward"):
            alike.calibrate(pairs)


def test_rewards_whose_squares_overflow_are_averaged_all_the_same() -> None:
    members = {"a": Table({"x": 1e200}), "b": Table({"x": -1e200})}
    assert EnsembleScorer(members).score("q", ["x"]) == [0]
    assert EnsembleScorer(members, uncertainty_penalty=2).score("q", ["x"]) == [
        pytest.approx(-2e200)
    ]


def test_fixed_scales_give_a_response_the_same_reward_in_every_round() -> None:
    scorer = ensemble(scales={"lenient": Scale(3, 2), "harsh": Scale(0, 10)})
    together = scorer.score("q", RESPONSES)
    assert [scorer.score("q", [response])[0] for response in RESPONSES] == together
    by_batch = ensemble(scales="batch")
    assert by_batch.score("q", ["x"]) != by_batch.score("q", RESPONSES)[:1]


def test_calibration_measures_within_queries_and_leaves_the_original_alone() -> None:
    easy = Table({"a": 101.0, "b": 103.0, "c": -101.0, "d": -103.0})
    scorer = EnsembleScorer({"rm": easy}, uncertainty_penalty=0.25)
    fixed = scorer.calibrate([("p", "a"), ("p", "b"), ("q", "c"), ("q", "d")])
    assert scorer.scales is None
    assert isinstance(fixed.scales, dict)
    assert (fixed.scales["rm"].mean, fixed.scales["rm"].std) == pytest.approx((0, math.sqrt(2)))
    assert fixed.uncertainty_penalty == 0.25
    assert fixed.score("p", ["a"]) == pytest.approx([101 / math.sqrt(2)])


def test_calibration_over_all_pairs_where_no_query_has_two_responses() -> None:
    fixed = EnsembleScorer({"rm": LENIENT}, combine="min").calibrate([("p", "x"), ("q", "z")])
    assert fixed.scales == {"rm": Scale(3.5, 2.5)}
    assert fixed.combine == "min"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("q", "x")], "at least two pairs"),
        ([("q", "x"), ("q", "x")], "'lenient' gave all 2 pairs the same reward"),
    ],
)
def test_calibration_that_cannot_work(pairs: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ensemble().calibrate(pairs)


def test_what_one_member_cannot_score_the_ensemble_cannot() -> None:
    half_blind = Table({"x": math.nan, "y": 1.0, "z": 3.0})
    for scales in (None, "batch"):
        scorer = EnsembleScorer({"a": LENIENT, "b": half_blind}, scales=scales)
        [x, y, z] = scorer.score("q", RESPONSES)
        assert math.isnan(x)
        assert isinstance(x, Reward)
        assert x.notes == ("not scored by b",)
        assert math.isfinite(y)
        assert z > y


def test_feedback_and_notes_pass_through_with_the_members_names() -> None:
    talker = Table({"x": Reward(0.5, "too short", ["cut by 3 tokens"])})
    [reward] = EnsembleScorer({"judge": talker, "rm": LENIENT}).score("q", ["x"])
    assert isinstance(reward, Reward)
    assert reward.feedback == "judge (0.5): too short"
    assert reward.notes == ("judge: cut by 3 tokens",)
    [silent] = EnsembleScorer({"rm": LENIENT}).score("q", ["x"])
    assert isinstance(silent, Reward)
    assert silent.feedback is None


def test_a_function_is_a_member() -> None:
    def length(query: str, response: str) -> float:
        return len(response)

    scorer = EnsembleScorer({"length": length, "rm": LENIENT})
    assert scorer.score("q", ["z"]) == [3.5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"combine": "max"}, "'mean' or 'min', got 'max'"),
        ({"combine": "min", "weights": {"lenient": 1, "harsh": 1}}, "takes no weights"),
        ({"combine": "min", "uncertainty_penalty": 1}, "takes no weights"),
        ({"weights": {"lenient": 1}}, r"weights for the members \['harsh', 'lenient'\]"),
        ({"weights": {"lenient": 1, "harsh": -0.5}}, "not negative"),
        ({"weights": {"lenient": 0, "harsh": 0}}, "one of them positive"),
        ({"uncertainty_penalty": -1}, "uncertainty_penalty not to be negative"),
        ({"scales": {"lenient": Scale(0, 1)}}, "scales for the members"),
        ({"scales": "zscore"}, "'batch' or a Scale.* got 'zscore'"),
        ({"scales": {"lenient": (0, 1), "harsh": (0, 1)}}, r"got \{'lenient': \(0, 1\)"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ensemble(**options)


@pytest.mark.parametrize(("mean", "std"), [(0, 0), (0, -1), (math.nan, 1), (0, math.inf)])
def test_scales_that_cannot_work(mean: float, std: float) -> None:
    with pytest.raises(ConfigurationError, match="positive, finite std"):
        Scale(mean, std)


def test_an_ensemble_needs_a_member_and_each_must_answer_for_each_response() -> None:
    with pytest.raises(ConfigurationError, match="at least one member"):
        EnsembleScorer({})

    class Short:
        def score(self, query: str, responses: Sequence[str]) -> list[float]:
            return [1.0]

    with pytest.raises(RewardError, match="'short' gave 1 rewards for 2 responses"):
        EnsembleScorer({"short": Short()}).score("q", ["x", "y"])
    with pytest.raises(RewardError, match="1 rewards for 2 responses"):
        LengthPenalisedScorer(Short(), weight=1).score("q", ["x", "y"])


finite = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=8), st.floats(0, 5))
def test_min_and_cautious_mean_never_exceed_the_mean(
    rewards: list[tuple[float, float]], penalty: float
) -> None:
    texts = [str(i) for i in range(len(rewards))]
    members = {
        "a": Table({t: r[0] for t, r in zip(texts, rewards, strict=True)}),
        "b": Table({t: r[1] for t, r in zip(texts, rewards, strict=True)}),
    }
    mean = EnsembleScorer(members).score("q", texts)
    least = EnsembleScorer(members, combine="min").score("q", texts)
    cautious = EnsembleScorer(members, uncertainty_penalty=penalty).score("q", texts)
    for m, low, c in zip(mean, least, cautious, strict=True):
        assert low <= m + 1e-6
        assert c <= m + 1e-6


# --- length ---------------------------------------------------------------------------------------


def test_length_beyond_the_free_length_costs() -> None:
    inner: Scorer = Table({"one two": 1.0, "one two three four": Reward(2.0, "wordy", ["n"])})
    scorer = LengthPenalisedScorer(inner, weight=0.25, free_length=2)
    for rewards in (
        scorer.score("q", ["one two", "one two three four"]),
        asyncio.run(scorer.ascore("q", ["one two", "one two three four"])),
    ):
        short, long = rewards
        assert (short, long) == (1.0, 1.5)
        assert isinstance(long, Reward)
        assert long.feedback == "wordy"
        assert long.notes == ("n", "length penalty 0.5 (4 words)")
    letters = LengthPenalisedScorer(LENIENT, weight=2, unit="characters")
    assert letters.score("q", ["z"]) == [4.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": -1}, "weight=-1"),
        ({"weight": 1, "free_length": -1}, "free_length=-1"),
        ({"weight": 1, "free_length": math.nan}, "free_length=nan"),
        ({"weight": 1, "unit": "lines"}, "'lines'"),
    ],
)
def test_length_options_that_cannot_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LengthPenalisedScorer(LENIENT, **options)
