"""What is cut when a query and a response are longer than a reward model reads.

The policy, for ``room`` tokens of query and response together: the query is cut first, down to a
quarter of the room; only then the response. What is cut loses its middle; head and tail stay in
equal parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tpo_modules.errors import InputError
from tpo_modules.scorers.control_tokens import plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Build = Callable[[Sequence[str]], list[int]]
Spans = Sequence[tuple[int, int]]


def split_room(query_tokens: int, response_tokens: int, room: int) -> tuple[int, int]:
    """Share ``room`` tokens between a query and a response.

    Returns:
        How many tokens to keep of the query and of the response; both whole where they fit.
    """
    quarter = -(-room // 4)
    query_kept = min(query_tokens, max(room - response_tokens, quarter))
    return query_kept, min(response_tokens, room - query_kept)


def fit(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    build: Build,
    max_length: int | None,
) -> tuple[int, int]:
    """Cut texts until the ids that ``build`` makes of them fit: those of its last call.

    Args:
        tokenizer: Where the tokens of each text begin and end.
        texts: The query's texts (one per message), then the response.
        build: Makes the whole input's ids of as many texts.
        max_length: The most ids that ``build`` may return; None cuts nothing.

    Returns:
        How many tokens were cut of the query and of the response; see `cut_notes`.

    Raises:
        InputError: ``max_length`` leaves no room beside the tokens that ``build`` adds.
    """
    length = len(build(texts))
    if max_length is None or length <= max_length:
        return 0, 0
    spans = [_token_spans(tokenizer, text) for text in texts]
    query_len, response_len = sum(map(len, spans[:-1])), len(spans[-1])
    frame = len(build([""] * len(texts)))
    room = available = max_length - frame
    while room > 0:
        query_kept, response_kept = split_room(query_len, response_len, room)
        cut = _cut_middle(texts[:-1], spans[:-1], query_kept)
        cut += _cut_middle(texts[-1:], spans[-1:], response_kept)
        length = len(build(cut)) - frame  # may be more than was kept: at seams, or spelt out
        if length <= available:
            return query_len - query_kept, response_len - response_kept
        room = min(room - 1, room * available // length)
    raise InputError(
        f"max_length={max_length} leaves no room for a query and a response: the format's own "
        f"tokens take {frame}. Give a larger max_length, or a conversation of fewer turns."
    )


def cut_notes(query_cut: int, response_cut: int) -> tuple[str, ...]:
    """Say in words how many tokens were cut; a note on each text that lost some."""
    cuts = {"query": query_cut, "response": response_cut}
    return tuple(f"{name} cut by {count} tokens" for name, count in cuts.items() if count > 0)


def _token_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> Spans:
    """Return where each token begins and ends in a text; evenly spread for a slow tokenizer.

    Special tokens that the text spells out count as their characters' tokens, as they are encoded.
    """
    if tokenizer.is_fast:
        encoding: Any = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        return list(encoding["offset_mapping"])
    count = len(plain_ids(tokenizer, text, split_special_tokens=True))
    return [(i * len(text) // count, (i + 1) * len(text) // count) for i in range(count)]


def keep_ends(ids: Sequence[int], most: int) -> list[int]:
    """Leave out the middle of more than ``most`` token ids."""
    if len(ids) <= most:
        return list(ids)
    head = most // 2
    return [*ids[:head], *ids[len(ids) - (most - head) :]]


def _cut_middle(texts: Sequence[str], spans: Sequence[Spans], kept: int) -> list[str]:
    """Keep the first and last tokens of texts taken as one, and drop those in the middle."""
    total = sum(map(len, spans))
    if kept >= total:
        return list(texts)
    head, tail = kept - kept // 2, total - kept // 2
    cut: list[str] = []
    start = 0
    for text, text_spans in zip(texts, spans, strict=True):
        length = len(text_spans)
        cut.append(_drop(text, text_spans, min(length, head - start), max(0, tail - start)))
        start += length
    return cut


def _drop(text: str, spans: Spans, first: int, last: int) -> str:
    """Drop the tokens from ``first`` up to ``last`` (either may lie outside the text)."""
    if first >= last or not spans:
        return text
    before = text[: spans[first - 1][1]] if first > 0 else ""
    after = text[spans[last][0] :] if last < len(spans) else ""
    seam = " " if before and after and not (before[-1].isspace() or after[0].isspace()) else ""
    return before + seam + after
