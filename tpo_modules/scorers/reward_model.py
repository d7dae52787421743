"""`RewardModelScorer`: any Hugging Face sequence-classification reward model, in this process."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from tpo_modules.errors import ConfigurationError, InputError
from tpo_modules.scorers.base import Query, Reward, as_query
from tpo_modules.scorers.batching import BatchingScorer, Pair
from tpo_modules.scorers.encoding import Encoded, conversation_text, encode_chat, encode_pair
from tpo_modules.scorers.loading import load_reward_model
from tpo_modules.scorers.recipes import Format, find_recipe
from tpo_modules.scorers.sources import BUNDLED, LoadOptions

if TYPE_CHECKING:
    from tpo_modules.scorers.forward import Forward
    from tpo_modules.scorers.loading import LoadedModel

# The most inputs and tokens of a forward pass, by tests/perf/scorer_throughput.py.
_ON_CPU, _ON_GPU = (16, 4096), (64, 16384)


class RewardModelScorer:
    """Rewards responses by a reward model in this process: raw logits, higher is better.

    A reward is the model's own number: it equals a plain single forward pass of ``transformers`` on
    the same text (to 1e-4 in fp32), whatever else is scored at the same time. The input is the chat
    template of the model's tokenizer, applied once; a text pair for cross-encoders; see
    `tpo_modules.scorers.encoding`.

    The model is loaded at the first score, or by `load`. One scorer serves any number of tasks and
    threads: `score` and `ascore` calls that arrive together share batches (`batching`). Copies
    share the model; a pickled scorer carries its options, not the weights.

    Args:
        model: A folder, a Hugging Face id, a PEFT adapter's folder, or "bundled": the small reward
            model that comes with this package.
        format: "chat" or "pair"; None takes the recipe's, else "chat" where the tokenizer has a
            chat template, "pair" where it has separator tokens, else "chat" in a plain format.
        output: Which output of the head is the reward, by index or by the label in the model's
            configuration. Needed where there are several and no recipe says which.
        max_length: The most tokens of an input; None takes the model's limit. What is longer is
            cut (query's middle first), and the reward's notes say so. Rotary positions may be
            extended; learned ones may not, and a larger number is refused.
        batch_size: The most inputs in one forward pass; None takes 16 on a CPU, whose caches larger
            batches overflow, and 64 elsewhere.
        max_batch_tokens: The most tokens in one forward pass, padding included; None takes 4096 on
            a CPU, and 16384 elsewhere.
        padding_side: "right" is exact for all models of ``transformers``; "left" is for remote
            code that reads the last position, and never for encoders such as BERT.
        chat_template: A Jinja template instead of the tokenizer's.
        dtype: "auto" (as saved), "float32", "bfloat16" or "float16".
        device: "cpu", "cuda", "cuda:1", ...; None takes CUDA where there is one.
        device_map: As for ``from_pretrained``, to spread a large model, in place of ``device``;
            needs ``accelerate``.
        base_model: Folder or id of an adapter's base model, where it is not the one it names.
        revision: A branch, tag or commit on the hub.
        trust_remote_code: Run Python code that comes with the model. Off unless asked for.
        max_batch: Pairs of different runs that are merged; see `BatchingScorer`.
        max_wait: Seconds a request may wait for others; see `BatchingScorer`.

    Raises:
        ConfigurationError: An option that cannot work.
    """

    def __init__(
        self,
        model: str | PathLike[str] = BUNDLED,
        *,
        format: Format | None = None,
        output: int | str | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        padding_side: Literal["right", "left"] | None = None,
        chat_template: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: Any = None,
        base_model: str | PathLike[str] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        max_batch: int = 64,
        max_wait: float = 0.01,
    ) -> None:
        if format not in (None, "chat", "pair"):
            raise ConfigurationError(f"format must be 'chat', 'pair' or None; got {format!r}")
        if padding_side not in (None, "right", "left"):
            raise ConfigurationError(
                f"padding_side must be 'right' or 'left'; got {padding_side!r}"
            )
        sizes = {"batch_size": batch_size, "max_batch_tokens": max_batch_tokens}
        for name, value in {**sizes, "max_length": max_length}.items():
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1; got {value}")
        self.model = str(model)
        find_recipe(self.model)  # refuses a pairwise model at once
        self.format: Format | None = format
        self.output = output
        self.max_length = max_length
        self.batch_size = batch_size
        self.max_batch_tokens = max_batch_tokens
        self.padding_side = padding_side or "right"
        self.chat_template = chat_template
        self._load_options = LoadOptions(
            model=self.model,
            base_model=None if base_model is None else str(base_model),
            dtype=dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        self.batching = BatchingScorer(self, max_batch=max_batch, max_wait=max_wait)
        self._start()

    def _start(self) -> None:
        self._forward: Forward | None = None
        self._load_lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()
        self._model_lock = threading.Lock()

    def load(self) -> RewardModelScorer:
        """Load the model now, once, and return this scorer; `score` does so when it must.

        Raises:
            ModelNotFoundError: It is neither a folder nor to be had from the hub.
            ConfigurationError: It is no reward model, or an option does not suit it.
        """
        self._ready()
        return self

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Reward each response to the query, together with what other threads and tasks ask for.

        Returns:
            One `Reward` per response, same order; NaN with a note for one that has none. Notes
            also tell what was cut.

        Raises:
            ScorerError: The model could not be loaded or failed.
        """
        return self.batching.score(query, responses)

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Do what `score` does, without blocking the event loop."""
        return await self.batching.ascore(query, responses)

    def score_pairs(self, pairs: Sequence[Pair]) -> list[Reward]:
        """Reward (query, response) pairs of any queries, at once and in this thread.

        Equal pairs are scored once.

        Returns:
            One `Reward` per pair, same order, as for `score`.

        Raises:
            InputError: A query or a response is not a string.
            ScorerError: The model could not be loaded or failed.
        """
        keys = [_key(index, pair) for index, pair in enumerate(pairs)]
        if not keys:
            return []
        forward = self._ready()
        unique = dict.fromkeys(keys)
        encoded = {key: self._encode(forward.loaded, *key) for key in unique}
        inputs = [item for item in encoded.values() if isinstance(item, Encoded)]
        with self._model_lock:
            rewards = iter(forward.rewards(inputs))
        scored = {
            key: next(rewards) if isinstance(item, Encoded) else item
            for key, item in encoded.items()
        }
        return [scored[key] for key in keys]

    def _ready(self) -> Forward:
        forward = self._forward
        if forward is not None:
            return forward
        with self._load_lock:
            if self._forward is None:
                self._forward = self._load_forward()
            return self._forward

    def _load_forward(self) -> Forward:
        from tpo_modules.scorers.forward import Forward, ForwardOptions

        loaded = load_reward_model(self._load_options)
        recipe = loaded.recipe
        _check_padding_side(self.model, self.padding_side, loaded)
        _check_max_length(self.model, self.max_length, loaded.positions)
        output = recipe.output if self.output is None else self.output
        size, tokens = _ON_CPU if loaded.device.type == "cpu" else _ON_GPU
        options = ForwardOptions(
            batch_size=self.batch_size or size,
            max_batch_tokens=self.max_batch_tokens or tokens,
            padding_side=self.padding_side,
            output=_output_index(self.model, output, loaded.labels),
            reward_field=recipe.reward_field,
        )
        forward = Forward(loaded, options)
        if not type(loaded.model).__module__.startswith("transformers."):
            probes = [self._encode(loaded, (("user", "Hi."),), "Yes. " * n) for n in (1, 9)]
            forward.check_padding(*(probe for probe in probes if isinstance(probe, Encoded)))
        return forward

    def _encode(
        self, loaded: LoadedModel, messages: tuple[tuple[str, str], ...], response: str
    ) -> Encoded | Reward:
        turns = [{"role": role, "content": content} for role, content in messages]
        tokenizer = loaded.tokenizer
        limit = self.max_length or loaded.max_length
        final = loaded.recipe.final_token
        if final is not None and limit is not None:
            limit -= 1
        try:
            with self._tokenizer_lock:
                if self._format_for(loaded) == "pair":
                    text = conversation_text(turns)
                    most = loaded.max_text_tokens
                    return encode_pair(
                        tokenizer, text, response, max_length=limit, max_text_tokens=most
                    )
                template = self.chat_template
                encoded = encode_chat(
                    tokenizer, turns, response, max_length=limit, chat_template=template
                )
        except InputError as error:
            return Reward(math.nan, notes=(str(error),))
        return encoded if final is None else _ended(encoded, getattr(loaded.model, final))

    def _format_for(self, loaded: LoadedModel) -> Format:
        named = self.format or loaded.recipe.format
        if named is not None:
            return named
        tokenizer = loaded.tokenizer
        if self.chat_template is not None or getattr(tokenizer, "chat_template", None):
            return "chat"
        separators = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
        return "pair" if separators else "chat"

    def __deepcopy__(self, memo: dict[int, Any]) -> RewardModelScorer:
        return self

    def __copy__(self) -> RewardModelScorer:
        return self

    def __getstate__(self) -> dict[str, Any]:
        locks = ("_load_lock", "_tokenizer_lock", "_model_lock")
        dropped = {"_forward", *locks}
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return f"RewardModelScorer({self.model!r})"


def _key(index: int, pair: Pair) -> tuple[tuple[tuple[str, str], ...], str]:
    query, response = pair
    if not isinstance(query, str) or not isinstance(response, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        kinds = f"({type(query).__name__}, {type(response).__name__})"
        raise InputError(f"pair {index}: expected a query and a response as text; got {kinds}")
    messages = as_query(query).messages if isinstance(query, Query) else Query(query).messages
    return tuple((message["role"], message["content"]) for message in messages), str(response)


def _ended(encoded: Encoded, token_id: int) -> Encoded:
    if encoded.ids[-1:] == (token_id,):
        return encoded
    return Encoded((*encoded.ids, token_id), notes=encoded.notes)


def _check_padding_side(model: str, side: str, loaded: LoadedModel) -> None:
    encoder = hasattr(loaded.model, "classifier") or hasattr(loaded.model, "classification_head")
    if side == "left" and encoder:
        raise ConfigurationError(
            f"{model!r} is a {type(loaded.model).__name__}, whose head reads the first token: "
            "padding_side='left' would put padding there. Leave it at 'right'."
        )


def _check_max_length(model: str, max_length: int | None, positions: int | None) -> None:
    if max_length is not None and positions is not None and max_length > positions:
        raise ConfigurationError(
            f"{model!r} has learned positions for {positions} tokens: expected max_length to be at "
            f"most {positions}; got {max_length}. Leave it out to take the model's limit."
        )


def _output_index(model: str, output: int | str | None, labels: Sequence[str]) -> int:
    listed = ", ".join(f"{index} ({label})" for index, label in enumerate(labels))
    if output is None:
        if len(labels) == 1:
            return 0
        raise ConfigurationError(
            f"{model!r} has {len(labels)} outputs, and nothing says which is the reward: pass "
            f"output= one of {listed}"
        )
    if isinstance(output, str):
        if output in labels:
            return list(labels).index(output)
    elif 0 <= output < len(labels):
        return output
    raise ConfigurationError(f"{model!r} has no output {output!r}; it has {listed}")
