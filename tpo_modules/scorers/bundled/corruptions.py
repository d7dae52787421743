"""Ways in which a small policy's responses go wrong, made from good responses.

Each function takes a random generator and a response and gives the spoilt text. `spoil` picks one of
them by name. Nothing here needs torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

PHRASES: Mapping[str, Any] = json.loads(
    (Path(__file__).parent / "phrases.json").read_text(encoding="utf-8")
)
"""Hand-written texts by kind: refusals, fillers, critiques, short facts, ..."""

_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+[\"')*]*|\n+|$)\s*")
_CLEAN_ENDS = tuple(".!?\"')`*}]|;>")
_MAX_CHARS = 3000


def sentences(text: str) -> list[str]:
    """Split a text into sentences and lines, each with the space that follows it."""
    return [part for part in _SENTENCE.findall(text) if part.strip()]


def topic_of(query: str, rng: Random) -> str:
    """Take a few neighbouring words of the query, in lower case, as its topic."""
    words = re.findall(r"[A-Za-z][\w'-]*", query)[:60]
    if len(words) < 3:
        return query.strip().lower() or "this"
    width = rng.randint(2, 5)
    start = rng.randrange(max(1, len(words) - width + 1))
    return " ".join(words[start : start + width]).lower()


def ends_cleanly(text: str) -> bool:
    """Tell whether a text ends as a finished one does."""
    return text.rstrip().endswith(_CLEAN_ENDS)


def truncate(rng: Random, text: str, fraction: float | None = None) -> str:
    """Cut a text in the middle of a sentence, at about half unless told otherwise."""
    share = fraction or rng.choice([0.5, 0.5, 0.5, rng.uniform(0.2, 0.9)])
    if rng.random() < 0.5:
        cut = text[: max(1, int(len(text) * share))]
    else:
        words = re.findall(r"\S+\s*", text)
        cut = "".join(words[: max(1, int(len(words) * share))])
    cut = cut.rstrip()
    if ends_cleanly(cut):
        cut = cut.rstrip("".join(_CLEAN_ENDS)).rstrip()
        cut = cut.rsplit(" ", 1)[0] if " " in cut and rng.random() < 0.5 else cut
    return cut + rng.choice(["", "", "", "", "", "", " ..."])


def stop_early(rng: Random, text: str) -> str:
    """Cut a text behind a sentence somewhere in its first two thirds."""
    parts = sentences(text)
    if len(parts) < 4:
        return truncate(rng, text)
    keep = rng.randint(1, max(1, len(parts) * 2 // 3))
    return "".join(parts[:keep]).rstrip()


def first_part(rng: Random, text: str) -> str | None:
    """Take a beginning that can stand for itself: the first paragraph or a sentence or two."""
    paragraph = text.strip().split("\n\n")[0].strip()
    parts = sentences(paragraph)
    if len(parts) > 2 and rng.random() < 0.5:
        paragraph = "".join(parts[: rng.randint(1, 2)]).strip()
    good = 25 <= len(paragraph) < 0.8 * len(text) and paragraph.endswith((".", "!"))
    return paragraph if good else None


def _fill(unit: str, budget: int, rng: Random) -> str:
    times = max(2, min(60, budget // max(1, len(unit))))
    looped = unit * times
    return looped[: rng.randint(len(unit) * 2, len(looped))] if rng.random() < 0.3 else looped


def _loop_sentence(rng: Random, text: str) -> str:
    parts = sentences(text)
    at = rng.choice([0, rng.randrange(len(parts)), len(parts) - 1])
    keep = "".join(parts[:at])
    separator = rng.choice([" ", " ", "\n", "\n\n"])
    budget = int(max(len(text) * rng.choice([0.6, 1.0, 1.5, 2.5]) - len(keep), len(parts[at]) * 2))
    return keep + _fill(parts[at].strip() + separator, budget, rng)


def _loop_phrase(rng: Random, text: str) -> str:
    words = text.split(" ")
    at = rng.randint(min(len(words), 4), max(min(len(words), 4), int(len(words) * 0.9)))
    width = rng.choice([1, 2, 3, 5, 8, 12])
    unit = " ".join(words[max(0, at - width) : at])
    budget = max(60, int(len(text) * rng.choice([0.3, 0.7, 1.0, 1.5])))
    return " ".join(words[:at]) + " " + _fill(unit + rng.choice([" ", ", ", " "]), budget, rng)


def _loop_word(rng: Random, text: str) -> str:
    words = re.findall(r"\w+", text) or ["the"]
    unit = " ".join(rng.sample(words, min(len(words), rng.randint(1, 3)))) + " "
    keep = " ".join(text.split(" ")[: rng.choice([0, 0, 5, 20, 60])])
    budget = max(60, int(len(text) * rng.uniform(0.3, 1.0)))
    return (keep + " " + _fill(unit, budget, rng)).strip()


def _repeat_block(rng: Random, text: str) -> str:
    blocks = [block for block in text.split("\n\n") if block.strip()]
    if len(blocks) > 1 and rng.random() < 0.5:
        at = rng.randrange(len(blocks))
        blocks[at : at + 1] = [blocks[at]] * rng.randint(2, 5)
        return "\n\n".join(blocks)
    times = 2 if len(text) > 1000 else rng.randint(2, 5)
    return rng.choice([" ", "\n\n", "\n"]).join([text.strip()] * times)


def _loop_list(rng: Random, text: str) -> str:
    parts = sentences(text)
    unit = rng.choice(parts).strip()
    keep = "".join(parts[: rng.randint(0, len(parts) // 2)])
    count = rng.randint(4, 15)
    bullets = rng.choice(["- ", "* ", ""])
    lines = [f"{bullets or f'{number}. '}{unit}" for number in range(1, count + 1)]
    return keep + "\n" + "\n".join(lines)


def _stutter(rng: Random, text: str) -> str:
    parts = [part.strip() for part in sentences(text)]
    times = rng.randint(2, 3)
    return " ".join(part for part in parts for _ in range(times))


def _alternate(rng: Random, text: str) -> str:
    parts = [part.strip() for part in sentences(text)]
    at = rng.randrange(len(parts))
    pair = " ".join(parts[at : at + 2]) + " "
    return " ".join(parts[:at]) + " " + _fill(pair, max(len(text), len(pair) * 3), rng)


_REPEATERS: tuple[Callable[[Random, str], str], ...] = (
    _loop_sentence, _loop_sentence, _loop_sentence, _loop_phrase, _loop_phrase, _loop_word,
    _repeat_block, _repeat_block, _loop_list, _stutter, _alternate,
)  # fmt: skip


def repeat(rng: Random, text: str) -> str:
    """Make a text loop: a sentence, a phrase, a word, a list item, a block or all of it."""
    if not sentences(text):
        return (text.strip() + " ") * 5
    return rng.choice(_REPEATERS)(rng, text)[:_MAX_CHARS].strip()


def scramble(rng: Random, text: str) -> str:
    """Turn a text into nonsense: words or letters in random order."""
    words = text.split()[:300]
    if rng.random() < 0.7:
        rng.shuffle(words)
        return " ".join(words)
    letters = [chr(rng.randint(97, 122)) for _ in range(len(text[:600]))]
    for at in range(4, len(letters), rng.randint(4, 9)):
        letters[at] = " "
    return "".join(letters)


def echo(rng: Random, query: str) -> str:
    """Give the query back, once or more, perhaps announced."""
    words = re.findall(r"\w+", query)
    rng.shuffle(words)
    choices = [
        query,
        query,
        f"{query}\n\n{query}",
        f"You asked: {query}",
        f"The question is: {query} I will answer the question: {query}",
        f"Query: {query}\nResponse:",
        " ".join(words),
        ", ".join(words * rng.randint(1, 3)),
    ]
    return rng.choice(choices)


def phrase(rng: Random, kind: str, query: str) -> str:
    """Pick a hand-written text of a kind, its topic filled in."""
    return str(rng.choice(PHRASES[kind])).replace("{topic}", topic_of(query, rng))
