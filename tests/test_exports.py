"""What the packages promise: names, types, docstrings, and a light import."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib.resources import files
from typing import Any

import pytest

import optimizers
import signatures
import tpo_modules
import tpo_modules.scorers

PACKAGES = [signatures, tpo_modules, optimizers]

# Needs what not every installation has; its own tests import it.
_OPTIONAL = ("tpo_modules.scorers.bundled", "tpo_modules.scorers.serve")


def test_public_names() -> None:
    assert tpo_modules.__all__ == [
        "BestOfNModule",
        "Candidate",
        "CandidatePool",
        "Event",
        "FunctionScorer",
        "OpenAIServerLM",
        "Pair",
        "PlainTextAdapter",
        "Query",
        "Response",
        "RevisionModule",
        "Reward",
        "Sampling",
        "Scorer",
        "Selection",
        "Step",
        "StopRule",
        "TPOError",
        "TPOModule",
        "TPOTrace",
        "__version__",
        "embedded_lm",
        "extreme_pair",
        "median_pair",
        "observe",
        "within_step_pair",
    ]


@pytest.mark.parametrize("package", [*PACKAGES, tpo_modules.scorers])
def test_every_exported_name_can_be_had(package: Any) -> None:
    names = getattr(package, "__all__", [])
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


LIGHT = """
import sys, tpo_modules, signatures
from tpo_modules import TPOModule, PlainTextAdapter
TPOModule(scorer=lambda query, response: 0.0).render("loss")
heavy = {"torch", "transformers", "litellm", "sklearn", "xllamacpp", "peft", "starlette", "typer"}
print(sorted(heavy & set(sys.modules)))
"""


SCORERS = """
import sys
from tpo_modules import FunctionScorer, Query
from tpo_modules.scorers import RewardModelScorer, ServerScorer
assert FunctionScorer(lambda query, response: len(response)).score(Query("q"), ["a", "bc"]) == [1, 2]
print(sorted({"torch", "transformers", "litellm", "dspy", "typer"} & set(sys.modules)))
"""

COMMAND_LINE = """
import sys
from typer.testing import CliRunner
from optimizers.command import cli
for words in (["--help"], ["score", "--help"], ["report", "--help"], ["serve-scorer", "--help"]):
    assert CliRunner().invoke(cli.app, words).exit_code == 0
print(sorted({"torch", "transformers", "litellm", "dspy", "matplotlib"} & set(sys.modules)))
"""


@pytest.mark.parametrize("script", [LIGHT, SCORERS, COMMAND_LINE])
def test_the_import_is_light(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_type_marker_is_there(package: Any) -> None:
    assert (files(package) / "py.typed").is_file()


def modules() -> list[str]:
    names: list[str] = []
    for package in PACKAGES:
        names.append(package.__name__)
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        names += [info.name for info in found]
    return [name for name in names if not name.startswith(_OPTIONAL)]


@pytest.mark.parametrize("name", modules())
def test_everything_public_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, name
    silent = [
        f"{name}.{path}"
        for path, thing in _public(module)
        if not (inspect.getdoc(thing) or "").strip()
    ]
    assert silent == []


def _public(module: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, thing in vars(module).items():
        own = getattr(thing, "__module__", None) == module.__name__
        if name.startswith("_") or not own:
            continue
        if inspect.isclass(thing):
            found.append((name, thing))
            found += [
                (f"{name}.{key}", value.fget if isinstance(value, property) else value)
                for key, value in vars(thing).items()
                if not key.startswith("_")
                and (inspect.isfunction(value) or isinstance(value, property))
            ]
        elif inspect.isfunction(thing):
            found.append((name, thing))
    return found


def test_errors_are_the_builtins_they_refine() -> None:
    errors = importlib.import_module("tpo_modules.errors")
    kinds = [kind for _, kind in _public(errors) if inspect.isclass(kind)]
    assert len(kinds) > 10
    for kind in kinds:
        assert issubclass(kind, tpo_modules.TPOError)
        assert kind.__name__ in (errors.__doc__ or ""), "is missing from the drawing"
    for child, builtin in [
        ("ConfigurationError", ValueError),
        ("SignatureError", ValueError),
        ("InputError", ValueError),
        ("DataFileError", ValueError),
        ("TraceError", ValueError),
        ("MissingExtraError", ImportError),
        ("NoCandidateError", RuntimeError),
        ("ScorerError", RuntimeError),
        ("ModelNotFoundError", OSError),
        ("RewardError", ValueError),
    ]:
        assert issubclass(getattr(errors, child), builtin)


def test_a_missing_extra_is_named() -> None:
    errors = importlib.import_module("tpo_modules.errors")
    error = errors.MissingExtraError("xllamacpp", "local", "the embedded LM")
    assert str(error) == (
        "the embedded LM needs the package 'xllamacpp', which is not installed: "
        "pip install 'dspy-tpo[local]'"
    )
