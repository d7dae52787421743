"""Scorers: everything that turns a query and responses into rewards (see `tpo_modules.scorers.base`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpo_modules.lazy import exports
from tpo_modules.scorers.base import AsyncScorer, Query, Response, Reward, Scorer, as_query
from tpo_modules.scorers.function import FunctionScorer, as_scorer

if TYPE_CHECKING:
    from tpo_modules.scorers.batching import BatchingScorer
    from tpo_modules.scorers.compose import EnsembleScorer, LengthPenalisedScorer
    from tpo_modules.scorers.judge import JudgeScorer, PairwiseJudge
    from tpo_modules.scorers.pairwise import PairRM, PairwiseScorer
    from tpo_modules.scorers.reward_model import RewardModelScorer
    from tpo_modules.scorers.server import ServerScorer
    from tpo_modules.scorers.verifiable import (
        ExactMatchScorer,
        JSONSchemaScorer,
        MathScorer,
        RegexScorer,
    )

__getattr__, __dir__ = exports(
    __name__,
    {
        "tpo_modules.scorers.batching": ["BatchingScorer"],
        "tpo_modules.scorers.compose": ["EnsembleScorer", "LengthPenalisedScorer"],
        "tpo_modules.scorers.judge": ["JudgeScorer", "PairwiseJudge"],
        "tpo_modules.scorers.pairwise": ["PairRM", "PairwiseScorer"],
        "tpo_modules.scorers.reward_model": ["RewardModelScorer"],
        "tpo_modules.scorers.server": ["ServerScorer"],
        "tpo_modules.scorers.verifiable": [
            "ExactMatchScorer",
            "JSONSchemaScorer",
            "MathScorer",
            "RegexScorer",
        ],
    },
)

__all__ = [
    "AsyncScorer",
    "BatchingScorer",
    "EnsembleScorer",
    "ExactMatchScorer",
    "FunctionScorer",
    "JSONSchemaScorer",
    "JudgeScorer",
    "LengthPenalisedScorer",
    "MathScorer",
    "PairRM",
    "PairwiseJudge",
    "PairwiseScorer",
    "Query",
    "RegexScorer",
    "Response",
    "Reward",
    "RewardModelScorer",
    "Scorer",
    "ServerScorer",
    "as_query",
    "as_scorer",
]
