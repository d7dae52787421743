"""What ``--reward`` can say: one dictionary of forms, and the scorers they make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpo_modules.cli.commands import quieten_dspy
from tpo_modules.errors import ConfigurationError, nearest
from tpo_modules.objects import load_object
from tpo_modules.scorers.base import Scorer
from tpo_modules.scorers.function import as_scorer
from tpo_modules.scorers.reward_model import RewardModelScorer
from tpo_modules.scorers.server import ServerScorer
from tpo_modules.scorers.transport import Retry
from tpo_modules.scorers.wire_shapes import WIRES


def load_scorer(spec: str, *, lm_options: dict[str, Any] | None = None) -> Scorer:
    """Make the scorer that a text names.

    Args:
        spec: ``bundled``; ``python:module:function`` or ``python:file.py:function`` (a scorer, or a class or
            factory without arguments that makes one, or a reward function); ``judge:MODEL``; the URL of a
            served reward model, which answers as vLLM's ``/classify`` does, or ``API+URL`` for another
            API of `ServerScorer` (``tpo+http://host:8001``); else a reward model's folder or hub id.
        lm_options: Keyword arguments of the judge's ``dspy.LM``.

    Raises:
        ConfigurationError: The text has a known form with something wrong in it, or is nearly ``bundled``.
    """
    if not spec.strip():
        raise ConfigurationError(
            f"expected a reward model: {', '.join(_FORMS)}, or a model; got nothing"
        )
    for prefix, make in _FORMS.items():
        if spec.startswith(prefix):
            return make(spec, lm_options or {})
    hint = nearest([spec], ["bundled"])
    if hint and not Path(spec).exists():
        raise ConfigurationError(f"expected a reward model, there is no {spec!r}{hint}")
    return RewardModelScorer(spec)


def make_ready(scorer: Scorer) -> Scorer:
    """Load a reward model, or ask a served one once, so that a wrong name or address is found at the start.

    Raises:
        ModelNotFoundError: There is no such reward model.
        ScorerError: The server does not answer, or not with rewards.
    """
    if isinstance(scorer, RewardModelScorer):
        scorer.load()
    elif isinstance(scorer, ServerScorer):
        with ServerScorer(scorer.url, api=scorer.api, retry=Retry(limit=2)) as probe:
            probe.score("Hello", ["Hello."])
    return scorer


def _from_python(spec: str, _: dict[str, Any]) -> Scorer:
    found = load_object(spec.removeprefix("python:"))
    return as_scorer(found() if isinstance(found, type) else found)


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
