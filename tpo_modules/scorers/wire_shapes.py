"""The wire shapes of reward servers: one class each, a request builder and an answer parser.

====================  ===========================================  ================================
name                  request                                      answer
====================  ===========================================  ================================
``tpo``               ``{input: [{query, response, ...}]}``        ``data[].probs``
``vllm-classify``     ``{messages}`` or ``{input: [...]}``         ``data[].probs``
``vllm-pooling``      the same, ``task: classify``                 ``data[].data``
``vllm-score``        ``{text_1: [...], text_2: [...]}``           ``data[].score``
``sglang-classify``   ``{text: [...]}`` or ``{input_ids: [...]}``  ``[].embedding``
``tei-predict``       ``{inputs: [[text], ...]}``                  ``[[{score, label}]]``
``tei-rerank``        ``{query, texts}``                           ``[{index, score}]``
``rerank``            ``{query, documents}``                       ``results[].relevance_score``
====================  ===========================================  ================================

Every shape asks for raw numbers where the server knows a switch for that (``use_activation``,
``raw_scores``). Each parser returns outputs in the order of the request, whatever the answer's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

from tpo_modules.errors import RewardError
from tpo_modules.scorers.encoding import conversation_text
from tpo_modules.scorers.wire import (
    Item,
    Output,
    PerRequest,
    Wire,
    conversation,
    in_order,
    read_field,
    read_member,
    read_rows,
    shown,
)

Template = Literal["required", "optional", "unused"]


class TpoClassify(Wire):
    """Our own server (``tpo serve-scorer``): vLLM's answer to queries with all that they carry."""

    path: ClassVar[str] = "/classify"

    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Send each query's text, messages and inputs, so that any scorer can run behind it."""
        return {"input": [_tpo_input(item) for item in items], "use_activation": False}

    def parse(self, answer: object, count: int) -> list[Output]:
        """Read ``data[].probs``, with feedback and notes where they are given."""
        rows = in_order(
            read_rows(read_member(answer, "data"), count, "data"), "data", required=False
        )
        return [_with_words(row, read_field(row, "probs", "data")) for row in rows]


def _with_words(row: dict[str, Any], values: tuple[object, ...]) -> Output:
    notes = row.get("notes")
    return Output(
        values,
        feedback=row["feedback"] if isinstance(row.get("feedback"), str) else None,
        notes=tuple(map(str, cast("list[object]", notes))) if isinstance(notes, list) else (),
    )


def _tpo_input(item: Item) -> dict[str, Any]:
    query = item.query
    given: dict[str, Any] = {"query": str(query), "response": item.response}
    if query.messages != ({"role": "user", "content": str(query)},):
        given["messages"] = [dict(message) for message in query.messages]
    if dict(query.inputs) != {"query": str(query)}:
        given["inputs"] = {name: _plain(value) for name, value in query.inputs.items()}
    return given


def _plain(value: object) -> object:
    """Give a value as JSON where it can be, else as its text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


class VLLMClassify(Wire):
    """vLLM's ``/classify``.

    Without a template on this side each conversation is one request (``messages`` carries only one;
    vLLM batches concurrent requests itself). With one, ``input`` carries many texts or token ids.
    """

    path: ClassVar[str] = "/classify"
    template: ClassVar[Template] = "optional"
    takes_token_ids: ClassVar[bool] = True
    answer_field: ClassVar[str] = "probs"

    def per_request_for(self, item: Item) -> PerRequest:
        """Only templated conversations can share a request."""
        return "one" if item.token_ids is None else "many"

    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Send one conversation, or many templated texts to which the server adds no token."""
        if items[0].token_ids is None:
            return {"messages": conversation(items[0]), "use_activation": False}
        given = _texts(items) or _ids(items)
        return {"input": given, "add_special_tokens": False, "use_activation": False}

    def parse(self, answer: object, count: int) -> list[Output]:
        """Read ``data[].probs`` (``data[].data`` for pooling), and our own server's feedback."""
        rows = in_order(
            read_rows(read_member(answer, "data"), count, "data"), "data", required=False
        )
        return [
            _with_words(row, _one_row(read_field(row, self.answer_field, "data"))) for row in rows
        ]


def _texts(items: Sequence[Item]) -> list[str] | None:
    """Give templated texts, or None where one of them would become other ids than those wanted."""
    texts = [item.text for item in items if item.text is not None]
    return texts if len(texts) == len(items) else None


def _ids(items: Sequence[Item]) -> list[list[int]]:
    return [list(item.token_ids or ()) for item in items]


def _one_row(values: tuple[object, ...]) -> tuple[object, ...]:
    """Unwrap ``[[x]]``; several rows are rewards per token, which are no reward of a response."""
    rows = [cast("list[object]", value) for value in values if isinstance(value, list)]
    if len(rows) > 1:
        raise RewardError(
            f"Expected one reward per response, got {len(rows)} rows (one per token). "
            "Ask the server for a sequence-level task: extra={'task': 'classify'}."
        )
    return tuple(rows[0]) if rows else values


class VLLMPooling(VLLMClassify):
    """vLLM's ``/pooling``, for reward models that ``/classify`` does not serve."""

    path: ClassVar[str] = "/pooling"
    answer_field: ClassVar[str] = "data"

    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Send what ``/classify`` takes, and the task."""
        return {**super().request(items), "task": "classify"}


class VLLMScore(Wire):
    """vLLM's ``/score``: cross-encoders that take a text pair."""

    path: ClassVar[str] = "/score"

    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Send query and response texts as two lists of the same length."""
        return {
            "text_1": [conversation_text(item.query.messages) for item in items],
            "text_2": [item.response for item in items],
            "use_activation": False,
        }

    def parse(self, answer: object, count: int) -> list[Output]:
        """Read ``data[].score``."""
        rows = in_order(
            read_rows(read_member(answer, "data"), count, "data"), "data", required=False
        )
        return [Output(read_field(row, "score", "data")) for row in rows]


class SGLangClassify(Wire):
    """SGLang's ``/classify`` (started with ``--is-embedding``); it applies no activation."""

    path: ClassVar[str] = "/classify"
    template: ClassVar[Template] = "required"
    adds_special_tokens: ClassVar[bool] = True
    takes_token_ids: ClassVar[bool] = True

    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Send templated texts, or token ids where the text would become other ids."""
        texts = _texts(items)
        return {"text": texts} if texts else {"input_ids": _ids(items)}

    def parse(self, answer: object, count: int) -> list[Output]:
        """Read ``[].embedding``; one object stands for a list of one."""
        one: object = [cast("object", answer)] if isinstance(answer, dict) else answer
        rows = read_rows(one, count, "the answer")
        return [Output(read_field(row, "embedding", "the answer")) for row in rows]


class TEIPredict(Wire):
    """Text Embeddings Inference's ``/predict``: a templated text, else a text pair."""

    path: ClassVar[str] = "/predict"
    template: ClassVar[Template] = "optional"
    adds_special_tokens: ClassVar[bool] = True

    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Send each item as ``[text]`` or ``[query, response]``; nothing is cut silently."""
        return {"inputs": [_tei_input(i) for i in items], "raw_scores": True, "truncate": False}

    def parse(self, answer: object, count: int) -> list[Output]:
        """Read a list of ``{score, label}`` per text, best label first."""
        rows = cast("list[object]", answer) if isinstance(answer, list) else []
        if len(rows) != count or not all(isinstance(row, list) for row in rows):
            raise RewardError(
                f"Expected {count} lists of {{score, label}} (one per response), got "
                f"{shown(answer)}."
            )
        return [_labelled(cast("list[object]", row)) for row in rows]


def _tei_input(item: Item) -> list[str]:
    if item.text is not None:
        return [item.text]
    return [conversation_text(item.query.messages), item.response]


def _labelled(row: list[object]) -> Output:
    where = "the scores of a text"
    found = read_rows(row, len(row), where)
    numbers = tuple(read_field(one, "score", where)[0] for one in found)
    return Output(numbers, labels=tuple(str(one.get("label")) for one in found))


class TEIRerank(Wire):
    """Text Embeddings Inference's ``/rerank``."""

    path: ClassVar[str] = "/rerank"
    per_request: ClassVar[PerRequest] = "one query"

    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Send one query and the responses to it."""
        return {
            "query": conversation_text(items[0].query.messages),
            "texts": [item.response for item in items],
            "raw_scores": True,
            "truncate": False,
        }

    def parse(self, answer: object, count: int) -> list[Output]:
        """Read ``[].score`` by index."""
        rows = in_order(read_rows(answer, count, "the answer"), "the answer", required=True)
        return [Output(read_field(row, "score", "the answer")) for row in rows]


class Rerank(Wire):
    """The ``/rerank`` of vLLM, llama.cpp, and those that follow Jina's or Cohere's."""

    path: ClassVar[str] = "/rerank"
    per_request: ClassVar[PerRequest] = "one query"

    def request(self, items: Sequence[Item]) -> dict[str, Any]:
        """Send one query and the responses as documents; all of them are wanted back."""
        return {
            "query": conversation_text(items[0].query.messages),
            "documents": [item.response for item in items],
            "top_n": len(items),
            "use_activation": False,
        }

    def parse(self, answer: object, count: int) -> list[Output]:
        """Read ``results[].relevance_score`` by index."""
        rows = read_rows(read_member(answer, "results"), count, "results")
        ranked = in_order(rows, "results", required=True)
        return [Output(read_field(row, "relevance_score", "results")) for row in ranked]


WIRES: Mapping[str, Wire] = {
    "tpo": TpoClassify(),
    "vllm-classify": VLLMClassify(),
    "vllm-pooling": VLLMPooling(),
    "vllm-score": VLLMScore(),
    "sglang-classify": SGLangClassify(),
    "tei-predict": TEIPredict(),
    "tei-rerank": TEIRerank(),
    "rerank": Rerank(),
}
"""Every shape by the name that ``ServerScorer(api=...)`` takes."""
