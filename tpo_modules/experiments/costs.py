"""Cost: FLOPs per query of recorded runs, against DPO training, and the paper's own figures reproduced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from tpo_modules.errors import ConfigurationError
from tpo_modules.estimates import mean_of
from tpo_modules.experiments.finding import Finding, Setup, interval
from tpo_modules.experiments.flops import (
    PaperSettings,
    QueryFlops,
    against_paper,
    dpo_flops,
    parameters_of,
    trace_flops,
)
from tpo_modules.runs.saved_run import SavedRun

METHODS = ("bon", "revision", "tpo")


def cost(
    runs: Sequence[str | Path],
    *,
    policy_parameters: float | None = None,
    reward_parameters: float | None = None,
    pairs: int = 64_000,
    tokens_per_pair: int = 2048,
) -> Finding:
    """Count FLOPs per query of recorded runs, and after how many queries DPO would have cost less.

    Each run stands beside one epoch of DPO on ``pairs`` pairs with the same policy. The paper's own figures (9.3
    PFLOP per query, 72,840 PFLOP of training) are worked out from its settings: see `PaperSettings`, which says
    what is the paper's and what is assumed, and `trace_flops` for how a recorded query is counted.

    Args:
        runs: Folders of runs, as ``tpo run --data`` writes them, or of comparisons, for each of their methods.
        policy_parameters: None to tell them by the recorded LM's name.
        reward_parameters: None to tell them by the recorded scorer's name; 0 for a scorer that is no model.
        pairs: Preference pairs of the training.
        tokens_per_pair: Tokens of a pair: prompt, chosen and rejected response together.

    Raises:
        ConfigurationError: There is no run, one is empty, or a number of parameters cannot be told.
        RunFolderError: A folder is no run's.
    """
    if not runs:
        raise ConfigurationError("expected at least one run's folder, got none")
    rows: list[dict[str, Any]] = []
    for path in (folder for given in runs for folder in _folders(Path(given))):
        run = SavedRun(path)
        row = _row(run, policy_parameters, reward_parameters)
        dpo = dpo_flops(row["policy_parameters"], pairs=pairs, tokens_per_pair=tokens_per_pair)
        row |= {"dpo": dpo, "share_of_dpo": row["value"] / dpo, "break_even": dpo / row["value"]}
        rows.append(row)
    paper = against_paper()
    return Finding(
        name="cost",
        settings={
            "runs": [str(path) for path in runs],
            "pairs": pairs,
            "tokens_per_pair": tokens_per_pair,
            "paper": asdict(PaperSettings()),
        },
        rows=rows,
        summary={
            "runs": rows,
            "paper": dict(paper),
            "assumptions": PaperSettings().assumptions(),
        },
        tables=[_measured_table(rows, pairs), _paper_table(paper)],
        notes=_notes(rows),
    )


def cost_of_own_run(setup: Setup, **options: Any) -> Finding:
    """Run best-of-N, Revision and TPO, and count what they took: see `cost`."""
    setup.compare(setup.methods(*METHODS))
    folders = [setup.folder() / "methods" / name for name in METHODS]
    return cost([folder for folder in folders if folder.exists()], **options)


def _folders(path: Path) -> list[Path]:
    """Return a run's folder, or those of a comparison's methods: the first round alone where none drew more."""
    if not (path / "compare.json").is_file():
        return [path]
    return sorted(f for f in path.glob("methods/*") if f.is_dir()) or [path / "first"]


def _row(run: SavedRun, policy: float | None, reward: float | None) -> dict[str, Any]:
    policy = policy or parameters_of(_policy_name(run), "--policy-params")
    if reward is None:
        reward = parameters_of(str(run.config.get("scorer", "")), "--reward-params")
    # A query that was extended is recorded more than once; the last record is the whole of it.
    found = {
        identity: trace_flops(trace, policy_parameters=policy, reward_parameters=reward)
        for identity, trace in run.traces()
    }
    if not found:
        raise ConfigurationError(f"expected a run with finished queries, got {run.path} with none")
    each = list(found.values())
    return {
        "run": run.name,
        "method": run.config.get("method"),
        "queries": len(each),
        "policy_parameters": policy,
        "reward_parameters": reward,
        **interval(mean_of([one.total for one in each])),
        **{name: fmean(getattr(one, name) for one in each) for name in QueryFlops.__slots__},
    }


def _policy_name(run: SavedRun) -> str:
    try:
        return str(run.config["prompts"]["policy"]["predictors"][0]["lm"])
    except (KeyError, IndexError, TypeError):
        return "a policy that hides its LM"


def scaled(flops: float) -> str:
    """Say FLOPs with the prefix that suits them."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= size:
            return f"{flops / size:,.3g} {prefix}FLOP"
    return f"{flops:.3g} FLOP"


def _measured_table(rows: Sequence[dict[str, Any]], pairs: int) -> Any:
    heads = ["run", "queries", "per query", "95 %", "prompts", "generated", "reward model",
             f"DPO, {pairs:,} pairs", "of DPO", "break-even queries"]  # fmt: skip
    cells = [
        [
            row["run"],
            str(row["queries"]),
            scaled(row["value"]),
            f"{scaled(row['low'])} to {scaled(row['high'])}",
            *(f"{row[part] / row['value']:.0%}" for part in ("prompt", "generated", "reward")),
            scaled(row["dpo"]),
            f"{row['share_of_dpo']:.4%}",
            f"{row['break_even']:,.0f}",
        ]
        for row in rows
    ]
    return ("FLOPs per query, as recorded", heads, cells)


def _paper_table(paper: Any) -> Any:
    shown = {
        "tpo_pflop_per_query": ("TPO D2-N5, PFLOP per query", ",.2f"),
        "dpo_pflop": ("DPO on 64k pairs, PFLOP", ",.0f"),
        "share_of_dpo": ("share of DPO", ".4%"),
        "break_even_queries": ("break-even queries", ",.0f"),
    }
    cells = [
        [title, f"{paper[key]['paper']:{spec}}", f"{paper[key]['ours']:{spec}}",
         f"{paper[key]['ratio'] - 1:+.1%}"]
        for key, (title, spec) in shown.items()
    ]  # fmt: skip
    return (
        "The paper's figures from its settings",
        ["", "paper", "from the settings", "off by"],
        cells,
    )


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    said = PaperSettings().assumptions()
    notes = [
        f"The paper's settings: {said['paper']}.",
        f"Assumed: {said['ours']}.",
        "Recorded runs: 2 x parameters x (prompt + generated tokens as recorded) for the policy, and "
        "2 x parameters x (query + response) for each distinct response that was scored.",
    ]
    guessed = sum(row["estimated_tokens"] for row in rows)
    if guessed:
        share = guessed / max(sum(row["prompt_tokens"] for row in rows), 1)
        notes.append(
            f"{share:.0%} of the prompt tokens are an estimate of four characters each: the endpoint or the "
            "cache did not count them."
        )
    return notes
