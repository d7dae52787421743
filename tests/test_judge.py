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
from tpo_modules.scorers.judge import JudgeScorer, PairwiseJudge
from tpo_modules.scorers.judgements import expected_rating, read_rating, read_verdict
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


@pytest.mark.parametrize(
    ("tokens", "scale", "rating"),
    [
        (["8", "/", "9"], (1, 9), 8.0),
        ([" 6", " out", " of", " ", "9"], (1, 9), 6.0),
        (["4", " (", "of", " ", "1", "-", "9", ")"], (1, 9), 4.0),
        (["7", ".", "5"], (1, 9), 7.5),
        (["1", "0"], (0, 10), 10.0),
        (["1", "0"], (1, 10), 10.0),
        (["8", "5"], (0, 100), 85.0),
        (["-", "5"], (-9, 9), -5.0),
        (["120"], (1, 9), None),
        (["\u00b2"], (1, 9), None),
        ([" 7", "\n"], (1, 9), 7.0),
    ],
)
def test_tokens_and_text_hold_the_same_rating(
    tokens: list[str], scale: tuple[float, float], rating: float | None
) -> None:
    content = [token(text, **{text: 1.0}) for text in tokens]
    assert expected_rating({"content": content}, scale) == rating
    assert read_rating("".join(tokens), scale) == rating


def test_a_token_that_begins_a_longer_rating_has_no_part_in_the_expected_one() -> None:
    nine = {"content": [token("9", **{"9": 0.5, "1": 0.3, "8": 0.1, "0": 0.1})]}
    assert expected_rating(nine, (1, 9)) == pytest.approx((0.5 * 9 + 0.3 + 0.1 * 8) / 0.9)
    assert expected_rating(nine, (1, 10)) == pytest.approx((0.5 * 9 + 0.1 * 8) / 0.6)
    assert expected_rating(nine, (0, 10)) == pytest.approx((0.5 * 9 + 0.1 * 8) / 0.7)
    one = {"content": [token("1", **{"1": 0.6, "9": 0.4})]}
    assert expected_rating(one, (1, 10)) == 1.0, "some of its probability may be that of 10"
    ten = {"content": [token("10", **{"10": 0.75, "8": 0.25})]}
    assert expected_rating(ten, (1, 10)) == pytest.approx(9.5)


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


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", "A"),
        (" **B**.", "B"),
        ("Verdict: T", "T"),
        ("[[B]]", "B"),
        ("Answer B", "B"),
        ("Tie", "T"),
        ("A tie.", "T"),
        ("It is a tie between A and B.", "T"),
        ("A close call, but B is better.", "B"),
        ("A close call, but A is better.", "A"),
        ("A close call.\nB", "B"),
        ("A is better than B.", "A"),
        ("B is clearly better because A is too short.", "B"),
        ("B. A is too short.", "B"),
        ("B, since A does not answer.", "B"),
        ("A is short, B is long. The better answer is A.", "A"),
        ("A is better in tone, B in substance.\n\nVerdict: **B**", "B"),
        ("Verdict: B\nReason: A is too short.", "B"),
        ("A is better in style, but not overall.\n\nB", "B"),
        ("A is better in style; all in all, the better answer is B.", "B"),
        ("The better answer is A because B is short.", "A"),
        ("The second answer (B) is better than the first (A).", "B"),
        ("Answer A: clear. Answer B: short.", None),
        ("I prefer A over B.", "A"),
        ("I would go with B.", "B"),
        ("Neither A nor B is better.", None),
        ("A is not helpful.", None),
        ("A is more vivid, B more exact.", None),
        ("A close call.", None),
        ("I cannot say.", None),
        ("", None),
    ],
)
def test_reading_a_verdict(text: str, verdict: str | None) -> None:
    assert read_verdict(text) == verdict


def test_an_article_is_no_verdict() -> None:
    def say(prompt: str) -> str:
        return f"A close call, but {judged(prompt, 'fair')} is better."

    pairs = [("good!!", "bad"), ("bad", "good!!")]
    assert PairwiseJudge(ScriptedLM(say)).margins("q", pairs) == pytest.approx(
        [math.log(5), -math.log(5)]
    )


@pytest.mark.parametrize(
    ("instead", "note"),
    [
        ("I cannot say.", "no verdict in 'I cannot say.'"),
        (dspy.LMAuthError("no key"), "no verdict: LMAuthError: "),
    ],
)
def test_without_a_verdict_in_one_order_there_is_no_margin(
    instead: str | Exception, note: str
) -> None:
    def say(prompt: str) -> str | Exception:
        return "A" if judged(prompt, "fair") == "A" else instead

    (margin,) = PairwiseJudge(ScriptedLM(say)).margins("q", [("good!!", "bad")])
    assert math.isnan(margin)
    assert isinstance(margin, Reward)
    assert len(margin.notes) == 1
    assert margin.notes[0].startswith(note)


def test_orders_weigh_alike_where_some_verdicts_cannot_be_read() -> None:
    lm = ScriptedLM(["A", "A", "A", "hm"])  # of whichever order: the place is all that counts
    (margin,) = PairwiseJudge(lm, samples=2).margins("q", [("x", "y")])
    assert margin == 0.0
    assert isinstance(margin, Reward)
    assert margin.notes == ("no verdict in 'hm'",)


def test_a_silent_pairwise_judge_gives_no_reward_and_says_so() -> None:
    silent = PairwiseScorer(PairwiseJudge(ScriptedLM(lambda p: "I cannot say")))
    for reward in silent.score("q", ["x", "y"]):
        assert math.isnan(reward)
        assert isinstance(reward, Reward)
        assert reward.notes == (
            *["no verdict in 'I cannot say'"] * 2,
            "no margin over 1 of 2 anchors",
        )


def test_a_margin_that_is_not_known_is_left_out_of_the_mean() -> None:
    def say(prompt: str) -> str:
        return "hm" if "odd" in prompt else judged(prompt, "fair")

    scorer = PairwiseScorer(PairwiseJudge(ScriptedLM(say)))
    one, two, odd = scorer.score("q", ["one!", "two!!", "odd"])
    assert (one, two) == pytest.approx((-math.log(5) / 2, math.log(5) / 2))
    assert math.isnan(odd)
    (later,) = scorer.score("q", ["three!!!"])
    assert later == pytest.approx(math.log(5))
    assert isinstance(later, Reward)
    assert later.notes == (
        *["no verdict in 'hm'"] * 2,
        "no margin over 1 of 3 anchors",
        "mean margin over 2 anchors",
    )


def test_each_order_of_two_responses_is_shown_once() -> None:
    lm = ScriptedLM(lambda p: judged(p, "fair"))
    PairwiseScorer(PairwiseJudge(lm)).score("q", ["one!", "two!!", "three!!!"])
    assert len(lm.requests) == 6, "three pairs, each in both orders"
    assert len(set(lm.prompts)) == 6
