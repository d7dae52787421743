"""Scorers: everything that turns a query and responses into rewards (see `tpo_modules.scorers.base`)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


_LAZY = {
    "BatchingScorer": "tpo_modules.scorers.batching",
    "EnsembleScorer": "tpo_modules.scorers.compose",
    "ExactMatchScorer": "tpo_modules.scorers.verifiable",
    "JSONSchemaScorer": "tpo_modules.scorers.verifiable",
    "JudgeScorer": "tpo_modules.scorers.judge",
    "LengthPenalisedScorer": "tpo_modules.scorers.compose",
    "MathScorer": "tpo_modules.scorers.verifiable",
    "PairRM": "tpo_modules.scorers.pairwise",
    "PairwiseJudge": "tpo_modules.scorers.judge",
    "PairwiseScorer": "tpo_modules.scorers.pairwise",
    "RegexScorer": "tpo_modules.scorers.verifiable",
    "RewardModelScorer": "tpo_modules.scorers.reward_model",
    "ServerScorer": "tpo_modules.scorers.server",
}


def __getattr__(name: str) -> Any:
    """Import a scorer's module only when the scorer is asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
