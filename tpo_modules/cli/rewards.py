"""What ``--reward`` can say: one dictionary of forms, and the scorers they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tpo_modules.cli.commands import quieten_dspy
from tpo_modules.errors import ConfigurationError, nearest
from tpo_modules.objects import load_object
from tpo_modules.scorers.base import Scorer
from tpo_modules.scorers.function import as_scorer
from tpo_modules.scorers.reward_model import RewardModelScorer
from tpo_modules.scorers.server import ServerScorer
from tpo_modules.scorers.wire_shapes import WIRES


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """What a command line says of a reward model in this process; see `RewardModelScorer`.

    Attributes:
        output: An index or a label, as text.
    """

    trust_remote_code: bool = False
    output: str | None = None
    dtype: str | None = None
    device: str | None = None
    max_length: int | None = None

    def given(self) -> dict[str, Any]:
        """Return the arguments of `RewardModelScorer` that differ from the defaults."""
        found = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}
        if self.output is not None and self.output.isdecimal():
            found["output"] = int(self.output)
        return found


def load_scorer(
    spec: str,
    *,
    lm_options: dict[str, Any] | None = None,
    local: LocalOptions | None = None,
) -> Scorer:
    """Make the scorer that a text names.

    Args:
        spec: ``bundled``; ``python:module:function`` or ``python:file.py:function`` (a scorer, or a class or
            factory without arguments that makes one, or a reward function); ``judge:MODEL``; the URL of a
            served reward model, which answers as vLLM's ``/classify`` does, or ``API+URL`` for another
            API of `ServerScorer` (``tpo+http://host:8001``); else a reward model's folder or hub id.
        lm_options: Keyword arguments of the judge's ``dspy.LM``.
        local: Options of a reward model in this process.

    Raises:
        ConfigurationError: The text has a known form with something wrong in it, or is nearly ``bundled``;
            or ``local`` options are given for a scorer of another kind.
    """
    options = {} if local is None else local.given()
    if not spec.strip():
        raise ConfigurationError(
            f"expected a reward model: {', '.join(_FORMS)}, or a model; got nothing"
        )
    for prefix, make in _FORMS.items():
        if spec.startswith(prefix):
            _refuse(options, spec)
            return make(spec, lm_options or {})
    hint = nearest([spec], ["bundled"])
    if hint and not Path(spec).exists():
        raise ConfigurationError(f"expected a reward model, there is no {spec!r}{hint}")
    return RewardModelScorer(spec, **options)


def _refuse(options: dict[str, Any], spec: str) -> None:
    if options:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise ConfigurationError(
            f"expected {names} only for a reward model in this process ('bundled', a folder or a hub id), "
            f"got the scorer {spec!r}: set it where that scorer is made or served"
        )


def make_ready(scorer: Scorer) -> Scorer:
    """Load a reward model, or ask a served one once, so that a wrong name or address is found at the start.

    Raises:
        ModelNotFoundError: There is no such reward model.
        ScorerError: The server does not answer, or not with rewards.
    """
    if isinstance(scorer, RewardModelScorer):
        scorer.load()
    elif isinstance(scorer, ServerScorer):
        scorer.probe()
    return scorer


def _from_python(spec: str, _: dict[str, Any]) -> Scorer:
    found = load_object(spec.removeprefix("python:"))
    return as_scorer(found() if _makes_one(found) else found)


def _makes_one(found: Any) -> bool:
    """Say whether this is a class or a factory, to be called for the scorer."""
    if isinstance(found, type) or not callable(found):
        return isinstance(found, type)
    try:
        return not inspect.signature(found).parameters
    except (TypeError, ValueError):
        return False  # a builtin that tells nothing of itself


def _judge(spec: str, lm_options: dict[str, Any]) -> Scorer:
    import dspy

    from tpo_modules.scorers.judge import JudgeScorer

    quieten_dspy()
    return JudgeScorer(dspy.LM(spec.removeprefix("judge:"), **lm_options))


def _server(spec: str, _: dict[str, Any]) -> Scorer:
    api, plus, url = spec.partition("+http")
    return ServerScorer(f"http{url}", api=api) if plus else ServerScorer(spec)


_FORMS: dict[str, Callable[[str, dict[str, Any]], Scorer]] = {
    "python:": _from_python,
    "judge:": _judge,
    "http://": _server,
    "https://": _server,
    **{f"{api}+http": _server for api in WIRES},
}
