"""Test-time preference optimization as DSPy modules: the loop, its parts, and the command line.

Everything is imported when it is first named, so that ``import tpo_modules`` is light: a scorer needs no DSPy, and
the loop no torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# LiteLLM would fetch a price list from the internet when it is first imported.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

from tpo_modules._version import __version__
from tpo_modules.lazy import exports

if TYPE_CHECKING:
    from tpo_modules.adapter import PlainTextAdapter
    from tpo_modules.baselines import BestOfNModule, RevisionModule
    from tpo_modules.errors import TPOError
    from tpo_modules.lm import Sampling
    from tpo_modules.lms.local import embedded_lm
    from tpo_modules.lms.openai_lm import OpenAIServerLM
    from tpo_modules.pool import Candidate, CandidatePool
    from tpo_modules.run import Event, observe
    from tpo_modules.scorers import FunctionScorer, Query, Response, Reward, Scorer
    from tpo_modules.selection import Pair, Selection, extreme_pair, median_pair, within_step_pair
    from tpo_modules.step import Step
    from tpo_modules.tpo import StopRule, TPOModule
    from tpo_modules.trace import TPOTrace

__getattr__, __dir__ = exports(
    __name__,
    {
        "tpo_modules.adapter": ["PlainTextAdapter"],
        "tpo_modules.baselines": ["BestOfNModule", "RevisionModule"],
        "tpo_modules.errors": ["TPOError"],
        "tpo_modules.lm": ["Sampling"],
        "tpo_modules.lms.local": ["embedded_lm"],
        "tpo_modules.lms.openai_lm": ["OpenAIServerLM"],
        "tpo_modules.pool": ["Candidate", "CandidatePool"],
        "tpo_modules.run": ["Event", "observe"],
        "tpo_modules.scorers": ["FunctionScorer", "Query", "Response", "Reward", "Scorer"],
        "tpo_modules.selection": [
            "Pair",
            "Selection",
            "extreme_pair",
            "median_pair",
            "within_step_pair",
        ],
        "tpo_modules.step": ["Step"],
        "tpo_modules.tpo": ["StopRule", "TPOModule"],
        "tpo_modules.trace": ["TPOTrace"],
    },
)

__all__ = [
    "BestOfNModule",
    "Candidate",
    "CandidatePool",
    "Event",
    "FunctionScorer",
    "OpenAIServerLM",
    "Pair",
    "PlainTextAdapter",
    "Query",
    "Response",
    "RevisionModule",
    "Reward",
    "Sampling",
    "Scorer",
    "Selection",
    "Step",
    "StopRule",
    "TPOError",
    "TPOModule",
    "TPOTrace",
    "__version__",
    "embedded_lm",
    "extreme_pair",
    "median_pair",
    "observe",
    "within_step_pair",
]
