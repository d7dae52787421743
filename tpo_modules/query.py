"""Making a `Query` of a policy's inputs: checked, as text, and as a conversation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import dspy

from tpo_modules.adapter import PlainTextAdapter, is_plain_text, labelled, own_instructions
from tpo_modules.errors import InputError
from tpo_modules.scorers.base import Message, Query
from tpo_modules.step import Step


def make_query(policy: Step, inputs: Mapping[str, Any]) -> Query:
    """Check a policy's inputs and make a query of them.

    The text is the single ``str`` input, or one labelled section per input. With a ``dspy.History`` the text
    begins with the earlier turns, and ``messages`` holds them as they are sent.

    Raises:
        InputError: An input is missing, unknown, empty where it is the only one, or no string where the
            signature says ``str``.
    """
    _check_names(policy, inputs)
    signature = policy.signature
    if signature is None:
        shown = {name: value for name, value in inputs.items() if value not in (None, "")}
        text = "\n\n".join(f"{name}:\n{value}" for name, value in shown.items())
        if len(shown) == 1:
            text = str(next(iter(shown.values())))
        return _checked(text, inputs, ())
    _check_texts(signature, inputs)
    history = next(
        (n for n, f in signature.input_fields.items() if f.annotation == dspy.History), None
    )
    asked = signature.delete(history) if history else signature
    names = [name for name in asked.input_fields if inputs.get(name) not in (None, "")]
    text = labelled(asked, inputs)
    if len(asked.input_fields) == 1 and names and isinstance(inputs[names[0]], str):
        text = inputs[names[0]]
    messages = _messages(signature, inputs)
    earlier = messages[:-1] if history and inputs.get(history) is not None else []
    turns = [f"{m['role'].capitalize()}: {m['content']}" for m in earlier if m["role"] != "system"]
    if turns:
        text = "\n\n".join([*turns, f"User: {text}"])
    return _checked(text, inputs, messages)


def _messages(signature: type[dspy.Signature], inputs: Mapping[str, Any]) -> list[Message]:
    """Tell the conversation as a reward model should see it: without a program's own formatting."""
    if not is_plain_text(signature):
        return []
    given: Any = signature
    plain = signature if own_instructions(signature) else _without_instructions(given)
    return list(PlainTextAdapter().format(plain, [], dict(inputs)))


@functools.lru_cache(
    maxsize=64
)  # making a signature class costs more than the rest of a query's set-up
def _without_instructions(signature: Any) -> Any:
    return signature.with_instructions(" ")


def _checked(text: str, inputs: Mapping[str, Any], messages: list[Message] | tuple[()]) -> Query:
    if not text.strip():
        raise InputError("expected a query with some text, got an empty one: nothing to answer")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"expected a query of valid Unicode text, got half a character: {error}"
        ) from None
    return Query(text, inputs=inputs, messages=messages)


def _check_names(policy: Step, inputs: Mapping[str, Any]) -> None:
    missing = [name for name in policy.required if name not in inputs]
    unknown = [name for name in inputs if name not in policy.inputs]
    optional = [n for n in missing if policy.signature and _is_history(policy.signature, n)]
    missing = [name for name in missing if name not in optional]
    if missing or unknown:
        raise InputError(
            f"expected the policy's inputs {list(policy.inputs)}, got {list(inputs)}"
            + (f"; missing: {missing}" if missing else "")
            + (f"; unknown: {unknown}" if unknown else "")
        )


def _is_history(signature: type[dspy.Signature], name: str) -> bool:
    return (
        name in signature.input_fields and signature.input_fields[name].annotation == dspy.History
    )


def _is_conversation(value: Any) -> bool:
    if value is None or isinstance(value, dspy.History):
        return True
    turns = value.get("messages") if isinstance(value, Mapping) else None
    return isinstance(turns, list) and all(isinstance(turn, Mapping) for turn in turns)


def _check_texts(signature: type[dspy.Signature], inputs: Mapping[str, Any]) -> None:
    for name, field in signature.input_fields.items():
        value = inputs.get(name)
        if field.annotation == dspy.History and not _is_conversation(value):
            raise InputError(
                f"expected the input {name!r} to be a dspy.History(messages=[{{...}}, ...]), "
                f"got {type(value).__name__}: {value!r:.80}"
            )
        if field.annotation is str and name in inputs and not isinstance(value, str):
            raise InputError(
                f"expected the input {name!r} to be a string, got {type(value).__name__}: {value!r:.80}"
            )
