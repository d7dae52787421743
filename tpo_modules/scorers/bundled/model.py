"""`BundledForSequenceClassification`: a small head on a frozen sentence encoder's features.

Query and response are encoded apart, so that their embeddings can be compared. The head sees:

- the response's mean over several layers, its last and first tokens, from which style and a torn end show;
- the query's means, and its product with the response's, from which the topic shows;
- a few plain numbers: similarities of the query to parts of the response and of these to each other, shared
  words, and how much of the response repeats itself.

Importing this module makes the model known to ``AutoModelForSequenceClassification``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from tpo_modules.errors import ConfigurationError
from tpo_modules.scorers.bundled import base_model_path
from tpo_modules.scorers.truncation import keep_ends

MOST_TOKENS = 320
"""Of a query and of a response; of more the middle is left out, as in training."""

_CHUNK = 48  # tokens of a part of the response that is compared with the query
_MEAN_LAYERS = (1, 2, 3, 4, 6)
_END_LAYERS, _LAST_LAYERS = (1, 3), (0, 2, 3)
_END, _BEGINNING = 8, 16
_MIDDLE, _TOP = 2, 4  # places of layers 3 and 6 among the means
_NUMBERS = 22
_MOST_HARMLESS = 6.0
_SOUND = -1.0  # ratings above it differ little in answers to harmful queries
_SHORTNESS = 7  # where min(1, 20 / tokens) stands among the numbers
_BATCH_TOKENS = 2048
_CLS, _SEP = 101, 102


class BundledConfig(PretrainedConfig):
    """Sizes of the head."""

    model_type = "tpo-bundled"

    def __init__(self, hidden_size: int = 384, width: int = 96, **kwargs: Any) -> None:
        self.hidden_size = hidden_size
        self.width = width
        self.max_position_embeddings = 512
        self.max_text_tokens = MOST_TOKENS  # known to the scorer, whose notes tell of cuts
        kwargs = {"num_labels": 1, "pad_token_id": 0, **kwargs}
        super().__init__(**kwargs)


class Head(nn.Module):
    """The part that was trained: features and numbers in, one logit out.

    Two layers rate the answer as a whole, above all whether it is sound: on topic, complete, no loop. To
    that comes a linear rating of its style, or, where the gate reads the query as a harmful one, of how
    harmless it is; there soundness counts only up to a point. Length costs a little.

    Args:
        features: Width of the encoder's features.
        width: Width of the hidden layer.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(features))
        self.scale = nn.Buffer(torch.ones(features))
        self.numbers_mean = nn.Buffer(torch.zeros(_NUMBERS))
        self.numbers_scale = nn.Buffer(torch.ones(_NUMBERS))
        self.reduce = nn.Linear(features, width)
        self.mix = nn.Linear(width + _NUMBERS, width // 2)
        self.out = nn.Linear(width // 2, 1)
        self.gate = nn.Linear(features, 1)
        self.harmless = nn.Linear(features, 1)
        self.style = nn.Linear(features, 1, bias=False)
        self.brevity = nn.Buffer(torch.zeros(1))

    def forward(self, features: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Compute one logit per row, as a column."""
        shortness = (10 * numbers[:, _SHORTNESS, None]).log()  # 0 at 200 tokens
        inputs, numbers = self.standard(features, numbers)
        rating = self.rate(inputs, numbers)
        harmful = self.gate(inputs).sigmoid()
        harmless = self.harmless(inputs).clamp(-_MOST_HARMLESS, _MOST_HARMLESS)
        return (
            (1 - harmful) * (rating + self.style(inputs))
            + harmful * (harmless - functional.softplus(_SOUND - rating))
            + self.brevity * shortness
        )

    def standard(
        self, features: torch.Tensor, numbers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring features and numbers to mean 0 and deviation 1, as on the training data."""
        return (
            ((features - self.mean) * self.scale).clamp(-6, 6),
            ((numbers - self.numbers_mean) * self.numbers_scale).clamp(-6, 6),
        )

    def rate(
        self, inputs: torch.Tensor, numbers: torch.Tensor, dropout: float = 0.0
    ) -> torch.Tensor:
        """Rate answers, harm left aside; ``dropout`` is for training."""
        inputs = functional.dropout(inputs, dropout, training=dropout > 0)
        hidden = functional.gelu(self.reduce(inputs))
        hidden = functional.dropout(hidden, dropout * 0.4, training=dropout > 0)
        return self.out(functional.gelu(self.mix(torch.cat([hidden, numbers], dim=1))))


class Encoded:
    """What is kept of one text: its ids, the means of layers, its ends, and its parts at the top layer."""

    __slots__ = ("beginning", "end", "ids", "means", "parts")

    def __init__(self, ids: Sequence[int], layers: Sequence[torch.Tensor]) -> None:
        """Pool the hidden states of a text's own tokens, one tensor (tokens, hidden) per layer."""
        self.ids = list(ids)
        count = len(self.ids)
        self.means = torch.stack([layers[at].mean(0) for at in _MEAN_LAYERS])
        ends = [layers[at][max(0, count - _END) :].mean(0) for at in _END_LAYERS]
        self.end = torch.cat([*ends, *(layers[at][-1] for at in _LAST_LAYERS)])
        self.beginning = layers[2][:_BEGINNING].mean(0)
        pieces = max(1, round(count / _CHUNK))
        edges = np.linspace(0, count, pieces + 1).astype(int).tolist()
        self.parts = torch.stack([layers[6][start:end].mean(0) for start, end in pairwise(edges)])


class BundledForSequenceClassification(PreTrainedModel):
    """The bundled reward model: one logit for a text pair (query, response), higher is better.

    The encoder is frozen and comes from its own package or the hub; the folder holds the head alone.
    """

    config_class = BundledConfig
    base_model_prefix = "head"

    def __init__(self, config: BundledConfig, encoder: Any = None) -> None:
        super().__init__(config)
        self.head = Head(feature_size(config.hidden_size), config.width)
        self.encoder = [encoder]  # in a list: it is no part of what is saved

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, folder: str | Path, *_: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Load the head from its folder and the encoder from where `base_model_path` finds it.

        Raises:
            ConfigurationError: Another ``dtype`` than float32, or a ``device_map``.
        """
        dtype, device_map = kwargs.get("dtype"), kwargs.get("device_map")
        if dtype not in (None, "auto", "float32", torch.float32) or device_map is not None:
            raise ConfigurationError(
                "the bundled reward model runs in float32 and on one device: expected dtype='auto' "
                f"or 'float32' and no device_map; got dtype={dtype!r}, device_map={device_map!r}. "
                "To choose where it runs, pass device=."
            )
        config = config or BundledConfig.from_pretrained(folder)
        encoder = AutoModel.from_pretrained(base_model_path()).eval()
        model = cls(config, encoder)
        weights = load_file(str(Path(folder) / "model.safetensors"))
        model.head.load_state_dict({name: value.float() for name, value in weights.items()})
        model.eval()
        info: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": []}
        return (model, info) if kwargs.get("output_loading_info") else model

    def to(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        """Move head and encoder."""
        self.encoder[0].to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Score text pairs ``[CLS] query [SEP] response [SEP]``; all arguments are (pairs, tokens)."""
        pairs = [
            split_pair(ids[mask.bool()].tolist(), types[mask.bool()].tolist())
            for ids, mask, types in zip(input_ids, attention_mask, token_type_ids, strict=True)
        ]
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        encoded = dict(zip(texts, encode_texts(self.encoder[0], texts), strict=True))
        rows = [features_of(encoded[query], encoded[response]) for query, response in pairs]
        features, numbers = (torch.stack(column) for column in zip(*rows, strict=True))
        device = self.head.mean.device
        return SequenceClassifierOutput(logits=self.head(features.to(device), numbers.to(device)))


def feature_size(hidden: int) -> int:
    """Count the features of a pair for an encoder of this width."""
    response = len(_MEAN_LAYERS) + len(_END_LAYERS) + len(_LAST_LAYERS) + 1
    return hidden * (response + 3)


def split_pair(ids: Sequence[int], types: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Take the ids of a text pair apart into the query's and the response's own."""
    second = sum(1 for kind in types if kind == 0)
    return tuple(ids[1 : second - 1]), tuple(ids[second:-1])


def encode_texts(encoder: Any, texts: Sequence[Sequence[int]]) -> list[Encoded]:
    """Run texts, given as ids, through the encoder, in batches of like length."""
    ids = [keep_ends(text, MOST_TOKENS) or [_SEP] for text in texts]
    order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
    found: dict[int, Encoded] = {}
    batch: list[int] = []
    for at in [*order, -1]:
        if batch and (at < 0 or (len(ids[at]) + 2) * (len(batch) + 1) > _BATCH_TOKENS):
            found |= zip(batch, _encode_batch(encoder, [ids[i] for i in batch]), strict=True)
            batch = []
        batch.append(at)
    return [found[at] for at in range(len(ids))]


def _encode_batch(encoder: Any, batch: Sequence[list[int]]) -> list[Encoded]:
    width = max(map(len, batch)) + 2
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(batch):
        tokens[row, : len(ids) + 2] = torch.tensor([_CLS, *ids, _SEP])
        mask[row, : len(ids) + 2] = 1
    device = encoder.device
    with torch.inference_mode():
        result = encoder(
            input_ids=tokens.to(device), attention_mask=mask.to(device), output_hidden_states=True
        )
    layers = [layer.float().cpu() for layer in result.hidden_states]
    return [
        Encoded(ids, [layer[row, 1 : len(ids) + 1] for layer in layers])
        for row, ids in enumerate(batch)
    ]


def features_of(query: Encoded, response: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a pair's features and numbers together, for the head."""
    top_query, top_response = (
        functional.normalize(text.parts.mean(0), dim=0) for text in (query, response)
    )
    product = top_query * top_response * len(top_query) ** 0.5
    features = torch.cat(
        [
            response.means.flatten(),
            response.end,
            response.beginning,
            query.means[_MIDDLE],
            query.means[_TOP],
            product,
        ]
    )
    numbers = [*repetition(response.ids), *_similarities(query, response)]
    return features, torch.tensor(numbers)


def repetition(ids: Sequence[int]) -> list[float]:
    """Measure how much a text repeats itself: eight numbers, about 0 to 1."""
    count = len(ids)
    repeated: list[float] = []
    for size in (1, 2, 4, 8):
        runs = _runs(ids, size)
        repeated.append(1 - len(set(runs)) / len(runs))
    commonest = max(Counter(ids).values()) / count
    longest = max(Counter(_runs(ids, 6)).values()) / max(1, count / 6)
    half = count // 2
    first = {tuple(ids[i : i + 3]) for i in range(half)}
    second = [tuple(ids[i : i + 3]) for i in range(half, max(half + 1, count - 2))]
    copied = sum(run in first for run in second) / len(second)
    return [*repeated, commonest, longest, copied, min(1.0, 20 / count)]


def _runs(ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + size]) for i in range(max(1, len(ids) - size + 1))]


def _similarities(query: Encoded, response: Encoded) -> list[float]:
    """Compare the query with the response's parts, and these with each other: fourteen numbers."""
    whole = functional.normalize(query.parts.mean(0), dim=0)
    parts = functional.normalize(response.parts, dim=1)
    mean = functional.normalize(response.parts.mean(0), dim=0)
    on_topic = parts @ whole
    middle = functional.cosine_similarity(query.means[_MIDDLE], response.means[_MIDDLE], dim=0)
    shared = len(set(query.ids) & set(response.ids))
    among = parts @ parts.T
    others = among[~torch.eye(len(parts), dtype=torch.bool)]
    if not len(others):
        others = torch.zeros(1)
    values = [
        mean @ whole,
        on_topic.max(),
        on_topic.min(),
        on_topic[0],
        on_topic[-1],
        on_topic.mean(),
        middle,
        shared / max(1, len(set(query.ids))),
        shared / max(1, len(set(response.ids))),
        query.ids[:20] == response.ids[:20],
        others.max(),
        others.mean(),
        others.min(),
        parts[0] @ parts[-1],
    ]
    return [float(value) for value in values]


AutoConfig.register("tpo-bundled", BundledConfig)
AutoModelForSequenceClassification.register(BundledConfig, BundledForSequenceClassification)
