"""Pairwise preference models as scorers: `PairwiseScorer`, and `PairRM` as such a model."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from tpo_modules.errors import ConfigurationError, ModelNotFoundError, RewardError
from tpo_modules.scorers.base import Message, Query, Reward
from tpo_modules.scorers.control_tokens import control_pattern, mark, marked_ids
from tpo_modules.scorers.encoding import conversation_text, mend
from tpo_modules.scorers.sources import not_found
from tpo_modules.scorers.truncation import fit

_REMEMBERED_QUERIES = 10_000


class PairwiseModel(Protocol):
    """A model that says which of two responses is better."""

    def margins(self, query: str, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        """Compare pairs of responses to one query.

        Args:
            query: The query.
            pairs: Two responses each; a pair may come in both directions.

        Returns:
            One number per pair: the log-odds that its first response is the better one; changing
            the two places changes the sign. NaN where the model could not tell. An element may be
            a `Reward`, whose notes are passed on.
        """
        ...


class PairwiseScorer:
    """Turns comparisons into rewards: the mean margin over a fixed set of responses, the anchors.

    A pairwise model gives no response a number of its own, and a mean over whatever is scored
    together would not be comparable from one step to the next. So the responses of a query's first
    call become its anchors, and every response to that query, then and later, has as reward the
    mean of its margins over them (0 over itself). A margin that the model could not tell (NaN) is
    left out of the mean, with a note; a response without any margin over another has NaN. Rewards
    of different queries do not compare.

    In each call every different response is compared with every anchor but itself; no margin is
    kept from call to call. So a first call asks for each pair in both directions, which `PairRM`
    and `PairwiseJudge` work out once. Copies share the anchors; a pickled scorer forgets them.

    Args:
        model: Compares two responses; see `PairRM`.
    """

    def __init__(self, model: PairwiseModel) -> None:
        self.model = model
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._anchors: OrderedDict[tuple[tuple[str, str], ...], tuple[str, ...]] = OrderedDict()

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Reward each response by its mean margin over the query's anchors.

        Returns:
            One `Reward` per response, same order: log-odds, higher is better; NaN where no margin
            is known.

        Raises:
            RewardError: The model gave another number of margins than pairs.
        """
        if not responses:
            return []
        anchors = self._anchors_for(query, responses)
        unique = list(dict.fromkeys(responses))
        pairs = [(r, a) for r in unique for a in anchors if r != a]
        given = list(self.model.margins(query, pairs)) if pairs else []
        if len(given) != len(pairs):
            raise RewardError(
                f"{type(self.model).__name__}.margins must give one number per pair: "
                f"{len(pairs)} pairs, {len(given)} numbers"
            )
        margins = dict(zip(pairs, given, strict=True))
        return [
            _mean_margin([margins.get((r, a), 0.0) for a in anchors], r in anchors)
            for r in responses
        ]

    def _anchors_for(self, query: str, responses: Sequence[str]) -> tuple[str, ...]:
        key = tuple((m["role"], m["content"]) for m in _messages(query))
        with self._lock:
            anchors = self._anchors.setdefault(key, tuple(dict.fromkeys(map(str, responses))))
            self._anchors.move_to_end(key)
            if len(self._anchors) > _REMEMBERED_QUERIES:
                self._anchors.popitem(last=False)
            return anchors

    def __deepcopy__(self, memo: dict[int, Any]) -> PairwiseScorer:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.model = state["model"]
        self._start()


def _mean_margin(margins: Sequence[float], is_anchor: bool) -> Reward:
    """Average margins over the anchors, one of which is 0 if the response is an anchor itself."""
    notes = [note for margin in margins if isinstance(margin, Reward) for note in margin.notes]
    known = [float(margin) for margin in margins if not math.isnan(margin)]
    if len(known) < len(margins):
        notes.append(f"no margin over {len(margins) - len(known)} of {len(margins)} anchors")
        if len(known) == int(is_anchor):  # nothing but the 0 over itself
            return Reward(math.nan, notes=notes)
    notes.append(f"mean margin over {len(known)} anchors")
    return Reward(sum(known) / len(known), notes=notes)


def _messages(query: str) -> Sequence[Message]:
    return query.messages if isinstance(query, Query) else Query(query).messages


class PairRM:
    """PairRM (llm-blender/PairRM-hf): a DeBERTa-v3 that compares two responses.

    The input is query, first and second response, each encoded on its own after a token that names
    it; a head on that token's vector and the query's rates each response, and the margin is the
    difference. Both orders are run, each once, and averaged: changing places changes only the sign.
    Queries of several turns are written as one text (`conversation_text`).

    Args:
        model: A folder or a Hugging Face id.
        source_length: The most tokens of the query; more is cut in its middle.
        total_length: The most tokens in all; the responses share what the query leaves.
        batch_size: Comparisons in one forward pass.
        device: "cpu", "cuda", ...; None takes CUDA where there is one.

    Source: the model card's example code. The published weights were not run here; a small random
    model of the same shape is, in the tests.
    """

    def __init__(
        self,
        model: str | PathLike[str] = "llm-blender/PairRM-hf",
        *,
        source_length: int = 1224,
        total_length: int = 2048,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        if not 0 < source_length < total_length:
            raise ConfigurationError(
                f"source_length must be above 0 and below total_length; got {source_length} and "
                f"{total_length}"
            )
        self.model = str(model)
        self.source_length = source_length
        self.total_length = total_length
        self.batch_size = batch_size
        self.device = device
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._network: Any = None
        self._tokenizer: Any = None

    def margins(self, query: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Compare pairs of responses; see `PairwiseModel.margins`.

        Raises:
            ModelNotFoundError: The model is neither a folder nor to be had from the hub.
        """
        with self._lock:
            if self._network is None:
                self._load()
            both = list(dict.fromkeys(order for a, b in pairs for order in ((a, b), (b, a))))
            rows = [self._encode(query, first, second) for first, second in both]
            order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
            logits = [0.0] * len(rows)
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for index, value in zip(
                    batch, self._compare([rows[i] for i in batch]), strict=True
                ):
                    logits[index] = value
        found = dict(zip(both, logits, strict=True))
        return [(found[a, b] - found[b, a]) / 2 for a, b in pairs]

    def _encode(self, query: str, first: str, second: str) -> list[int]:
        source = self._part("<|source|>", conversation_text(_messages(query)), self.source_length)
        left = (self.total_length - len(source)) // 2
        return [
            *source,
            *self._part("<|candidate1|>", first, left),
            *self._part("<|candidate2|>", second, left),
        ]

    def _part(self, prefix: str, text: str, max_length: int) -> list[int]:
        tokenizer = self._tokenizer
        control = control_pattern(tokenizer)
        built: list[int] = []

        def build(texts: Sequence[str]) -> list[int]:
            (plain,), _ = mend(texts)
            ids = marked_ids(tokenizer, prefix + mark(control, plain))
            built[:] = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
            return built

        fit(tokenizer, [text], build, max_length)
        return list(built)

    def _compare(self, rows: Sequence[Sequence[int]]) -> list[float]:
        import torch

        config = self._network.config
        width = max(map(len, rows))
        padded = [[*row, *[self._tokenizer.pad_token_id] * (width - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        ids = torch.tensor(padded, device=self._network.device)
        with torch.inference_mode():
            vectors = self._network.pretrained_model(
                input_ids=ids, attention_mask=torch.tensor(mask, device=ids.device)
            ).last_hidden_state
            source, first, second = (
                vectors[ids == token_id]
                for token_id in (
                    config.source_prefix_id,
                    config.cand1_prefix_id,
                    config.cand2_prefix_id,
                )
            )
            rated = [
                self._network.head_layer(torch.cat([source, candidate], dim=-1))
                for candidate in (first, second)
            ]
            return [float(value) for value in (rated[0] - rated[1]).mean(dim=-1).float().cpu()]

    def _load(self) -> None:
        from transformers import AutoTokenizer

        folder = _local_folder(self.model)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._network = _load_network(folder, self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> PairRM:
        return self

    def __getstate__(self) -> dict[str, Any]:
        dropped = {"_lock", "_network", "_tokenizer"}
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def _local_folder(model: str) -> str:
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(not_found(model, error)) from error


def _load_network(folder: str, device: str | None) -> Any:
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from transformers import DebertaV2Config, DebertaV2Model

    raw = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    config: Any = DebertaV2Config(**raw)
    network: Any = nn.Module()
    network.pretrained_model = DebertaV2Model(config)
    hidden = config.hidden_size
    network.head_layer = nn.Sequential(
        nn.Dropout(0.0),
        nn.Linear(2 * hidden, hidden),
        nn.Tanh(),
        nn.Dropout(0.0),
        nn.Linear(hidden, config.n_tasks),
    )
    weights = load_file(str(Path(folder, "model.safetensors")))
    missing = network.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise ConfigurationError(f"{folder!r} is no PairRM: it lacks the weights {sorted(missing)}")
    network.config = config
    network.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return network.to(network.device).eval()
