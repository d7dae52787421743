"""`ServerScorer`: a reward model behind HTTP."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tpo_modules.errors import InputError, RewardError
from tpo_modules.scorers.base import Query, as_query
from tpo_modules.scorers.read_reward import read_reward
from tpo_modules.scorers.score_check import check_rewards
from tpo_modules.scorers.server_options import (
    check_options,
    client_template,
    endpoint,
    request_headers,
)
from tpo_modules.scorers.transport import JSONPoster, RequestRefusedError, Retry
from tpo_modules.scorers.wire import Item, Output
from tpo_modules.scorers.wire_shapes import WIRES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ABOUT_THE_CONTENT = frozenset({400, 413, 422})
"""Statuses that can be due to one item of a batch, so that the rest may still be scored."""


class ServerScorer:
    """Rewards from a reward model behind vLLM, SGLang, TEI, llama.cpp, or ``tpo serve-scorer``.

    Raw logits are asked for wherever the server has a switch for that. An activation (a sigmoid, or
    a softmax over one output) keeps the order at best and flattens the differences at worst, so run
    `check` once before a long run.

    Responses travel in batches, several at a time; equal ones are sent once. Attempts that failed
    in a way that may pass are repeated (see `Retry`); a batch that came back is never sent again. A
    response that the server refuses or scores with NaN, null or infinity gets the reward NaN with a
    note; if it refuses all of them, that is an error.

    Safe to share among threads and event loops, and inside a running loop: see `JSONPoster`. Copies
    share its connections.

    Args:
        url: The server's address, such as ``"http://localhost:8000"``, with or without the
            endpoint.
        api: The server's kind, one of `WIRES`. ``"vllm-classify"`` also works with ``tpo
            serve-scorer``; ``"tpo"`` does that in batches, and sends the query's inputs along.
        model: The model's name as the server knows it, where it wants one.
        tokenizer: The reward model's tokenizer (name, folder or object), to apply the chat template
            on this side. Needed by ``"sglang-classify"``. With ``"vllm-*"`` it allows many
            conversations per request and cuts long ones as `RewardModelScorer` does; with
            ``"tei-predict"`` it sends the templated conversation in place of a text pair. The other
            apis take none.
        chat_template: A Jinja template in place of the tokenizer's; only with ``tokenizer``.
        max_length: The most tokens to send, only with ``tokenizer``; None cuts nothing.
        output: Which output of a model with several, by index or by label.
        token: A bearer token; white space around it, as at a file's end, is left out.
        headers: More headers for each request.
        timeout: Seconds for one attempt.
        retry: When to try again.
        batch_size: The most responses per request.
        max_concurrency: The most requests under way at once.
        extra: More fields for each request's body, such as ``{"truncate_prompt_tokens": 4096}``; a
            value of None takes a field out.

    Raises:
        ConfigurationError: An unknown ``api``, an address that is no HTTP URL, a missing tokenizer,
            an option that nothing would heed, a token or header that cannot be sent, or a number
            that is not positive.
    """

    def __init__(
        self,
        url: str,
        *,
        api: str = "vllm-classify",
        model: str | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        max_length: int | None = None,
        output: int | str | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        retry: Retry | None = None,
        batch_size: int = 32,
        max_concurrency: int = 16,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        check_options(api, timeout, batch_size, max_concurrency)
        self.api = api
        self._wire = WIRES[api]
        self.url = endpoint(url, self._wire.path)
        self._template = client_template(api, tokenizer, chat_template, max_length)
        self._fields: dict[str, Any] = {**({"model": model} if model else {}), **(extra or {})}
        self._output = output
        self._batch_size = batch_size
        self._poster = JSONPoster(
            self.url,
            headers=request_headers(token, headers),
            timeout=timeout,
            retry=retry or Retry(),
            max_concurrency=max_concurrency,
        )

    def __repr__(self) -> str:
        return f"ServerScorer({self.url!r}, api={self.api!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> ServerScorer:
        return self  # nothing in it changes, and copies must share the limit on concurrency

    def __enter__(self) -> ServerScorer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        self._poster.close()

    def probe(self) -> None:
        """Score one short response, to find a wrong address or option before a long run.

        It sends what `score` would send, but tries at most twice again.

        Raises:
            ScorerError: The server cannot be reached, keeps failing, or refuses the response.
            RewardError: The answer is not one number.
        """
        twin = copy.copy(self)
        twin._poster = self._poster.hurried(2)
        with twin:
            try:
                twin.score("Hello", ["Hello."])
            except RequestRefusedError as refusal:
                # Our own server: its scorer wants an input, such as the answer, that queries bring.
                if (self.api, refusal.status) != ("tpo", 422):
                    raise

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Reward each response; see `Scorer.score`.

        Returns:
            One reward per response, same order; NaN (with a note) for one that the server refuses.

        Raises:
            ScorerError: The server cannot be reached, keeps failing, or refuses every response.
            RewardError: The answer is not one number per response.
        """
        return self.score_pairs([(query, response) for response in responses])

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Do what `score` does, without blocking the event loop."""
        found = as_query(query)
        items = await asyncio.to_thread(self._items, [(found, response) for response in responses])
        return await asyncio.wrap_future(self._poster.submit(self._score(items)))

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Reward pairs of any number of queries, batched together where the api can.

        Returns:
            One reward per pair, same order, as `score` gives them.
        """
        items = self._items([(as_query(query), response) for query, response in pairs])
        return self._poster.submit(self._score(items)).result() if items else []

    def check(
        self, pairs: Sequence[tuple[str, str]], expected: Sequence[float], *, tol: float = 0.05
    ) -> list[float]:
        """Score pairs whose rewards are known, and compare: do this once before a long run.

        Args:
            pairs: A few (query, response) pairs, at least three for a good guess at what is wrong.
            expected: Their rewards, from `RewardModelScorer` or the model's card.
            tol: The largest difference allowed. The default suits bfloat16; use 1e-4 for float32.

        Returns:
            The rewards that the server gave.

        Raises:
            ConfigurationError: There is not one finite known reward for each pair.
            ScorerError: They differ; the message guesses the cause (a sigmoid, an offset, another
                order...).
        """
        got = self.score_pairs(pairs)
        check_rewards(got, expected, tol=tol, subject=f"{self.url} ({self.api})")
        return got

    # --- from pairs to requests

    def _items(self, pairs: Sequence[tuple[Query, str]]) -> list[Item]:
        return [self._item(query, str(response)) for query, response in pairs]

    def _item(self, query: Query, response: str) -> Item:
        if self._template is None:
            return Item(query, response)
        try:
            return self._template.item(query, response, self._wire)
        except InputError as error:
            return Item(query, response, unsendable=str(error))

    async def _score(self, items: Sequence[Item]) -> list[float]:
        """Send each distinct item once; equal ones share its reward."""
        distinct: dict[str, Item] = {}
        keys = [json.dumps(self._wire.request([item])) for item in items]
        for key, item in zip(keys, items, strict=True):
            distinct.setdefault(key, item)
        outcomes = await self._all_outcomes(list(distinct.values()))
        refusals = [o for o in outcomes if isinstance(o, RequestRefusedError)]
        if outcomes and len(refusals) == len(outcomes):
            raise refusals[0]
        rewards = {
            key: read_reward(item, outcome, self._output, self.url)
            for (key, item), outcome in zip(distinct.items(), outcomes, strict=True)
        }
        return [rewards[key] for key in keys]

    async def _all_outcomes(self, items: Sequence[Item]) -> list[Output | RequestRefusedError]:
        batches = self._batches(items)
        tasks = [asyncio.ensure_future(self._outcomes([items[i] for i in b])) for b in batches]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # only those still under way when one of them failed
        by_index = {
            i: outcome
            for batch, outcomes in zip(batches, found, strict=True)
            for i, outcome in zip(batch, outcomes, strict=True)
        }
        return [by_index[i] for i in range(len(items))]

    def _batches(self, items: Sequence[Item]) -> list[list[int]]:
        """Group items that may share a request, at most ``batch_size`` of them."""
        groups: dict[object, list[int]] = {}
        for index, item in enumerate(items):
            sharing = "one" if item.unsendable else self._wire.per_request_for(item)
            alone = index if sharing == "one" else None
            same_query = item.query.messages if sharing == "one query" else ()
            key = json.dumps([alone, [dict(m) for m in same_query]])
            groups.setdefault(key, []).append(index)
        size = self._batch_size
        return [g[i : i + size] for g in groups.values() for i in range(0, len(g), size)]

    async def _outcomes(self, items: Sequence[Item]) -> list[Output | RequestRefusedError]:
        """Send one batch; where its content is refused, halve it to save what can be scored."""
        if items[0].unsendable:
            return [RequestRefusedError(items[0].unsendable, 0)]
        body = {**self._wire.request(items), **self._fields}
        try:
            answer = await self._poster.post({k: v for k, v in body.items() if v is not None})
        except RequestRefusedError as refusal:
            if refusal.status not in _ABOUT_THE_CONTENT:
                raise
            if len(items) == 1:
                return [refusal]
            half = len(items) // 2
            return [*await self._outcomes(items[:half]), *await self._outcomes(items[half:])]
        return [*self._parsed(answer, len(items))]

    def _parsed(self, answer: object, count: int) -> list[Output]:
        try:
            return self._wire.parse(answer, count)
        except RewardError as error:
            raise RewardError(
                f"{self.url} gave an answer that is not {self.api}'s: {error} "
                "Is api= right for this server?"
            ) from error
