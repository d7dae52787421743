"""Runs of many queries: the runner, alone or on Ray, its folder, budgets, and the files that queries come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpo_modules.lazy import exports

if TYPE_CHECKING:
    from tpo_modules.runs.queries import QueryRow, read_queries
    from tpo_modules.runs.ray_runner import RayCluster, arun_on_ray, run_on_ray
    from tpo_modules.runs.results import FailedQuery, QueryResult
    from tpo_modules.runs.runner import RunSettings, RunSummary, arun_queries, run_queries
    from tpo_modules.runs.saved_run import SavedRun
    from tpo_modules.runs.tally import Limits

__getattr__, __dir__ = exports(
    __name__,
    {
        "tpo_modules.runs.queries": ["QueryRow", "read_queries"],
        "tpo_modules.runs.ray_runner": ["RayCluster", "arun_on_ray", "run_on_ray"],
        "tpo_modules.runs.results": ["FailedQuery", "QueryResult"],
        "tpo_modules.runs.runner": ["RunSettings", "RunSummary", "arun_queries", "run_queries"],
        "tpo_modules.runs.saved_run": ["SavedRun"],
        "tpo_modules.runs.tally": ["Limits"],
    },
)

__all__ = [
    "FailedQuery",
    "Limits",
    "QueryResult",
    "QueryRow",
    "RayCluster",
    "RunSettings",
    "RunSummary",
    "SavedRun",
    "arun_on_ray",
    "arun_queries",
    "read_queries",
    "run_on_ray",
    "run_queries",
]
