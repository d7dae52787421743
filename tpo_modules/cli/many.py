"""``tpo run --data``: many queries into a run's folder, with one live line, or each step of a few."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from rich.console import Console

from tpo_modules.cli.live_line import LiveLine
from tpo_modules.policy import PolicyModule
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.ray_runner import RayCluster, arun_on_ray
from tpo_modules.runs.results import QueryResult
from tpo_modules.runs.run_folder import RunFolder
from tpo_modules.runs.runner import RunSettings, RunSummary, arun_queries, run_config


def answer_many(
    module: PolicyModule,
    rows: list[QueryRow],
    folder: Path,
    settings: RunSettings,
    console: Console,
    cluster: RayCluster | None = None,
) -> RunSummary | None:
    """Answer queries into a folder, on a Ray cluster if one is given; None if the run was interrupted."""
    with LiveLine(console) as line:

        def progress(figures: dict[str, Any]) -> None:
            if figures["to_do"]:
                line.show(progress_text(figures))

        if cluster is None:
            job = arun_queries(module, rows, out=folder, settings=settings, on_progress=progress)
        else:
            job = arun_on_ray(
                module, rows, out=folder, cluster=cluster, settings=settings, on_progress=progress
            )
        return asyncio.run(_interruptible(job))


def read_results(module: PolicyModule, folder: Path) -> list[QueryResult]:
    """Read what a run's folder holds."""
    with RunFolder(folder, config=run_config(module), ignore=("depth",)) as opened:
        return opened.results()


async def _interruptible(work: Coroutine[Any, Any, RunSummary]) -> RunSummary | None:
    """Run, and on Ctrl-C or SIGTERM wind up within seconds."""
    job = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    if sys.platform != "win32":
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, job.cancel)
    try:
        return await job
    except asyncio.CancelledError:
        return None


def progress_text(figures: dict[str, Any]) -> str:
    """Say a run's figures in one line."""
    done = figures["finished"] + figures["failed"]
    means = figures["mean_reward_by_step"].values()
    parts = [
        f"{done}/{figures['to_do']} queries",
        f"{figures['queries_per_second']:.2f}/s",
        f"{figures['tokens_per_second']:.0f} tokens/s",
    ]
    if means:
        parts.append("mean reward by step " + " ".join(f"{mean:.2f}" for mean in means))
    parts.append(f"{figures['in_flight']} in flight")
    if figures["failed"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in figures["failures"].items())
        parts.append(f"{figures['failed']} failed ({kinds})")
    if figures["waits"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in figures["waits"].items())
        parts.append(f"waits: {kinds}")
    if figures["seconds_left"] is not None:
        parts.append(f"{figures['seconds_left']:.0f} s left")
    return " | ".join(parts)
