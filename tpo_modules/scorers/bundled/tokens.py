"""Text pairs as padded batches of about equal length, encoded just as the scorer encodes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.nn import functional

from tpo_modules.scorers.encoding import Encoded, encode_pair


def collate(items: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Pad pairs on the right."""
    width = max(len(item.ids) for item in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, item in enumerate(items):
        size = len(item.ids)
        ids[row, :size] = torch.tensor(item.ids)
        types[row, :size] = torch.tensor(item.token_type_ids or (0,) * size)
        mask[row, :size] = 1
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}


def read_first_position_only(model: Any) -> None:
    """Let BERT's last layer compute its first position alone, the only one that the head reads.

    Logits stay the same; a sixth of the work is saved, and more in training.
    """
    layer = model.bert.encoder.layer[-1]
    attention = layer.attention.self

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    def first_position(
        hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        first = hidden[:, :1]
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        context = functional.scaled_dot_product_attention(
            heads(attention.query(first)),
            heads(attention.key(hidden)),
            heads(attention.value(hidden)),
            attn_mask=mask,
        )
        attended = layer.attention.output(context.transpose(1, 2).flatten(2), first)
        return layer.output(layer.intermediate(attended), attended)

    layer.forward = first_position


def buckets(items: Sequence[Encoded], max_tokens: int = 2048) -> Iterator[list[int]]:
    """Give the places of items of like length, at most `max_tokens` with padding at a time."""
    order = sorted(range(len(items)), key=lambda at: len(items[at].ids))
    batch: list[int] = []
    for at in order:
        if batch and len(items[at].ids) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def forward(model: Any, items: Sequence[Encoded]) -> torch.Tensor:
    """Compute one logit for each item, in the order given, bucket by bucket."""
    parts: list[torch.Tensor] = []
    places: list[int] = []
    for batch in buckets(items):
        parts.append(model(**collate([items[at] for at in batch])).logits[:, 0])
        places += batch
    back = torch.empty(len(places), dtype=torch.long)
    back[torch.tensor(places)] = torch.arange(len(places))
    return torch.cat(parts)[back]


def rewards(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    max_length: int = 512,
    workers: int = 2,
) -> list[float]:
    """Score (query, response) pairs; equal pairs are scored once."""
    unique = list(dict.fromkeys(pairs))
    items = [encode_pair(tokenizer, *pair, max_length=max_length) for pair in unique]
    order = sorted(range(len(items)), key=lambda at: len(items[at].ids))
    parts = [order[at::workers] for at in range(workers)]

    def score(part: list[int]) -> list[float]:
        with torch.inference_mode():
            return forward(model, [items[at] for at in part]).tolist() if part else []

    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = [value for values in pool.map(score, parts) for value in values]
    places = [at for part in parts for at in part]
    scored = {unique[at]: value for at, value in zip(places, found, strict=True)}
    return [scored[pair] for pair in pairs]
