"""The chat template applied on the client's side, for servers that do not apply it themselves."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tpo_modules.errors import ModelNotFoundError
from tpo_modules.scorers.base import Query
from tpo_modules.scorers.encoding import DEFAULT_CHAT_TEMPLATE, encode_chat
from tpo_modules.scorers.wire import Item, Wire

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ClientTemplate:
    """Makes the token ids that a reward model must read, and a text that stands for them.

    The ids are those that `RewardModelScorer` reads in process. Servers take text more readily than
    ids, and tokenise it again; so a text is used only when it gives the same ids under the server's
    rule for special tokens (its own BOS put before a templated text is how a BOS gets doubled).

    Args:
        tokenizer: The reward model's tokenizer, or the name or folder to load it from.
        chat_template: A Jinja template in place of the tokenizer's.
        max_length: The most tokens to send; what is cut is noted. None cuts nothing.
    """

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        max_length: int | None = None,
    ) -> None:
        self._given = tokenizer
        self._chat_template = chat_template
        self._max_length = max_length
        self._lock = threading.Lock()
        self._loaded: PreTrainedTokenizerBase | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_loaded": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def item(self, query: Query, response: str, wire: Wire) -> Item:
        """Prepare one response for a server.

        Raises:
            InputError: The template refuses the conversation, or ``max_length`` leaves no room.
            ModelNotFoundError: The tokenizer cannot be loaded.
        """
        with self._lock:  # fast tokenizers keep settings between calls
            tokenizer = self._tokenizer()
            encoded = encode_chat(
                tokenizer,
                query.messages,
                response,
                max_length=self._max_length,
                chat_template=self._chat_template,
            )
            text = self._text(tokenizer, query, response, encoded.ids, wire.adds_special_tokens)
        problem = None
        if text is None and not wire.takes_token_ids:
            problem = (
                "no text makes this server read the right tokens (the response spells out "
                "control tokens, or the tokenizer cannot undo itself), and it takes no token ids"
            )
        return Item(query, response, text, encoded.ids, encoded.notes, problem)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self._loaded is None:
            self._loaded = _load(self._given) if isinstance(self._given, str) else self._given
        return self._loaded

    def _text(
        self,
        tokenizer: PreTrainedTokenizerBase,
        query: Query,
        response: str,
        ids: tuple[int, ...],
        adds_special_tokens: bool,
    ) -> str | None:
        """Find a text that the server tokenises to the ids, or None."""
        for text in (self._rendered(tokenizer, query, response), tokenizer.decode(list(ids))):
            bos = tokenizer.bos_token if isinstance(tokenizer.bos_token, str) else ""
            for candidate in (text, str(text).removeprefix(bos)):
                got = tokenizer(candidate, add_special_tokens=adds_special_tokens, verbose=False)[
                    "input_ids"
                ]
                if tuple(got) == ids:
                    return str(candidate)
        return None

    def _rendered(self, tokenizer: PreTrainedTokenizerBase, query: Query, response: str) -> str:
        """Render the conversation; empty where the template refuses it."""
        from jinja2 import TemplateError

        own: Any = tokenizer.chat_template
        template: str = self._chat_template or own or DEFAULT_CHAT_TEMPLATE
        turns = [*map(dict, query.messages), {"role": "assistant", "content": response}]
        absent: dict[str, Any] = {
            name: ""
            for name in ("bos_token", "eos_token")
            if getattr(tokenizer, name, None) is None
        }
        try:
            return str(
                tokenizer.apply_chat_template(
                    turns, chat_template=template, tokenize=False, **absent
                )
            )
        except TemplateError:
            return ""


def _load(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"No tokenizer could be loaded from {name!r} ({error}). "
            "Expected a local folder or a model on the hub: that of the model that the server runs."
        ) from error
