"""Text that files and requests can carry: halves of a character replaced by U+FFFD."""

from __future__ import annotations

from typing import Any


def whole_characters(text: str) -> str:
    """Replace halves of a character, which a cut at the token limit may leave and JSON cannot carry."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def whole_text(value: Any) -> Any:
    """Do so in a text, or in all texts that lists, tuples (which become lists) and dicts hold."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        return {whole_text(key): whole_text(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [whole_text(one) for one in value]
    return value
