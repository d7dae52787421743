"""Compile the prompts of a `tpo_modules.TPOModule`, one at a time, the others frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpo_modules.lazy import exports

if TYPE_CHECKING:
    from optimizers.compile_only import compile_only
    from optimizers.examples import TraceDataset, with_demos
    from optimizers.first_rounds import FirstRounds, FromFirstRound
    from optimizers.gepa_step import GepaRun, TextProposer, gepa_on_step
    from optimizers.metrics import (
        FinalReward,
        GainPer1kTokens,
        RewardGain,
        Score,
        TraceMetric,
        UpdateGain,
        WinRate,
    )
    from optimizers.proposals import Proposal, propose_templates
    from optimizers.template_race import Budget, RaceResult, RaceSettings, TemplateRace
    from tpo_modules.saved_steps import load_step, read_step, save_step

__getattr__, __dir__ = exports(
    __name__,
    {
        "optimizers.compile_only": ["compile_only"],
        "optimizers.examples": ["TraceDataset", "with_demos"],
        "optimizers.first_rounds": ["FirstRounds", "FromFirstRound"],
        "optimizers.gepa_step": ["GepaRun", "TextProposer", "gepa_on_step"],
        "optimizers.metrics": [
            "FinalReward",
            "GainPer1kTokens",
            "RewardGain",
            "Score",
            "TraceMetric",
            "UpdateGain",
            "WinRate",
        ],
        "optimizers.proposals": ["Proposal", "propose_templates"],
        "optimizers.template_race": ["Budget", "RaceResult", "RaceSettings", "TemplateRace"],
        "tpo_modules.saved_steps": ["load_step", "read_step", "save_step"],
    },
)

__all__ = [
    "Budget",
    "FinalReward",
    "FirstRounds",
    "FromFirstRound",
    "GainPer1kTokens",
    "GepaRun",
    "Proposal",
    "RaceResult",
    "RaceSettings",
    "RewardGain",
    "Score",
    "TemplateRace",
    "TextProposer",
    "TraceDataset",
    "TraceMetric",
    "UpdateGain",
    "WinRate",
    "compile_only",
    "gepa_on_step",
    "load_step",
    "propose_templates",
    "read_step",
    "save_step",
    "with_demos",
]
