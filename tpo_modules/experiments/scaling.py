"""Width, depth against width, and the ablations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tpo_modules.errors import ConfigurationError
from tpo_modules.estimates import Estimate, gain_of, mean_of, win_rate_of
from tpo_modules.experiments.comparison import Comparison
from tpo_modules.experiments.finding import Finding, Setup, interval, rests_on
from tpo_modules.experiments.matching import MOST_ROUNDS
from tpo_modules.experiments.outcomes import Outcome

WIDTHS = (5, 10, 15, 20)
"""The paper's widths."""
EQUIVALENT = ("D3-N10", "D4-N5")
"""What the paper finds about as good as D2-N15."""
BEST_OF = (15, 30, 60)
"""The paper sets D2-N5, which draws 15 samples, against best-of-30 and best-of-60; 15 is the same number."""
ABLATIONS = ("tpo", "revision", "multi-loss", "median", "fused", "within-step")
"""Revision, several losses without iteration and the median pair are the paper's; the others are ours."""

_LABEL = re.compile(r"D(\d+)-N(\d+)")


def width(setup: Setup, *, widths: Sequence[int] = WIDTHS, also: Sequence[str] = ()) -> Finding:
    """Measure TPO's reward by width N (the paper: it rises, then levels off).

    Each width has a first round of its own; ``D0-N`` is the best of that first round, which costs nothing more.

    Args:
        setup: The queries, modules and folder; ``depth`` is TPO's at every width, the setup's width is not used.
        widths: Samples per round.
        also: Further shapes, such as `EQUIVALENT`; each shares the first round of its width.

    Raises:
        ConfigurationError: A width or shape is none, or no query was finished at all of them.
    """
    shapes = _shapes(setup.depth, widths, also)
    found: dict[tuple[int, int], dict[str, Outcome]] = {}
    cut: list[str] = []
    for samples in dict.fromkeys(n for _, n in shapes):
        depths = [d for d, n in shapes if n == samples]
        specs = [f"first=bon{samples}", *(f"D{d}=tpo,depth={d}" for d in depths)]
        methods = setup.methods(*specs, width=samples)
        compared = setup.compare(methods, f"N{samples}", baseline="first")
        cut += [f"N{samples}: {said}" for said in compared.cut_short()]
        for depth, name in [(0, "first"), *((d, f"D{d}") for d in depths)]:
            found[depth, samples] = {one.id: one for one in compared.outcomes[name]}
    used, left_out = _common(list(found.values()))
    base = found[setup.depth, widths[0]]
    points = {shape: [each[identity] for identity in used] for shape, each in sorted(found.items())}
    rows = [
        {
            "depth": shape[0],
            "width": shape[1],
            "samples": (shape[0] + 1) * shape[1],
            **interval(mean_of([one.reward for one in each])),
            **interval(
                gain_of([one.reward for one in each], [base[one.id].reward for one in each]),
                "gain_",
            ),
            **_judged(each),
            "tokens": sum(one.tokens for one in each) / len(each),
        }
        for shape, each in points.items()
    ]
    over = f"D{setup.depth}-N{widths[0]}"
    heads = ["shape", "samples", "tokens", "reward", f"gain over {over}"]
    cells = [
        [f"D{row['depth']}-N{row['width']}", str(row["samples"]), f"{row['tokens']:.0f}",
         _shown(row), _shown(row, "gain_", "+.2f")]
        for row in rows
    ]  # fmt: skip
    return Finding(
        name="width",
        settings=setup.settings(widths=list(widths), also=list(also), gains_over=over),
        rows=rows,
        summary={"queries": len(used), "left_out": left_out, "points": rows},
        tables=[("Reward by width", heads, cells)],
        notes=[rests_on(len(used), len(left_out)), *cut],
    )


def depth_vs_width(setup: Setup, *, best_of: Sequence[int] = BEST_OF) -> Finding:
    """Set TPO against best-of-N with as many samples and more, by win rate over queries.

    The paper's judge is GPT-4; here it is the reward, and the setup's judge where there is one. Best-of-N takes the
    highest reward, so by reward it has an advantage that a judge does not see.

    Args:
        setup: The queries, modules and folder.
        best_of: Numbers of plain samples.

    Raises:
        ConfigurationError: Best-of-N would take more rounds than a comparison draws.
    """
    most = MOST_ROUNDS * setup.width
    if not best_of or not all(0 < samples <= most for samples in best_of):
        raise ConfigurationError(
            f"expected numbers of samples from 1 to {most} ({MOST_ROUNDS} rounds of {setup.width}), "
            f"got {list(best_of)}"
        )
    names = {f"bon{samples}": samples for samples in sorted(set(best_of))}
    compared = setup.compare(setup.methods("tpo", *names), baseline=next(iter(names)))
    tpo = compared.outcomes["tpo"]
    rows: list[dict[str, Any]] = []
    for name, samples in names.items():
        others = compared.outcomes[name]
        for by, mine, theirs in _by_scorer(tpo, others):
            rows.append(
                {
                    "against": name,
                    "samples": samples,
                    "by": by,
                    **interval(win_rate_of(mine, theirs), "win_rate_"),
                    **interval(gain_of(mine, theirs), "gain_"),
                    **interval(mean_of(theirs), "reward_"),
                    "tokens": sum(one.tokens for one in others) / len(others),
                }
            )
    own = {
        "samples": setup.width * (setup.depth + 1),
        "tokens": sum(one.tokens for one in tpo) / len(tpo),
        "reward": {by: interval(mean_of(mine)) for by, mine, _ in _by_scorer(tpo, tpo)},
    }
    heads = ["against", "by", "TPO's win rate", "gain", "tokens (TPO's)"]
    cells = [
        [f"best-of-{row['samples']}", row["by"], _shown(row, "win_rate_", ".0%"),
         _shown(row, "gain_", "+.2f"), f"{row['tokens']:.0f} ({own['tokens']:.0f})"]
        for row in rows
    ]  # fmt: skip
    label = f"D{setup.depth}-N{setup.width}"
    return Finding(
        name="depth-vs-width",
        settings=setup.settings(best_of=list(names.values())),
        rows=rows,
        summary=_summary_of(compared, tpo={"label": label, **own}, against=rows),
        tables=[(f"TPO {label} against best-of-N", heads, cells)],
        notes=[
            rests_on(compared.queries, len(compared.excluded)),
            "A tie counts half.",
            *compared.cut_short(),
        ],
    )


def ablations(setup: Setup, *, methods: Sequence[str] = ABLATIONS) -> Finding:
    """Compare TPO with its variants, each of as many samples, from the same first round.

    Args:
        setup: The queries, modules and folder.
        methods: What is compared, as `make_methods` takes it; gains are over the first.

    Raises:
        ConfigurationError: A method is unknown, or no query was finished by all.
    """
    made = setup.methods(*methods)
    base = made[0].name if made else None
    compared = setup.compare(made, baseline=base)
    rows = [
        {
            "method": f.method,
            **interval(f.reward, "reward_"),
            **interval(f.gain, "gain_"),
            **interval(f.win_rate, "win_rate_"),
            **interval(f.judge_reward, "judge_reward_"),
            **interval(f.judge_gain, "judge_gain_"),
            "tokens": f.tokens,
            "samples": f.samples,
            "length": f.length,
        }
        for f in compared.figures
    ]
    return Finding(
        name="ablations",
        settings=setup.settings(methods=list(methods), gains_over=base),
        rows=rows,
        summary=_summary_of(compared, methods=rows),
        tables=compared.tables(),
        notes=[compared.heading()],
    )


def _shapes(depth: int, widths: Sequence[int], also: Sequence[str]) -> list[tuple[int, int]]:
    shapes = [(depth, samples) for samples in widths]
    for label in also:
        matched = _LABEL.fullmatch(label)
        if matched is None:
            raise ConfigurationError(f"expected a shape such as D3-N10, got {label!r}")
        shapes.append((int(matched.group(1)), int(matched.group(2))))
    if not widths or not all(d >= 1 and n >= 1 for d, n in shapes):
        raise ConfigurationError(
            f"expected depths and widths of at least 1, got {[f'D{d}-N{n}' for d, n in shapes]}"
        )
    return list(dict.fromkeys(shapes))


def _common(found: Sequence[dict[str, Outcome]]) -> tuple[list[str], list[str]]:
    seen = list(dict.fromkeys(identity for each in found for identity in each))
    used = [identity for identity in seen if all(identity in each for each in found)]
    if not used:
        raise ConfigurationError("expected a query that was finished at every width, found none")
    return used, [identity for identity in seen if identity not in used]


def _by_scorer(
    mine: Sequence[Outcome], theirs: Sequence[Outcome]
) -> list[tuple[str, list[float], list[float]]]:
    """Pair up two methods' rewards, and the judge's of them where it gave any."""
    pairs = [("reward", [one.reward for one in mine], [one.reward for one in theirs])]
    judged = [[one.judge for one in each if one.judge is not None] for each in (mine, theirs)]
    if len(judged[0]) == len(mine) == len(judged[1]):
        pairs.append(("judge", judged[0], judged[1]))
    return pairs


def _judged(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    rewards = [one.judge for one in outcomes if one.judge is not None]
    return interval(mean_of(rewards), "judge_") if len(rewards) == len(outcomes) else {}


def _summary_of(compared: Comparison, **more: Any) -> dict[str, Any]:
    return {"queries": compared.queries, "left_out": compared.excluded, **more}


def _shown(row: dict[str, Any], prefix: str = "", spec: str = ".2f") -> str:
    value, low, high, n = (row[f"{prefix}{name}"] for name in ("value", "low", "high", "n"))
    return f"{Estimate(value, low, high, n):{spec}}"
