"""`PlainTextAdapter`: what a signature says, as plain text, and the whole completion as its output."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import dspy
from dspy.adapters.utils import format_field_value
from dspy.signatures.signature import infer_prefix

Message = dict[str, Any]

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")


class PlainTextAdapter(dspy.Adapter):
    """Send instructions and labelled inputs as plain text; take the completion verbatim.

    It serves signatures with exactly one ``str`` output. There are no markers to parse, so no completion
    is lost to a missing one, and what `format` returns is exactly what is sent:

    - One input and no instructions: the input is the user message, with nothing around it.
    - One input and instructions: the instructions are the system message, the input the user message.
    - Several inputs: one user message, the instructions first, then a labelled section per input.
    - ``{name}`` in the instructions is replaced by that input, literally; inputs that are not referenced
      follow as labelled sections, because optimizers rewrite instructions and drop placeholders.
      ``{{name}}`` stays as ``{name}``.
    - Empty inputs (None, ``""``, ``[]``) get no section. Numbers are shown with three decimals, lists as
      numbered items.
    - Demos become pairs of a user and an assistant message; a demo without the output is left out.
    - A ``dspy.History`` goes between the system message and the user's: its entries are either values
      of the signature's fields, or chat messages (``role``, ``content``), which pass as they are.

    A leading ``<think>...</think>`` block is split off the output. An empty completion is an empty output,
    not an error, so that one empty sample does not lose the others of the same request.

    Any other signature (several outputs, typed outputs, images, tools) is handed to `fallback`.

    Args:
        fallback: The adapter for every other signature; a ``dspy.ChatAdapter`` by default.
        **kwargs: As for ``dspy.Adapter``.
    """

    def __init__(self, fallback: dspy.Adapter | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fallback = fallback or dspy.ChatAdapter()

    def __call__(
        self,
        lm: Any,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Format, call and parse, as ``dspy.Adapter`` does."""
        if not is_plain_text(signature):
            return self.fallback(lm, lm_kwargs, signature, demos, inputs)
        return super().__call__(lm, lm_kwargs, signature, demos, inputs)

    async def acall(
        self,
        lm: Any,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Do what ``__call__`` does, asynchronously."""
        if not is_plain_text(signature):
            return await self.fallback.acall(lm, lm_kwargs, signature, demos, inputs)
        return await super().acall(lm, lm_kwargs, signature, demos, inputs)

    def format(
        self,
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[Message]:
        """Render the messages that are sent, in order."""
        if not is_plain_text(signature):
            return self.fallback.format(signature, demos, inputs)
        history_name = self._get_history_field_name(signature)
        shown = signature.delete(history_name) if history_name else signature
        system, instructions = _place_instructions(shown, own_instructions(signature))
        messages: list[Message] = [_message("system", system)] if system else []
        for demo in demos:
            messages += _demo_messages(shown, instructions, demo)
        if history_name and inputs.get(history_name) is not None:
            messages += _history_messages(shown, inputs[history_name])
        return [*messages, _message("user", _user_text(shown, instructions, inputs))]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Take the whole completion, less its thinking block, as the only output."""
        if not is_plain_text(signature):
            return self.fallback.parse(signature, completion)
        return {_output_name(signature): split_thinking(completion)[1]}

    def _call_postprocess(
        self,
        processed_signature: type[dspy.Signature],
        original_signature: type[dspy.Signature],
        outputs: list[dict[str, Any] | str],
        lm: Any,
        lm_kwargs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        values: list[dict[str, Any]] = []
        for output in outputs:
            detailed = output if isinstance(output, dict) else {"text": output}
            value = self.parse(processed_signature, detailed.get("text") or "")
            if detailed.get("logprobs"):
                value["logprobs"] = detailed["logprobs"]
            values.append(value)
        return values


def is_plain_text(signature: type[dspy.Signature]) -> bool:
    """Say whether a signature is one that `PlainTextAdapter` serves itself.

    True for exactly one output, of type ``str``, and inputs that can be shown as text: no image, audio,
    tool or other ``dspy.Type`` (a ``dspy.History`` is fine).
    """
    shared: Any = signature
    return _is_plain_text(shared)


@functools.lru_cache(maxsize=256)  # asked several times per call; a signature's fields never change
def _is_plain_text(signature: Any) -> bool:
    outputs = list(signature.output_fields.values())
    if len(outputs) != 1 or outputs[0].annotation is not str:
        return False
    annotations = [field.annotation for field in signature.input_fields.values()]
    return not any("dspy.adapters.types" in _type_path(a) for a in annotations if a != dspy.History)


def split_thinking(completion: str) -> tuple[str | None, str]:
    """Split a completion into its leading thinking block and its answer.

    A block that was opened by the chat template (only ``</think>`` in the text) is recognised too, but not tags
    that the answer itself mentions further down; one that was never closed, because the token limit came first,
    is all thinking and leaves an empty answer.

    Returns:
        The thinking, or None where there is none, and the answer; both stripped.
    """
    text = completion.strip()
    opened = text.startswith("<think>")
    thinking, closed, answer = text.removeprefix("<think>").partition("</think>")
    if not closed:
        return (thinking.strip(), "") if opened else (None, text)
    if not opened and "<think>" in thinking:
        return None, text
    return thinking.strip(), answer.strip()


def own_instructions(signature: type[dspy.Signature]) -> str:
    """Return a signature's instructions, or ``""`` where DSPy made them up from the field names."""
    inputs = ", ".join(f"`{name}`" for name in signature.input_fields)
    outputs = ", ".join(f"`{name}`" for name in signature.output_fields)
    made_up = f"Given the fields {inputs}, produce the fields {outputs}."
    instructions = signature.instructions.strip()
    return "" if instructions == made_up else instructions


def placeholders(text: str) -> list[str]:
    """Return the names that stand in single braces in a template, in order, without repeats."""
    names = [match.group(2) for match in _PLACEHOLDER.finditer(text) if match.group(2)]
    return list(dict.fromkeys(names))


def show_value(field: Any, value: Any) -> str:
    """Render one input as text: see `PlainTextAdapter` for numbers and lists."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return "\n\n".join(f"[{i}]\n{item}" for i, item in enumerate(value, start=1))
    return str(format_field_value(field, value))


def labelled(signature: type[dspy.Signature], values: Mapping[str, Any]) -> str:
    """Render values as labelled sections, in the signature's order; empty ones are left out."""
    sections: list[str] = []
    for name, field in signature.input_fields.items():
        text = show_value(field, values.get(name))
        if text:
            sections.append(f"{_label(name, field)}\n{text}")
    return "\n\n".join(sections)


def _label(name: str, field: Any) -> str:
    prefix = str(field.json_schema_extra.get("prefix") or infer_prefix(name) + ":")
    desc = str(field.json_schema_extra.get("desc") or "")
    if not desc or desc == f"${{{name}}}":
        return prefix
    return f"{prefix.removesuffix(':')} ({desc}):"


def _place_instructions(signature: type[dspy.Signature], instructions: str) -> tuple[str, str]:
    """Decide where instructions go: the system message, or the head of the user's."""
    names = list(signature.input_fields)
    referenced = any(name in signature.input_fields for name in placeholders(instructions))
    alone = len(names) == 1 and signature.input_fields[names[0]].annotation is str
    return (instructions, "") if alone and not referenced else ("", instructions)


def _user_text(
    signature: type[dspy.Signature], instructions: str, values: Mapping[str, Any]
) -> str:
    fields = signature.input_fields
    if not instructions and len(fields) == 1:
        (name,) = fields
        return show_value(fields[name], values.get(name)) + _cue(signature)
    referenced: set[str] = set()

    def fill(match: re.Match[str]) -> str:
        escaped, name = match.group(1), match.group(2)
        if (escaped or name) not in fields:
            return match.group(0)
        if escaped:
            return f"{{{escaped}}}"
        referenced.add(name)
        return show_value(fields[name], values.get(name))

    head = _PLACEHOLDER.sub(fill, instructions)
    rest = {name: value for name, value in values.items() if name not in referenced}
    parts = [head, labelled(signature, rest)]
    return "\n\n".join(part for part in parts if part) + _cue(signature)


def _cue(signature: type[dspy.Signature]) -> str:
    """Return an output prefix that someone set (COPRO searches over it), as the prompt's last line."""
    name = _output_name(signature)
    field: Any = signature.output_fields[name]
    prefix = str(field.json_schema_extra.get("prefix") or "")
    return "" if prefix in ("", infer_prefix(name) + ":") else f"\n\n{prefix}"


def _demo_messages(
    signature: type[dspy.Signature], instructions: str, demo: Mapping[str, Any]
) -> list[Message]:
    output = demo.get(_output_name(signature))
    if not output or not any(name in demo for name in signature.input_fields):
        return []
    return [
        _message("user", _user_text(signature, instructions, demo)),
        _message("assistant", str(output)),
    ]


def _history_messages(signature: type[dspy.Signature], history: Any) -> list[Message]:
    entries = history.messages if isinstance(history, dspy.History) else history["messages"]
    messages: list[Message] = []
    for entry in entries:
        if "role" in entry and "content" in entry:
            messages.append(dict(entry))
            continue
        text = _user_text(signature, "", entry)
        if text:
            messages.append(_message("user", text))
        if entry.get(_output_name(signature)):
            messages.append(_message("assistant", str(entry[_output_name(signature)])))
    return messages


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _output_name(signature: type[dspy.Signature]) -> str:
    return next(iter(signature.output_fields))


def _type_path(annotation: Any) -> str:
    return f"{getattr(annotation, '__module__', '')} {annotation!r}"
