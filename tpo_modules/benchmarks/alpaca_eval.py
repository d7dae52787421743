"""AlpacaEval 2: win rate and length-controlled win rate over GPT-4's answers.

Rows: ``instruction`` (or ``prompt``), the baseline's answer under ``output`` (or ``baseline``), ``generator``
(or ``baseline_model``), ``dataset`` (or ``subset``). Data: Dubois et al., 2024; CC BY-NC 4.0.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpo_modules.benchmarks.base import Answer, Benchmark, Item, PlacedRow
from tpo_modules.benchmarks.pairwise import (
    baseline_of,
    length_controlled_win_rate,
    mean_length,
    win_grader,
    win_rate,
)
from tpo_modules.benchmarks.rows import HubSource, id_of, text_of
from tpo_modules.errors import ConfigurationError, MissingExtraError, explain
from tpo_modules.estimates import Estimate


def _read(rows: Sequence[PlacedRow]) -> list[Item]:
    items: list[Item] = []
    for position, (where, row) in enumerate(rows):
        query = text_of(row, where, "instruction", "prompt")
        reference = {
            "baseline": baseline_of(row, where, "baseline", "output"),
            "generator": row.get("baseline_model") or row.get("generator") or "baseline",
            "dataset": row.get("subset") or row.get("dataset") or "alpaca_eval",
        }
        items.append(Item(id_of(row, position, "id"), {"query": query}, reference))
    return items


def _metrics(
    items: Sequence[Item], answers: Sequence[Answer], points: Sequence[float]
) -> Mapping[str, Estimate]:
    lengths = [len(answer.response) for answer in answers]
    baseline = [len(item.reference["baseline"]) for item in items]
    return {
        "LC win rate %": length_controlled_win_rate(points, lengths, baseline),
        "win rate %": win_rate(points),
        "characters": mean_length(answers),
    }


ALPACA_EVAL = Benchmark(
    name="alpaca_eval",
    title="AlpacaEval 2",
    source=HubSource("tatsu-lab/alpaca_eval", ("alpaca_eval_gpt4_baseline.json",)),
    read=_read,
    graders={"judge": win_grader},
    metrics=_metrics,
    published=("AlpacaEval 2 LC", "AlpacaEval 2 WR"),
)


def write_outputs(
    path: Path, items: Sequence[Item], answers: Mapping[str, Answer], generator: str
) -> None:
    """Write answers as AlpacaEval reads them: a JSON list of instruction, output, generator, dataset."""
    rows = [
        _output(item, answers[item.id].response, generator) for item in items if item.id in answers
    ]
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _output(item: Item, text: str, generator: str) -> dict[str, Any]:
    return {
        "instruction": item.query,
        "output": text,
        "generator": generator,
        "dataset": item.reference["dataset"],
    }


def run_package(
    items: Sequence[Item],
    answers: Mapping[str, Answer],
    *,
    generator: str,
    folder: Path,
    annotators: str | None = None,
) -> dict[str, float]:
    """Grade answers by the package ``alpaca_eval``: its judge, its win rates.

    The judge is the package's, an LM of OpenAI by default, which costs money and needs ``OPENAI_API_KEY``; its
    length-controlled win rate needs the hub, for the difficulty of each instruction.

    Args:
        items: What was asked; must be AlpacaEval's, in its order, for the length-controlled figure.
        answers: By item id; items without one are left out.
        generator: The method's name on its leaderboard.
        folder: Where the package writes annotations and leaderboard.
        annotators: Its ``annotators_config``; its own default if not given.

    Returns:
        The package's figures for this generator by its own names: ``win_rate`` and
        ``length_controlled_winrate`` in percent, their standard errors, and more.

    Raises:
        MissingExtraError: The package is not installed.
        ConfigurationError: The package does not reach the hub, or cannot write.
    """
    try:
        package: Any = importlib.import_module("alpaca_eval")
    except ImportError as error:
        raise MissingExtraError(
            "alpaca_eval", "alpaca-eval", "grading by AlpacaEval's own judge"
        ) from error
    answered = [item for item in items if item.id in answers]
    baseline = [
        _output(item, item.reference["baseline"], item.reference["generator"]) for item in answered
    ]
    extra: dict[str, Any] = {} if annotators is None else {"annotators_config": annotators}
    try:
        leaderboard, _ = package.evaluate(
            model_outputs=[
                _output(item, answers[item.id].response, generator) for item in answered
            ],
            reference_outputs=baseline,
            name=generator,
            output_path=str(folder),
            precomputed_leaderboard=None,
            is_return_instead_of_print=True,
            is_cache_leaderboard=False,
            metric_kwargs={
                "save_weights_dir": None
            },  # by default it writes into its own installation
            **extra,
        )
    except OSError as error:  # of the hub, too
        raise ConfigurationError(
            "expected the package alpaca_eval to reach the Hugging Face hub, which has each instruction's "
            f"difficulty, got {type(error).__name__}: {explain(error)} What was judged is kept by the "
            "package: mend the connection and give the same command again"
        ) from error
    row: dict[str, Any] = leaderboard.loc[generator].to_dict()
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
