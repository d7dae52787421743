"""Mean reward: the reward that the run optimised, or that of a scorer which nobody optimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from tpo_modules.benchmarks.base import Answer, Grader, GraderOptions, Item, Mark
from tpo_modules.benchmarks.pairwise import mean_length
from tpo_modules.errors import ConfigurationError, ScorerError, explain
from tpo_modules.estimates import Estimate, mean_of
from tpo_modules.scorers.base import Query


class OwnReward:
    """Marks an answer with the reward that it got in its run, as the paper does."""

    def grade(self, item: Item, answer: Answer) -> Mark:
        """Return the run's reward."""
        return Mark(answer.reward)


class ScorerGrader:
    """Marks an answer with a scorer's reward; the scorer sees earlier turns where there are any."""

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer

    def grade(self, item: Item, answer: Answer) -> Mark:
        """Score the answer.

        Raises:
            ScorerError: The scorer failed, or gave no finite reward.
        """
        return Mark(finite_reward(self._scorer, conversation(item), answer.response))


def finite_reward(scorer: Any, query: Query, response: str) -> float:
    """Score one response.

    Raises:
        ScorerError: The scorer failed, or gave no finite reward.
    """
    try:
        reward = float(scorer.score(query, [response])[0])
    except ScorerError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise ScorerError(f"the scorer {scorer!r:.80} failed: {kind}: {explain(error)}") from error
    if reward != reward or abs(reward) == float("inf"):
        raise ScorerError(f"expected a finite reward, got {reward}")
    return reward


def conversation(item: Item) -> Query:
    """Return an item's query with its earlier turns."""
    history = item.inputs.get("history")
    earlier = list(history.messages) if isinstance(history, dspy.History) else []
    return Query.from_messages([*earlier, {"role": "user", "content": item.query}])


def own_reward(options: GraderOptions) -> Grader:
    """Make the grader that takes the run's own rewards; with a judge named, that scorer's."""
    return OwnReward() if options.judge is None else held_out(options)


def held_out(options: GraderOptions) -> Grader:
    """Make the grader of a scorer that nobody optimised.

    Raises:
        ConfigurationError: None is named.
    """
    if options.judge is None:
        raise ConfigurationError("expected --judge SCORER, named as for --reward")
    return ScorerGrader(options.make_scorer(options.judge))


def reward_metrics(
    items: Sequence[Item], answers: Sequence[Answer], rewards: Sequence[float]
) -> Mapping[str, Estimate]:
    """Estimate the mean reward and length."""
    return {"mean reward": mean_of(rewards), "characters": mean_length(answers)}
