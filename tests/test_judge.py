"""An LM as a scorer: ratings read from words or from log-probabilities, and comparisons in both orders."""

from __future__ import annotations

import math
from typing import Any

import dspy
import pytest

from signatures import RateWithReason
from tpo_modules import TPOModule
from tpo_modules.errors import ConfigurationError, ScorerError, SignatureError
from tpo_modules.scorers.base import Reward
from tpo_modules.scorers.judge import JudgeScorer, PairwiseJudge, expected_rating, read_rating
from tpo_modules.scorers.pairwise import PairwiseScorer
from tpo_modules.testing import ScriptedLM

SCALE = (1.0, 9.0)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("7", 7.0),
        ("Rating: 8/9.", 8.0),
        ("6 out of 9", 6.0),
        ("It names 3 of 12 causes. Rating: 4", 4.0),
        ("7.5", 7.5),
        ("5 on a scale of 1 to 9", 5.0),
        ("On a scale from 1-9: 4", 4.0),
        ("I give it a 3 (of 1 \u2013 9).", 3.0),
        ("Between 1 and 9, a 2.", 2.0),
        ("120", None),
        ("excellent", None),
        ("", None),
    ],
)
def test_reading_a_rating(text: str, rating: float | None) -> None:
    assert read_rating(text, SCALE) == rating


def token(text: str, **others: float) -> dict[str, Any]:
    top = [{"token": name, "logprob": math.log(p)} for name, p in others.items()]
    first = next(iter(others.values()), 1.0)
    return {"token": text, "logprob": math.log(first), "top_logprobs": top}


def test_the_expected_rating_weighs_the_alternatives_of_the_rating_token() -> None:
    content = [token("Rating"), token(":"), token("7", **{"7": 0.6, "8": 0.2, "x": 0.2})]
    assert expected_rating({"content": content}, SCALE) == pytest.approx((0.6 * 7 + 0.2 * 8) / 0.8)
    assert expected_rating({"content": [token("good")]}, SCALE) is None
    assert expected_rating(None, SCALE) is None


def test_a_rating_is_its_mean_over_samples_and_keeps_reasons_as_feedback() -> None:
    says = "Clear and correct, but short. Rating:"
    lm = ScriptedLM([f"{says} 6", f"{says} 8"])  # in any order
    (reward,) = JudgeScorer(lm, signature=RateWithReason, samples=2).score("q", ["a"])
    assert reward == 7.0
    assert isinstance(reward, Reward)
    assert reward.feedback in {f"{says} 6", f"{says} 8"}


def test_an_unreadable_rating_is_nan_with_a_note_and_a_dead_judge_an_error() -> None:
    rewards = JudgeScorer(ScriptedLM(lambda p: "9" if "fine" in p else "dunno")).score(
        "q", ["fine", "odd"]
    )
    assert rewards[0] == 9.0
    assert math.isnan(rewards[1])
    assert isinstance(rewards[1], Reward)
    assert "dunno" in rewards[1].notes[0]
    dead = ScriptedLM(lambda p: dspy.LMAuthError("no key"))
    with pytest.raises(ScorerError, match="no key"):
        JudgeScorer(dead).score("q", ["a", "b"])


async def test_rating_in_an_event_loop_gives_the_same() -> None:
    judge = JudgeScorer(ScriptedLM(lambda p: str(1 + p.count("!"))))
    assert await judge.ascore("q", ["a", "b!", "c!!"]) == judge.score("q", ["a", "b!", "c!!"])


def test_a_judge_is_refused_what_it_is_not_shown() -> None:
    with pytest.raises(SignatureError, match="chosen_response"):
        JudgeScorer(signature="query, chosen_response -> rating")
    with pytest.raises(ConfigurationError, match="samples"):
        JudgeScorer(samples=0)


def test_a_judge_as_the_scorer_is_no_predictor_of_the_program() -> None:
    tpo = TPOModule(scorer=JudgeScorer(ScriptedLM(lambda p: "5")))
    assert {name for name, _ in tpo.named_predictors()} == {
        "policy.predict",
        "loss.predict",
        "gradient.predict",
        "update.predict",
    }


def judged(prompt: str, verdict: str) -> str:
    """Prefer the response that has more exclamation marks, or whatever stands in one place."""
    if verdict != "fair":
        return verdict
    _, first, second = prompt.split(":\n")[-3:]
    return {True: "A", False: "B"}[first.count("!") > second.count("!")]


def test_comparing_in_both_orders_cancels_a_preference_for_a_place() -> None:
    pairs = [("good!!", "bad"), ("bad", "good!!")]
    fair = PairwiseJudge(ScriptedLM(lambda p: judged(p, "fair")))
    up, down = fair.margins("q", pairs)
    assert up == pytest.approx(math.log(2.5 / 0.5))
    assert down == -up
    partial = PairwiseJudge(ScriptedLM(lambda p: judged(p, "A")))
    assert partial.margins("q", pairs) == [0.0, 0.0]


def test_a_pairwise_judge_scores_against_the_first_round() -> None:
    scorer = PairwiseScorer(PairwiseJudge(ScriptedLM(lambda p: judged(p, "fair"))))
    first = scorer.score("q", ["one!", "two!!"])
    assert first[1] > first[0]
    (later,) = scorer.score("q", ["three!!!"])
    assert later > first[1]
