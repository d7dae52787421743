"""``tpo report``: one HTML file of runs, with figures and every query."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tpo_modules.errors import ConfigurationError
from tpo_modules.report import AlignedRuns, align, open_runs, report_html


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs, or of comparisons, each of which stands for all its methods.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write. \\[default: report.html in the first folder]"),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The run that the others are compared with. \\[default: the first]"),
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Take the queries that all runs have.")
    ] = False,
    title: Annotated[str, typer.Option(help="The page's heading.")] = "TPO report",
) -> None:
    """Write one HTML file that needs no network: summary, figures, and a browser of every query.

    Several runs are shown side by side, query by query.
    """
    file = out or runs[0] / "report.html"
    aligned = write_report(runs, file, baseline=baseline, common=common, title=title)
    left_out = f", {len(aligned.left_out)} left out" if aligned.left_out else ""
    Console(stderr=True).print(
        f"queries: {len(aligned.ids)}{left_out}; runs: {len(aligned.runs)}; "
        f"{file.stat().st_size / 2**20:.1f} MiB",
        highlight=False,
    )
    print(file)


def write_report(
    runs: list[Path],
    file: Path,
    *,
    baseline: str | None = None,
    common: bool = False,
    title: str = "TPO report",
) -> AlignedRuns:
    """Write the report of run folders; return what it shows.

    Raises:
        ConfigurationError: The file cannot be written, or the runs cannot be shown together.
        RunFolderError: A folder is none of a run, or a record is broken.
    """
    aligned = align(open_runs(runs), common=common, baseline=baseline)
    page = report_html(aligned, title=title)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write the report to {file}: {error}") from error
    return aligned
