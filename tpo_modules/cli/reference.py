"""``tpo import-reference`` and ``tpo export-reference``: the reference implementation's result files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tpo_modules.runs.queries import read_queries
from tpo_modules.runs.reference_files import import_reference as import_file
from tpo_modules.runs.reference_files import write_reference_results
from tpo_modules.runs.saved_run import SavedRun


def import_reference(
    file: Annotated[Path, typer.Argument(help="The reference implementation's result file.")],
    out: Annotated[Path, typer.Option(help="The folder of the run to write.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="The file of the queries: gives ids, and tells queries from responses with <SEP> in them."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="tpo, revision or bon. \\[default: tpo if there are updates, else bon]"),
    ] = None,
) -> None:
    """Turn a result file of the reference implementation into a run, to report and compare it.

    The run's prompts, tokens and times are unknown: the file does not hold them.
    """
    rows = read_queries(data) if data else None
    count = import_file(file, out, queries=rows, method=method)
    Console(stderr=True).print(f"queries: {count}; in {out}", highlight=False, soft_wrap=True)


def export_reference(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    file: Annotated[Path, typer.Argument(help="The result file to write.")],
) -> None:
    """Write a run as a result file of the reference implementation: responses and rewards only."""
    done = write_reference_results(SavedRun(run), file)
    console = Console(stderr=True)
    console.print(
        f"queries: {done.queries}; left out: {done.failed} failed queries, {done.merged} responses "
        "equal to another of their step",
        highlight=False,
    )
    if done.ambiguous:
        console.print(
            f"{done.ambiguous} queries hold <SEP> in their texts: import them with --data",
            style="yellow",
        )
