"""From a query and a response to the token ids that a reward model reads.

Two formats cover the reward models people use:

- a **chat** (`encode_chat`): the conversation and the response through the tokenizer's own chat
  template, or through `DEFAULT_CHAT_TEMPLATE` for a tokenizer without one;
- a **text pair** (`encode_pair`): ``[CLS] query [SEP] response [SEP]``, for cross-encoders.

Four rules hold in both:

1. Special tokens come from the format alone, once. The rendered chat already holds its BOS, so the
   tokenizer adds none (a doubled BOS shifts many reward models by about a point).
2. Text is text. A special token spelt out in a query or a response is encoded as its characters.
3. What is too long is cut in the middle, and the cut is noted: the query first, down to a quarter
   of the room for both; only then the response (see `tpo_modules.scorers.truncation`).
4. What is no character cannot be encoded: lone surrogates become U+FFFD, and a note says so.

Nothing here loads a model. The functions call the tokenizer, and fast tokenizers keep settings
between calls (huggingface/tokenizers issue 537), so whoever shares one among threads holds a lock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tpo_modules.errors import ConfigurationError, InputError
from tpo_modules.scorers.base import Message
from tpo_modules.scorers.control_tokens import control_pattern, loosen, mark, marked_ids, plain_ids
from tpo_modules.scorers.truncation import cut_notes, fit, keep_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% endfor %}{{ eos_token }}"
)
"""For tokenizers without a chat template: BOS and EOS where the tokenizer has them, and between
them one paragraph per message, ``User: ...`` then ``Assistant: ...``."""

Turns = list[dict[str, str]]

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One (query, response) as a reward model reads it.

    Attributes:
        ids: Token ids, special tokens included, no padding.
        token_type_ids: 0 for the query's tokens and 1 for the response's where the tokenizer makes
            them (BERT, DeBERTa), else None. As long as ``ids``.
        notes: What was changed to make it fit, such as ``"query cut by 312 tokens"``.
    """

    ids: tuple[int, ...]
    token_type_ids: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    response: str,
    *,
    max_length: int | None = None,
    chat_template: str | None = None,
) -> Encoded:
    """Encode a conversation and the assistant's response to it by a chat template.

    The ids equal ``tokenizer.apply_chat_template(..., tokenize=True)`` on the same messages, unless
    a text spells out a control token (rule 2), is cut (rule 3) or mended (rule 4). Where a template
    refuses a system message, its text is put before the first user message, and a note says so.

    Args:
        tokenizer: The reward model's tokenizer; one without a BOS or an EOS token will do.
        messages: The conversation, oldest first, the user's latest message last.
        response: The assistant's reply; may be empty.
        max_length: The most ids to return, special tokens included; None cuts nothing.
        chat_template: A Jinja template to use instead of the tokenizer's.

    Returns:
        The ids, at most ``max_length`` of them.

    Raises:
        InputError: The template refuses the messages, or its own tokens leave no room within
            ``max_length``.
    """
    template = chat_template or getattr(tokenizer, "chat_template", None) or DEFAULT_CHAT_TEMPLATE
    roles = [*(message["role"] for message in messages), "assistant"]
    chat = _Chat(tokenizer, str(template))
    built: list[int] = []

    def build(texts: Sequence[str]) -> list[int]:
        built[:] = chat.ids(
            [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        )
        return built

    texts, notes = mend([*(message["content"] for message in messages), response])
    cuts = fit(tokenizer, texts, build, max_length)
    return Encoded(tuple(built), notes=(*chat.notes, *notes, *cut_notes(*cuts)))


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    query_text: str,
    response: str,
    *,
    max_length: int | None = None,
    max_text_tokens: int | None = None,
) -> Encoded:
    """Encode a query and a response as a text pair, as cross-encoders read it.

    The ids equal ``tokenizer([query], [response])``, unless a text spells out a control token
    (rule 2), is cut (rule 3) or mended (rule 4).

    Args:
        tokenizer: The reward model's tokenizer; its own rule for pairs places the special tokens.
        query_text: The query; for a conversation, see `conversation_text`.
        response: The response; may be empty.
        max_length: The most ids to return, special tokens included; None cuts nothing.
        max_text_tokens: The most ids of the query, and of the response: what is left of each is
            cut once more, in its middle. For tokenizers that write ``[CLS] query [SEP] response
            [SEP]`` and token type ids; None cuts nothing.

    Returns:
        The ids, at most ``max_length`` of them, with token type ids where the tokenizer makes them.

    Raises:
        InputError: ``max_length`` leaves no room beside the special tokens.
        ConfigurationError: ``max_text_tokens``, and the tokenizer makes no token type ids.
    """
    built: list[Encoded] = []

    def build(texts: Sequence[str]) -> list[int]:
        built[:] = [_encode_text_pair(tokenizer, texts[0], texts[1])]
        return list(built[0].ids)

    texts, notes = mend([query_text, response])
    query_cut, response_cut = fit(tokenizer, texts, build, max_length)
    (encoded,) = built
    if max_text_tokens is not None:
        encoded, query_more, response_more = _limit_texts(encoded, max_text_tokens)
        query_cut, response_cut = query_cut + query_more, response_cut + response_more
    return replace(encoded, notes=(*notes, *cut_notes(query_cut, response_cut)))


def conversation_text(messages: Sequence[Message]) -> str:
    """Write a conversation as one text, for models that read a text pair.

    A single user message is its own text, unchanged. Otherwise each message becomes a paragraph
    that begins with its role: ``System: ...``, ``User: ...``, ``Assistant: ...``.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


def mend(texts: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Put U+FFFD in place of surrogates, as of an emoji cut in two; no tokenizer takes them.

    Args:
        texts: The parts of a query, then the response.

    Returns:
        The texts, and a note on query and response where they were changed.
    """
    mended = [_SURROGATE.sub("\ufffd", text) for text in texts]
    names = [*["query"] * (len(texts) - 1), "response"]
    changed = [name for name, old, new in zip(names, texts, mended, strict=True) if old != new]
    return mended, tuple(
        f"{name}: lone surrogate read as U+FFFD" for name in dict.fromkeys(changed)
    )


class _Chat:
    """A chat template at work on one conversation; remembers whether it takes a system message."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.notes: tuple[str, ...] = ()
        self.control = control_pattern(tokenizer, template)

    def ids(self, turns: Turns) -> list[int]:
        """Render and encode."""
        if not any(self.control.search(turn["content"]) for turn in turns):
            return plain_ids(self.tokenizer, self._render(turns))
        marked = [{**turn, "content": mark(self.control, turn["content"])} for turn in turns]
        return marked_ids(self.tokenizer, self._render(marked))

    def _render(self, turns: Turns) -> str:
        from jinja2 import TemplateError

        if self.notes:
            return self._apply(_join_system(turns))
        try:
            return self._apply(turns)
        except TemplateError as refusal:
            self.notes = (
                "system message joined to the first user message: the chat template takes none",
            )
            try:
                return self._apply(_join_system(turns))
            except TemplateError:
                roles = ", ".join(turn["role"] for turn in turns)
                raise InputError(
                    f"the reward model's chat template refuses the conversation ({roles}): "
                    f"{refusal}. Give roles that it takes, or another chat_template=."
                ) from refusal

    def _apply(self, turns: Turns) -> str:
        # A template that writes {{ bos_token + ... }} fails on a tokenizer without one.
        names = ("bos_token", "eos_token")
        absent: dict[str, Any] = {n: "" for n in names if getattr(self.tokenizer, n, None) is None}
        return str(
            self.tokenizer.apply_chat_template(
                turns, chat_template=self.template, tokenize=False, **absent
            )
        )


def _join_system(turns: Turns) -> Turns:
    if len(turns) < 2 or turns[0]["role"] != "system":
        return turns
    joined = f"{turns[0]['content']}\n\n{turns[1]['content']}"
    return [{"role": turns[1]["role"], "content": joined}, *turns[2:]]


def _encode_text_pair(
    tokenizer: PreTrainedTokenizerBase, query_text: str, response: str
) -> Encoded:
    control = control_pattern(tokenizer)
    if not control.search(query_text) and not control.search(response):
        return _pair_ids(tokenizer, query_text, response)
    encoded = _pair_ids(tokenizer, query_text, response, split_special_tokens=True)
    unknown: Any = tokenizer.unk_token_id
    special = {token for token in tokenizer.all_special_ids if token != unknown}
    allowed = tokenizer.num_special_tokens_to_add(pair=True)
    if sum(token in special for token in encoded.ids) > allowed:  # the vocabulary holds it as text
        return _pair_ids(tokenizer, loosen(control, query_text), loosen(control, response))
    return encoded


def _limit_texts(encoded: Encoded, most: int) -> tuple[Encoded, int, int]:
    """Keep the ends of each text; return also how many ids were cut of the query and response."""
    ids, types = encoded.ids, encoded.token_type_ids
    if types is None:
        raise ConfigurationError(
            f"a limit of {most} tokens per text needs a tokenizer that makes token type ids, as "
            "BERT's does; this one makes none"
        )
    second = types.count(0)
    query, response = ids[1 : second - 1], ids[second:-1]
    first_ends, second_ends = keep_ends(query, most), keep_ends(response, most)
    limited = Encoded(
        (ids[0], *first_ends, ids[second - 1], *second_ends, ids[-1]),
        (0,) * (len(first_ends) + 2) + (1,) * (len(second_ends) + 1),
    )
    return limited, len(query) - len(first_ends), len(response) - len(second_ends)


def _pair_ids(
    tokenizer: PreTrainedTokenizerBase, query_text: str, response: str, **options: Any
) -> Encoded:
    # As a batch of one: given a lone empty text_pair, a fast tokenizer takes it for none at all.
    batch: Any = tokenizer([query_text], [response], verbose=False, **options)
    types = batch.get("token_type_ids")
    return Encoded(tuple(batch["input_ids"][0]), None if types is None else tuple(types[0]))
