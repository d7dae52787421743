"""The report's figures as SVG text that takes its colours and its type from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tpo_modules.errors import MissingExtraError
from tpo_modules.report.figures import RunFigures

COLOURS = 8
"""How many colours the style sheet has for runs (``--run-0`` ...); from then on they repeat."""

# Colours that stand for the page's own, and are replaced once matplotlib has drawn.
_INK, _GRID = "#010101", "#020202"
_RUN = "#0300{:02x}"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def reward_curves(figures: Sequence[RunFigures]) -> str:
    """Draw the mean reward by step: of the samples with its interval, and of the best so far (dashed)."""

    def draw(axes: Any) -> None:
        steps = max(len(f.samples_by_step) for f in figures)
        for place, run in enumerate(figures):
            colour = _RUN.format(place % COLOURS)
            shift = 0.04 * (place - (len(figures) - 1) / 2)
            points = [(step, e) for step, e in enumerate(run.samples_by_step) if e is not None]
            x = [step + shift for step, _ in points]
            y = [e.value for _, e in points]
            reach = [[e.value - e.low for _, e in points], [e.high - e.value for _, e in points]]
            axes.errorbar(
                x, y, reach, color=colour, marker="o", ms=4, lw=1.8, capsize=2.5, elinewidth=1
            )
            best = [(step, b) for step, b in enumerate(run.best_by_step) if b is not None]
            axes.plot(*zip(*best, strict=True), "--", color=colour, lw=1.2) if best else None
        axes.set_xticks(range(steps))
        axes.set_xlabel("step (0 is the first round)")
        axes.set_ylabel("mean reward")

    return _svg(draw)


def gain_distribution(gains: Sequence[tuple[int, Sequence[float]]], label: str) -> str:
    """Draw how gains are spread over queries: bars for one run, cumulative shares for several.

    Args:
        gains: Place of the run, which fixes its colour, and one gain per query.
        label: What the gains are, under the axis.
    """

    def draw(axes: Any) -> None:
        for place, values in gains:
            colour = _RUN.format(place % COLOURS)
            if len(gains) == 1:
                axes.hist(_without_rounding(values), 25, color=colour, alpha=0.8, rwidth=0.92)
            else:
                axes.ecdf(values, color=colour, lw=1.6)
            axes.axvline(fmean(values), color=colour, lw=1.2, ls="--")
        axes.axvline(0, color=_INK, lw=0.8)
        axes.set_xlabel(label)
        axes.set_ylabel("queries" if len(gains) == 1 else "share of queries up to it")

    return _svg(draw)


def _without_rounding(values: Sequence[float]) -> Sequence[float]:
    """Take values that differ by rounding alone for equal: their range cannot be cut into bars."""
    largest = max(map(abs, values))
    return [values[0]] * len(values) if max(values) - min(values) < 1e-9 * largest else values


def _svg(draw: Any) -> str:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "experiments", "a report's figures") from None
    # The salt makes ids in one page differ between figures, and the same data give the same file.
    with rc_context({**_STYLE, "svg.hashsalt": draw.__qualname__}):
        figure = Figure(figsize=(5.4, 3.1), layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue())


def _themed(svg: str) -> str:
    """Keep the picture alone, in the page's colours and type."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: [^;\"]*", "font: 9px system-ui, sans-serif", svg)
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    for place in range(COLOURS):
        svg = svg.replace(_RUN.format(place), f"var(--run-{place})")
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        r'<svg viewBox="\1" aria-hidden="true">',
        svg,
        count=1,
    )
