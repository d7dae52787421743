"""Batches of token ids through a reward model: grouped by length, halved when memory runs out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tpo_modules.errors import ScorerError
from tpo_modules.scorers.base import Reward
from tpo_modules.scorers.encoding import Encoded
from tpo_modules.scorers.loading import LoadedModel


@dataclass(frozen=True)
class ForwardOptions:
    """How inputs are put into batches, and which number of the result is the reward.

    Attributes:
        batch_size: Most inputs in a batch.
        max_batch_tokens: Most tokens in a batch, padding included.
        padding_side: "right" or "left".
        output: Index of the head's output that is the reward.
        reward_field: Field of the model's result that holds the head's outputs.
    """

    batch_size: int
    max_batch_tokens: int
    padding_side: str
    output: int
    reward_field: str = "logits"


class Forward:
    """Runs a loaded reward model; one thread at a time (the caller holds a lock)."""

    def __init__(self, loaded: LoadedModel, options: ForwardOptions) -> None:
        self.loaded = loaded
        self.options = options
        self._token_limit = options.max_batch_tokens
        self._equal_lengths = False

    def rewards(self, inputs: Sequence[Encoded]) -> list[Reward]:
        """Give one reward per input, same order.

        A reward that is not finite becomes NaN with a note, and so does an input that alone is
        too large for the memory.
        """
        rewards: list[Reward] = [Reward(math.nan)] * len(inputs)
        for batch in self._batches(inputs):
            values = self._halving([inputs[index] for index in batch])
            for index, value in zip(batch, values, strict=True):
                rewards[index] = _reward(value, inputs[index].notes)
        return rewards

    def _batches(self, inputs: Sequence[Encoded]) -> Iterator[list[int]]:
        """Group indices by length, longest first, so that what is too large fails early."""
        batch: list[int] = []
        longest = 0
        for index in sorted(range(len(inputs)), key=lambda i: -len(inputs[i].ids)):
            length = len(inputs[index].ids)
            full = len(batch) >= self.options.batch_size
            full = full or longest * (len(batch) + 1) > self._token_limit
            if batch and (full or (self._equal_lengths and length != longest)):
                yield batch
                batch = []
            if not batch:
                longest = length
            batch.append(index)
        if batch:
            yield batch

    def check_padding(self, short: Encoded, long: Encoded) -> None:
        """Try whether an input scores the same beside a longer one; else pad none from now on.

        For code that comes with a model: it may read the last position whatever the mask says.
        """
        alone = self._forward([short])[0]
        try:
            beside = self._forward([short, long])[0]
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            beside = math.nan
        self._equal_lengths = not math.isclose(alone, beside, rel_tol=0.02, abs_tol=0.02)

    def _halving(self, batch: Sequence[Encoded]) -> list[float | str]:
        """Score a batch, in halves where memory runs out; a string says why there is no number."""
        try:
            return list(self._forward(batch))
        except (RuntimeError, IndexError) as error:  # torch.OutOfMemoryError is the first
            if not _out_of_memory(error):
                raise ScorerError(f"the reward model failed: {error}") from error
        _free_memory(self.loaded.device.type)
        if len(batch) == 1:
            return [f"out of memory at {len(batch[0].ids)} tokens: give a smaller max_length"]
        half = len(batch) // 2
        self._token_limit = max(1, len(batch[0].ids) * half)  # later batches start smaller
        return self._halving(batch[:half]) + self._halving(batch[half:])

    def _forward(self, batch: Sequence[Encoded]) -> list[float]:
        import torch

        tensors = self._tensors(batch)
        with torch.inference_mode():
            result = self.loaded.model(**tensors)
        name = self.options.reward_field
        if getattr(result, name, None) is None:
            raise ScorerError(f"the reward model's result has no {name!r}, only {list(result)}")
        values: Any = result[name].float().cpu()
        if values.dim() == 3:  # a head that rates every token: its last one is the response's
            left = self.options.padding_side == "left"
            places = [-1 if left else len(item.ids) - 1 for item in batch]
            values = values[torch.arange(len(batch)), places]
        if values.dim() == 1:  # a head that squeezes its only output away
            values = values.unsqueeze(-1)
        return [float(value) for value in values[:, self.options.output].tolist()]

    def _tensors(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        import torch

        width = max(len(item.ids) for item in batch)
        pad = self._pad_id(batch)
        left = self.options.padding_side == "left"

        def padded(rows: Sequence[Sequence[int]], filler: int) -> Any:
            fill = [[filler] * (width - len(row)) for row in rows]
            full = [[*f, *r] if left else [*r, *f] for r, f in zip(rows, fill, strict=True)]
            return torch.tensor(full, dtype=torch.long, device=self.loaded.device)

        tensors = {"input_ids": padded([item.ids for item in batch], pad)}
        if left or self.loaded.needs_mask:
            tensors["attention_mask"] = padded([[1] * len(item.ids) for item in batch], 0)
        types = [item.token_type_ids for item in batch if item.token_type_ids is not None]
        if len(types) == len(batch):
            tensors["token_type_ids"] = padded(types, 0)
        if left:  # else models with learned positions count the padding
            places = tensors["attention_mask"].cumsum(-1) - 1
            tensors["position_ids"] = places.clamp(min=0)
        return tensors

    def _pad_id(self, batch: Sequence[Encoded]) -> int:
        """Choose the padding id.

        Causal classifiers read the last token that is not ``config.pad_token_id``, so padding must
        use exactly that id (some remote code looks for the first one instead). A model without one
        reads the very last token when alone; then any id will do that is in none of the inputs.
        """
        own = self.loaded.own_pad_id
        if own is not None:
            return own
        used = {token for item in batch for token in item.ids}
        preferred: int | None = self.loaded.tokenizer.pad_token_id
        if preferred is None or preferred in used:
            preferred = next(i for i in range(len(used) + 1) if i not in used)
        self.loaded.model.config.get_text_config().pad_token_id = preferred
        return preferred


def _reward(value: float | str, notes: tuple[str, ...]) -> Reward:
    if isinstance(value, str):
        return Reward(math.nan, notes=(*notes, value))
    if not math.isfinite(value):
        return Reward(math.nan, notes=(*notes, f"the reward model gave {value}"))
    return Reward(value, notes=notes)


def _out_of_memory(error: Exception) -> bool:
    import torch

    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_cpu")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in signs)


def _free_memory(device_type: str) -> None:
    import torch

    if device_type == "cuda":
        torch.cuda.empty_cache()
