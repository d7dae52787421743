"""What a judge's answer says: the rating or the verdict in its words or its log-probabilities."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")

_LETTER = r"(A|B|T|[Tt]ie)\b"
# Runs of marks are bounded, so that a long one (a judge gone astray) takes no quadratic time.
# All that is said, or how it ends: "Verdict: B", "The better one is answer B."
_ENDS = re.compile(
    rf"(?:\A|[.:!?\n]|\bis)\W{{0,9}}(?:(?:[Aa]nswer|[Rr]esponse)\s+)?\b{_LETTER}\W*\Z"
)
# How it starts: "B, because A is short"
_STARTS = re.compile(rf"\A\W*{_LETTER}(?=\s*[.,;\n])")
# What it claims: "Verdict: B, for A ...", "A is better than B", "I prefer B", "a tie between A and B"
_CLAIMS = re.compile(
    r"\b(?i:verdict|winner|choice|answer)(?:\s*:|\s+is)\s+(?:(?:answer|response)\s+)?([ABT])\b"
    r"|(?<!or )\b([AB])\)?\s+(?:wins|(?:is|was)\s+(?:(?:clearly|slightly|much|far|the)\s+)*"
    r"(?:better|best|stronger|superior|preferable))\b"
    r"|\b(?i:prefer|choose|pick)\s+(?:(?:answer|response)\s+)?([AB])\b"
    r"|(?<!not )\ba\s+(tie)\b"
)
_ARTICLE = re.compile(r"(?:\A|(?<=[.:!?\n]))\s{0,9}A\s+(?!(?:is|was|has)\b)(?=[a-z])")
_DENIAL = re.compile(r"\b(?:not|neither|nor|worse|less)\b|n't", re.IGNORECASE)


def read_rating(text: str, scale: tuple[float, float]) -> float | None:
    """Read the last number on the scale from an answer; ``8/9`` counts as 8; None where there is none."""
    found = _find_rating(text, scale)
    return float(found[0]) if found else None


def has_reason(text: str) -> bool:
    """Tell whether an answer says more than a rating: four words or more besides numbers."""
    return len(_NUMBER.sub("", text).split()) > 3


def expected_rating(logprobs: Any, scale: tuple[float, float]) -> float | None:
    """Take the expected rating over the alternatives to the token that is the rating.

    The rating is the number that `read_rating` finds. It counts as it stands, without alternatives, where it
    is no single token (``7.5``, or ``10`` for some tokenizers), or could have gone on to a longer rating (``1``
    to ``10``): such a token's probability is that of all ratings which it begins. For the same reason
    such tokens are left out of the alternatives, and so is a rating that takes several tokens. Fractions
    that an alternative could have gone on to are not seen.

    Args:
        logprobs: OpenAI's ``logprobs`` of a completion, or None.
        scale: Lowest and highest rating.

    Returns:
        The mean of the ratings among the token's alternatives, weighted by their probabilities; None where
        the tokens hold no rating.
    """
    tokens: list[Any] = list(_get(logprobs, "content") or [])
    pieces = [str(_get(token, "token") or "") for token in tokens]
    found = _find_rating("".join(pieces), scale)
    if found is None:
        return None
    index = bisect_right(list(accumulate(map(len, pieces))), found.start())
    if pieces[index].strip() != found[0] or _as_rating(pieces[index], scale) is None:
        return float(found[0])
    weights: dict[float, float] = {}
    for other in [*(_get(tokens[index], "top_logprobs") or []), tokens[index]]:
        rating = _as_rating(_get(other, "token"), scale)
        if rating is not None:  # the same rating can be two tokens: with and without a space
            weights.setdefault(rating, 0.0)
            weights[rating] = max(weights[rating], math.exp(_get(other, "logprob")))
    total = sum(weights.values())
    return sum(rating * weight for rating, weight in weights.items()) / total if total else None


def read_verdict(text: str) -> str | None:
    """Read which of two responses an answer calls better.

    A letter that stands alone counts, at the answer's end before its start; else the last claim ("B is
    better"); else the only letter that is named, if nothing is denied.

    Returns:
        A, B, or T for a tie; None where there is no verdict, or none that is clear.
    """
    plain = re.sub(r"[*_`#]", "", text)
    for pattern in (_ENDS, _STARTS, _CLAIMS):
        if found := list(pattern.finditer(plain)):
            return found[-1][found[-1].lastindex or 0][0].upper()
    named = {word[0].upper() for word in re.findall(rf"\b{_LETTER}", _ARTICLE.sub(" ", plain))}
    return named.pop() if len(named) == 1 and not _DENIAL.search(plain) else None


def _find_rating(text: str, scale: tuple[float, float]) -> re.Match[str] | None:
    low, top = (re.escape(f"{end:g}") for end in scale)
    told_again = rf"\b{low}\s*(?:to|and|-|\u2013|\.\.+)\s*{top}\b"
    for pattern in (told_again, rf"(?:/|\bout of)\s*{top}\b"):
        text = re.sub(pattern, lambda match: " " * len(match[0]), text)  # other places stay
    numbers = _NUMBER.finditer(text)
    on_scale = [number for number in numbers if scale[0] <= float(number[0]) <= scale[1]]
    return on_scale[-1] if on_scale else None


def _as_rating(token: Any, scale: tuple[float, float]) -> float | None:
    """Read a token that is a rating on its own, and does not begin a longer one."""
    text = str(token or "").strip()
    if not (_NUMBER.fullmatch(text) and scale[0] <= float(text) <= scale[1]):
        return None
    begins_another = float(text) != 0 and scale[0] <= 10 * float(text) <= scale[1]
    return None if begins_another else float(text)


def _get(obj: Any, name: str) -> Any:
    return obj.get(name) if isinstance(obj, Mapping) else getattr(obj, name, None)
