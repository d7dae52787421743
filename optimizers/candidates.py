"""Hand-written candidates for one step: read from files, checked, and put into copies of a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dspy

from tpo_modules.errors import ConfigurationError, TPOError
from tpo_modules.objects import load_object
from tpo_modules.step import Program, Step, check_offered, find_predictors
from tpo_modules.templates import load_program, template_signature
from tpo_modules.tpo import TPOModule

Module = TypeVar("Module", bound=TPOModule)

STEPS = ("loss", "gradient", "update")
"""The steps that can be raced: those after the first round."""

DEFAULT = "default"
"""Name of the student's own prompt among the candidates."""

_SUFFIXES = (".txt", ".md", ".json")


class DroppedInputWarning(UserWarning):
    """A candidate is not shown an input that the student's own prompt is shown."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate of a race.

    Attributes:
        name: What it is called.
        module: A copy of the student that has it.
        drops: Inputs that the student's own prompt is shown, and this one is not.
    """

    name: str
    module: TPOModule
    drops: tuple[str, ...]

    def warning(self, step: str) -> str | None:
        """Say which inputs are dropped, and show the prompt; None where none is."""
        if not self.drops:
            return None
        try:
            messages = self.module.render(step) if step in self.module.steps() else []
        except ConfigurationError:  # a program that hides what it sends
            messages = []
        shown = "\n".join(str(message["content"]) for message in messages) or "(left out)"
        return (
            f"the candidate {self.name!r} for the {step} is not shown {', '.join(self.drops)}, which the "
            f"present one is. It races all the same; this is what it sends:\n{shown}"
        )


def make_candidates(
    student: TPOModule, step: str, given: Mapping[str, Any] | Sequence[Any], *, depth: int
) -> list[Candidate]:
    """Put each candidate into a copy of the student; the student's own prompt comes first, as ``"default"``.

    Args:
        student: The module whose step is raced.
        step: ``"loss"``, ``"gradient"`` or ``"update"``.
        given: By name, or in order: a signature class, a ``dspy.Module``, a template as text, a ``Path`` as
            `load_program` reads it, or None to leave the step out (the update cannot be). Names default to those
            of classes and files, else to ``"candidate 1"`` and so on.
        depth: Depth of the copies.

    Raises:
        ConfigurationError: There is no such step, no candidate, one that cannot be used (named), or two that are
            the same prompt.
        SignatureError: A candidate asks for something that is not offered.
    """
    if step not in STEPS:
        raise ConfigurationError(
            f"expected one of the steps {list(STEPS)} to race, got {step!r}"
            + (": its candidates make other first rounds; run each, then `tpo compare`"
               if step == "policy" else "")
        )  # fmt: skip
    named = _named(given)
    if not named:
        raise ConfigurationError(f"expected at least one candidate for the {step}, got none")
    own = copy_module(student)
    own.depth = depth
    shown = _inputs(own, step)
    made = [Candidate(DEFAULT, own, ())]
    for name, value in named.items():
        try:
            module = swap_step(own, step, _as_program(value, step, student))
        except TPOError as error:
            raise type(error)(f"candidate {name!r}: {error}") from error
        drops = tuple(word for word in shown if word not in _inputs(module, step))
        made.append(Candidate(name, module, drops))
    _refuse_repeats(made, step)
    return made


def swap_step(module: Module, step: str, program: Program | None) -> Module:
    """Return a copy of a module with another program in one step; the step's LM is kept.

    Raises:
        ConfigurationError: The program cannot be that step.
        SignatureError: It asks for something that is not offered.
    """
    twin = copy_module(module)
    old = twin.steps().get(step)
    if program is None:
        if step == "update":
            raise ConfigurationError("expected a program for the update, which cannot be left out")
        setattr(twin, step, None)
    else:
        new = Step(program, name=step)
        lms = [p.lm for p in find_predictors(old.predict)] if old else []
        for predictor in find_predictors(new.predict):
            predictor.lm = predictor.lm or (lms[0] if lms else None)
        setattr(twin, step, new)
    for name, part in twin.steps().items():
        if name != "policy":
            check_offered(part, _offered(twin, name))
    return twin


def read_candidates(
    paths: Iterable[Path], step: str, *, revision: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Read candidates from files, or from every file of a folder.

    A file is a template (.txt, .md), a saved step (.json), or Python source (.py), each public signature of which
    is a candidate. In a folder, files named after another step (``gradient_...`` where the loss is asked for) are
    left out.

    Args:
        paths: Files and folders.
        step: The step that they are for.
        revision: See `load_program`.

    Returns:
        Programs by name (the file's, without its suffix and the step's name), and the names of files left out.

    Raises:
        ConfigurationError: There is no such file, none for this step, or one that cannot be used (named).
    """
    files: list[Path] = []
    skipped: list[str] = []
    for path in paths:
        inside = _inside(path)
        others = tuple(f"{name}_" for name in ("policy", *STEPS) if name != step)
        chosen = [p for p in inside if p is path or not p.name.startswith(others)]
        skipped += [p.name for p in inside if p not in chosen]
        if not chosen:
            raise ConfigurationError(
                f"expected templates for the {step} in {path}, as .txt, .md, .json or .py files, found none"
                + (
                    f" (left out, as named after other steps: {', '.join(skipped)})"
                    if skipped
                    else ""
                )
            )
        files += chosen
    found: dict[str, Any] = {}
    for file in files:
        for name, program in _read(file, step, revision).items():
            if name in found:
                raise ConfigurationError(
                    f"expected candidates of different names, got {name!r} twice, again in {file}: rename it"
                )
            found[name] = program
    return found, skipped


def _inside(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigurationError(f"expected a file or a folder of candidates, found no {path}")
    return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))


def _read(file: Path, step: str, revision: bool) -> dict[str, Any]:
    try:
        if file.suffix == ".py":
            return _signatures_of(file)
        if file.suffix not in _SUFFIXES:
            raise ConfigurationError(
                f"a {file.suffix or 'nameless'} file is none of .txt, .md, .json, .py"
            )
        return {
            file.stem.removeprefix(f"{step}_"): load_program(str(file), step, revision=revision)
        }
    except (TPOError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot use the candidate {file}: {error}") from error


def _signatures_of(file: Path) -> dict[str, Any]:
    module = load_object(f"{file}:__dict__")
    found = {
        name: value
        for name, value in module.items()
        if isinstance(value, type)
        and issubclass(value, dspy.Signature)
        and value is not dspy.Signature
        and not name.startswith("_")
        and value.__module__ == file.stem
    }
    if not found:
        raise ConfigurationError("it defines no public dspy.Signature")
    return found


def _named(given: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    if isinstance(given, Mapping):
        named = {str(name): value for name, value in given.items()}
    else:
        named = {}
        for number, value in enumerate(given, start=1):
            name = _name_of(value, number)
            if name in named:
                raise ConfigurationError(
                    f"expected candidates of different names, got {name!r} twice: give them by name"
                )
            named[name] = value
    if DEFAULT in named:
        raise ConfigurationError(
            f"the name {DEFAULT!r} is the student's own prompt's; rename the candidate"
        )
    return named


def _name_of(value: Any, number: int) -> str:
    if isinstance(value, Path):
        return value.stem
    return value.__name__ if isinstance(value, type) else f"candidate {number}"


def _as_program(value: Any, step: str, student: TPOModule) -> Program | None:
    revision = student.method == "revision"
    if isinstance(value, Path):
        try:
            return load_program(str(value), step, revision=revision)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read {value}: {error}") from error
    if isinstance(value, str):
        from signatures import RevisionLoss

        like = RevisionLoss if revision and step == "loss" else None
        return template_signature(value, step, like=like, inputs=student.policy.inputs)
    return value


def _offered(module: TPOModule, step: str) -> list[str]:
    offered = list(module.offered)
    if step != "loss" and module.loss is not None:
        offered.append("textual_loss")
    if step == "update" and (module.loss is not None or module.gradient is not None):
        offered.append("textual_gradient")
    return offered


def _inputs(module: TPOModule, step: str) -> tuple[str, ...]:
    part = module.steps().get(step)
    return part.inputs if part else ()


def copy_module(module: Module) -> Module:
    """Copy a module, but for its LMs."""
    twin = module.deepcopy()
    for name, part in module.steps().items():
        copied = find_predictors(twin.steps()[name].predict)
        for ours, theirs in zip(find_predictors(part.predict), copied, strict=True):
            theirs.lm = ours.lm
    return twin


def _refuse_repeats(candidates: Sequence[Candidate], step: str) -> None:
    seen: dict[str, str] = {}
    for candidate in candidates:
        prompt = repr(candidate.module.config()["prompts"].get(step))
        if prompt in seen:
            raise ConfigurationError(
                f"expected candidates that differ, but {candidate.name!r} is the same prompt as {seen[prompt]!r}: "
                "leave one out"
            )
        seen[prompt] = candidate.name
