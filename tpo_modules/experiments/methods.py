"""The methods that a comparison can name, and how a method's response is taken from its run."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from signatures import DraftFreeUpdate, FusedCritique, PoolUpdate, RewardAwareLoss
from tpo_modules.baselines import BestOfNModule, RevisionModule
from tpo_modules.errors import ConfigurationError
from tpo_modules.policy import PolicyModule
from tpo_modules.templates import load_program
from tpo_modules.tpo import TPOModule

Take = Literal["best", "last"]
"""Which candidate of its run is a method's response: the highest reward, or the last one drawn."""

_STEPS = ("loss", "gradient", "update")
_WITHOUT_STEPS = ("bon", "single")  # and bonN
_BEST_OF = re.compile(r"bon(\d+)")
_NAME = re.compile(r"[\w.+-]+")  # names become folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: What tables call it; unique in a comparison.
        module: What is run.
        take: Which candidate is its response.
        samples: For best-of-N: use the first so many samples of the run.
        matched: For best-of-N: use as many samples as the comparison's match allows.
    """

    name: str
    module: PolicyModule
    take: Take = "best"
    samples: int | None = None
    matched: bool = False

    @property
    def resamples(self) -> bool:
        """Whether it only draws samples of the policy, so that one run serves every number of them."""
        return isinstance(self.module, BestOfNModule)


def make_methods(
    specs: Sequence[str], common: Mapping[str, Any], *, depth: int = 2
) -> list[Method]:
    """Make the methods that a command line names.

    Args:
        specs: Each ``NAME``, ``NAME=METHOD``, ``NAME=METHOD,option=value,...`` or ``NAME=FILE``. A method is one
            of `METHODS`, or ``bon15`` for best-of-15. Options, of methods that iterate: ``depth``, ``selection``,
            ``loss``, ``gradient``, ``update`` (each a text file, ``module:Name``, a saved step, or ``none``). A
            file is a template or a saved step for TPO; its name begins with the step's (``loss_short.txt``), or
            the saved step says it.
        common: Keyword arguments of every module: policy, scorer, width, sampling, seed; and ``critic_lm``, of
            those that have critiques.
        depth: Depth of iterative methods that name none.

    Raises:
        ConfigurationError: A name is unknown, unusable or repeated, or an option is not one of its method.
    """
    methods = [_make(spec, common, depth) for spec in specs]
    names = [method.name for method in methods]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigurationError(
            f"expected a name of its own for each method, got {', '.join(repeated)} more than once; "
            "write NAME=METHOD"
        )
    return methods


def _make(spec: str, common: Mapping[str, Any], depth: int) -> Method:
    name, equals, rest = spec.partition("=")
    if "," in name or not equals:  # tpo,depth=3
        name, rest = spec, spec
    base, *options = rest.split(",")
    if not _NAME.fullmatch(name := name.strip()):
        raise ConfigurationError(
            f"expected the name of a method to be letters, digits, '.', '_', '+' or '-', got {name!r} in {spec!r}; "
            "write NAME=METHOD,option=value"
        )
    settings: dict[str, Any] = {"depth": depth, **dict(_option(text, spec) for text in options)}
    found = _BEST_OF.fullmatch(base)
    if options and (found or base in _WITHOUT_STEPS):
        raise ConfigurationError(
            f"expected no options for {base}, which has no steps, got {', '.join(options)} in {spec!r}"
        )
    if found:
        samples = int(found.group(1))
        if samples < 1:
            raise ConfigurationError(f"expected best-of-N with N of at least 1, got {base!r}")
        return Method(name=name, module=_samples(common), samples=samples)
    if base in METHODS:
        return replace(METHODS[base](dict(common), settings), name=name)
    if Path(base).is_file():
        step = _step_of(Path(base))
        return replace(_tpo(dict(common), {**settings, step: base}), name=name)
    near = difflib.get_close_matches(base, METHODS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigurationError(
        f"expected a method of {', '.join(METHODS)}, bonN, or the file of a template, got {base!r} in {spec!r}"
        + hint
    )


def _option(text: str, spec: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or key not in ("depth", "selection", *_STEPS):
        raise ConfigurationError(
            f"expected depth=, selection=, loss=, gradient= or update= in {spec!r}, got {text!r}"
        )
    if key != "depth":
        return key, value
    if not value.isdigit():
        raise ConfigurationError(f"expected a whole number for depth in {spec!r}, got {value!r}")
    return key, int(value)


def _step_of(path: Path) -> str:
    """Tell which step a file is for: a saved step says it, a template's name begins with it."""
    if path.suffix == ".json":
        try:
            saved: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(
                f"expected {path} to be a saved step, it is not JSON: {error}"
            ) from error
        named = saved.get("step") if isinstance(saved, dict) else None
    else:
        named = re.split(r"[^a-z]", path.stem.lower(), maxsplit=1)[0]
    if named not in _STEPS:
        raise ConfigurationError(
            f"cannot tell which step {path} is for; begin its name with loss_, gradient_ or update_, or write "
            f"NAME=tpo,loss={path}"
        )
    return str(named)


def _programs(settings: dict[str, Any], *, revision: bool = False) -> dict[str, Any]:
    return {
        step: load_program(settings[step], step, revision=revision)
        if isinstance(settings[step], str)
        else settings[step]
        for step in _STEPS
        if step in settings
    }


def _tpo(common: dict[str, Any], settings: dict[str, Any]) -> Method:
    extra = {key: settings[key] for key in ("depth", "selection") if key in settings}
    return Method(name="tpo", module=TPOModule(**common, **extra, **_programs(settings)))


def _with(**defaults: Any) -> Callable[[dict[str, Any], dict[str, Any]], Method]:
    return lambda common, settings: _tpo(common, {**defaults, **settings})


def _revision(common: dict[str, Any], settings: dict[str, Any]) -> Method:
    extra = {key: settings[key] for key in ("depth", "selection") if key in settings}
    programs = _programs(settings, revision=True)
    return Method(name="revision", module=RevisionModule(**common, **extra, **programs))


def _self_refine(common: dict[str, Any], settings: dict[str, Any]) -> Method:
    """One response, reviewed and rewritten ``depth`` times; no reward decides anything."""
    settings = {"selection": "latest", **settings}
    method = _revision({**common, "width": 1}, settings)
    return replace(method, take="last")


def _samples(common: Mapping[str, Any]) -> BestOfNModule:
    return BestOfNModule(**{key: value for key, value in common.items() if key != "critic_lm"})


def _best_of_n(common: dict[str, Any], settings: dict[str, Any]) -> Method:
    return Method(name="bon", module=_samples(common), matched=True)


def _single(common: dict[str, Any], settings: dict[str, Any]) -> Method:
    return Method(name="single", module=_samples(common), samples=1)


METHODS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Method]] = {
    "tpo": _tpo,
    "revision": _revision,
    "bon": _best_of_n,
    "single": _single,
    "self-refine": _self_refine,
    "multi-loss": _with(selection="first-round"),
    "median": _with(selection="median"),
    "within-step": _with(selection="within-step"),
    "fused": _with(loss=FusedCritique, gradient=None),
    "no-gradient": _with(gradient=None),
    "reward-aware": _with(loss=RewardAwareLoss),
    "draft-free": _with(update=DraftFreeUpdate),
    "pool-update": _with(update=PoolUpdate),
}
"""The methods by the names that the command line uses."""
