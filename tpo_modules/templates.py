"""Prompts from outside: a signature by import path, a text file that holds a template, or a saved step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy

from signatures import ResponseUpdate, RevisionLoss, TextualGradient, TextualLoss
from tpo_modules.adapter import placeholders
from tpo_modules.errors import ConfigurationError, SignatureError
from tpo_modules.objects import load_object
from tpo_modules.run import OFFERED_PAIR
from tpo_modules.saved_steps import read_step

_DEFAULTS: dict[str, type[dspy.Signature]] = {
    "loss": TextualLoss,
    "gradient": TextualGradient,
    "update": ResponseUpdate,
}
_TYPES: dict[str, Any] = {
    "ranked_responses": list[str],
    "past_gradients": list[str],
    "chosen_reward": float,
    "rejected_reward": float,
    "reward_gap": float,
    "step": int,
}


def load_program(spec: str, step: str, *, revision: bool = False) -> Any:
    """Load a step's program from what a command line can say.

    Args:
        spec: ``none`` to leave the step out; ``module:Name`` or ``file.py:Name`` for a signature or module;
            the path of a text file that holds a template (see `template_signature`); or that of a JSON file
            that holds a saved step (see `saved_steps`).
        step: ``"loss"``, ``"gradient"`` or ``"update"``.
        revision: Whether the step belongs to the Revision baseline, whose loss is shown no rejected response.

    Returns:
        A signature class, a ``dspy.Module``, or None.

    Raises:
        ConfigurationError: There is no such file, module or name, or the saved step is broken or another one.
        SignatureError: The template asks for something that is not offered.
    """
    if spec == "none":
        return None
    path = Path(spec)
    if path.suffix == ".json":
        return _saved_program(path, step)
    if path.is_file() and path.suffix != ".py":
        like = RevisionLoss if revision and step == "loss" else _DEFAULTS[step]
        return template_signature(path.read_text(encoding="utf-8"), step, like=like, name=path.stem)
    if ":" in spec:
        return load_object(spec)
    raise ConfigurationError(
        f"expected the {step} as a text file, a saved step (.json), 'module:Name', 'file.py:Name' or 'none', "
        f"got {spec!r}, "
        "which is no file here"
    )


def _saved_program(path: Path, step: str) -> dspy.Predict:
    saved = read_step(path)
    if saved.step != step:
        raise ConfigurationError(f"expected {path} to hold a {step} step, got a {saved.step} step")
    return saved.to_program()


def template_signature(
    text: str,
    step: str,
    *,
    like: type[dspy.Signature] | None = None,
    name: str = "Template",
    inputs: Sequence[str] = (),
) -> type[dspy.Signature]:
    """Make a signature of a prompt template.

    ``{name}`` is replaced by that value; write ``{{name}}`` for braces that should stay. A template that
    names no value gets those of the default prompt, as labelled sections below it.

    Args:
        text: The template.
        step: ``"loss"``, ``"gradient"`` or ``"update"``.
        like: The signature whose inputs and output it takes over; the step's default one.
        name: Name of the signature.
        inputs: Names of the policy's inputs, which a template may use beside what the loop offers.

    Raises:
        SignatureError: The text is empty, or a name in single braces is not offered.
    """
    like = like or _DEFAULTS[step]
    if not text.strip():
        raise SignatureError(f"expected a template for the {step}, got an empty text")
    output = next(iter(like.output_fields))
    made = {"update": ["textual_loss", "textual_gradient"], "gradient": ["textual_loss"]}
    offered = ["query", *inputs, *OFFERED_PAIR, *made.get(step, [])]
    named = placeholders(text)
    unknown = [word for word in named if word not in offered]
    if unknown:
        raise SignatureError(
            f"the template for the {step} uses {', '.join(f'{{{word}}}' for word in unknown)}, which is not "
            f"offered; offered are {', '.join(offered)}. Double the braces of text that is no input: "
            f"{{{{{unknown[0]}}}}}"
        )
    if not named:
        return like.with_instructions(text.strip())
    fields: dict[str, Any] = {word: (_TYPES.get(word, str), dspy.InputField()) for word in named}
    fields[output] = (str, dspy.OutputField())
    make_signature: Any = dspy.Signature
    return make_signature(fields, text.strip(), signature_name=name)
