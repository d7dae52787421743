"""Token ids of text in which control tokens do not act.

A control token is one of the tokenizer's special tokens, or an added token that the chat template
writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Noncharacters of Unicode: never assigned, so no text has a use for them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_PATTERNS: WeakKeyDictionary[Any, dict[tuple[str, int], re.Pattern[str]]] = WeakKeyDictionary()
_MARKED = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    """Encode a text as it stands: control tokens act, and none are added."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])


def control_pattern(tokenizer: PreTrainedTokenizerBase, template: str = "") -> re.Pattern[str]:
    """Return an expression that finds control tokens spelt out in a text, the longest first."""
    known = _PATTERNS.setdefault(tokenizer, {})
    key = (template, len(tokenizer))  # tokens may be added later
    if key not in known:
        known[key] = _make_pattern(tokenizer, template)
    return known[key]


def _make_pattern(tokenizer: PreTrainedTokenizerBase, template: str) -> re.Pattern[str]:
    added: Mapping[int, Any] = tokenizer.added_tokens_decoder
    names = {str(token) for token in added.values() if token.special or str(token) in template}
    names.update(tokenizer.all_special_tokens)
    names = {name for name in names if name and not name.isspace()}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def mark(control: re.Pattern[str], text: str) -> str:
    """Mark the control tokens spelt out in a text, so that they are known as text once rendered."""
    text = text.replace(_OPEN, "").replace(_CLOSE, "")
    return control.sub(lambda match: f"{_OPEN}{match[0]}{_CLOSE}", text)


def loosen(control: re.Pattern[str], text: str) -> str:
    """Put a space into each control token spelt out in a text."""
    return control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def marked_ids(tokenizer: PreTrainedTokenizerBase, rendered: str) -> list[int]:
    """Encode a rendered text: what `mark` marked as text, all else as it stands."""
    if _OPEN not in rendered and _CLOSE not in rendered:
        return plain_ids(tokenizer, rendered)
    ids: list[int] = []
    for index, piece in enumerate(_MARKED.split(rendered)):
        piece = piece.replace(_OPEN, "").replace(_CLOSE, "")  # a template may split a marked text
        if index % 2:
            ids += _spelt_out_ids(tokenizer, piece)
        elif piece:
            ids += _continued_ids(tokenizer, piece) if ids else plain_ids(tokenizer, piece)
    return ids


def _spelt_out_ids(tokenizer: PreTrainedTokenizerBase, control_token: str) -> list[int]:
    own_id: Any = tokenizer.convert_tokens_to_ids(control_token)
    ids = _continued_ids(tokenizer, control_token, split_special_tokens=True)
    if own_id in ids:  # not flagged as special, or a vocabulary that holds it as text
        ids = _continued_ids(tokenizer, control_token[0])
        ids += _continued_ids(tokenizer, control_token[1:])
    return ids


def _continued_ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    """Encode a text from the middle of another, without the space that some put at a start."""
    newline = plain_ids(tokenizer, "\n")
    ids = plain_ids(tokenizer, "\n" + text, **options)
    if ids[: len(newline)] == newline:
        return ids[len(newline) :]
    return plain_ids(tokenizer, text, **options)
