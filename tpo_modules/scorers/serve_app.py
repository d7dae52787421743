"""The web application behind ``tpo serve-scorer``; needs Starlette (extra ``serve``)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import math
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tpo_modules.errors import InputError, RewardError, TPOError
from tpo_modules.scorers.base import Query, Reward, Scorer
from tpo_modules.scorers.batching import BatchingScorer
from tpo_modules.scorers.function import as_reward
from tpo_modules.scorers.pairs import as_pair_scorer, query_identity
from tpo_modules.scorers.serve_metrics import Metrics
from tpo_modules.scorers.serve_options import ServeOptions
from tpo_modules.scorers.serve_requests import parse_request

_DRAINED = 8  # bodies up to so many times the limit are read to their end, so that 413 arrives


class ScoringService:
    """The endpoints, and the batching scorer and counters that they share.

    Args:
        scorer: Scores the requests; one with ``score_pairs`` scores those of different queries
            together.
        name: The model's name for clients.
        options: Batching and limits.
    """

    def __init__(self, scorer: Scorer, name: str, options: ServeOptions) -> None:
        self._name = name
        self._options = options
        self._metrics = Metrics()
        self._started = int(time.time())
        self._batching = BatchingScorer(
            as_pair_scorer(scorer),
            max_batch=options.max_batch,
            max_wait=options.max_wait,
            workers=options.workers,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None, None]:
        """End the scoring threads when the server ends."""
        yield
        await asyncio.to_thread(self._batching.close)

    async def health(self, request: Request) -> Response:
        """Say that the server is up."""
        return _json({"status": "ok", "model": self._name})

    async def metrics(self, request: Request) -> Response:
        """Give the counters in Prometheus's text format."""
        text = self._metrics.render(self._batching.stats)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """List the one model, as OpenAI's endpoint does."""
        model = {
            "id": self._name,
            "object": "model",
            "created": self._started,
            "owned_by": "dspy-tpo",
        }
        return _json({"object": "list", "data": [model]})

    async def classify(self, request: Request) -> Response:
        """Score a request's pairs; see `docs/serving.md` for the shapes."""
        status = 500
        try:
            answer = await self._classify(request)
            status = 200
        except HTTPException as refusal:
            status = refusal.status_code
            raise
        finally:
            self._metrics.answered(status)
        return answer

    async def _classify(self, request: Request) -> Response:
        started = time.monotonic()
        try:
            asked = parse_request(await self._body(request))
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        if asked.model not in (None, self._name):
            raise HTTPException(404, f"No model {asked.model!r} here; this is {self._name!r}.")
        if len(asked.pairs) > self._options.max_responses:
            raise HTTPException(
                413,
                f"{len(asked.pairs)} responses in one request; at most "
                f"{self._options.max_responses}.",
            )
        try:
            rewards = await self._scored(asked.pairs)
        except InputError as error:  # the scorer lacks something: asking again cannot help
            raise HTTPException(422, str(error)) from error
        self._metrics.scored(rewards, time.monotonic() - started)
        rows = [_row(i, reward, asked.activation) for i, reward in enumerate(rewards)]
        return _json(
            {
                "id": f"classify-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": self._name,
                "data": rows,
            }
        )

    async def _body(self, request: Request) -> bytes:
        limit = self._options.max_body_bytes
        content = bytearray()
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                content += chunk
            elif size > _DRAINED * limit:
                break
        if size > limit:
            raise HTTPException(413, f"The body is larger than {limit} bytes.")
        return bytes(content)

    async def _scored(self, pairs: Sequence[tuple[Query, str]]) -> list[Reward]:
        """Score pairs query by query; the batching scorer puts them together again."""
        metrics = self._metrics
        if metrics.pending and metrics.pending + len(pairs) > self._options.max_pending:
            raise HTTPException(429, "Too much is waiting to be scored.", {"retry-after": "1"})
        groups: dict[object, list[int]] = {}
        for index, (query, _) in enumerate(pairs):
            groups.setdefault(query_identity(query), []).append(index)
        metrics.pending += len(pairs)
        try:
            found = await asyncio.gather(
                *(
                    self._batching.ascore(pairs[group[0]][0], [pairs[i][1] for i in group])
                    for group in groups.values()
                )
            )
        finally:
            metrics.pending -= len(pairs)
        rewards: dict[int, Reward] = {}
        for group, some in zip(groups.values(), found, strict=True):
            rewards.update(zip(group, map(as_reward, some), strict=True))
        return [rewards[i] for i in range(len(pairs))]


def _row(index: int, reward: Reward, activation: bool) -> dict[str, Any]:
    value = _number(reward)
    if activation and value is not None:
        value = 1 / (1 + math.exp(-value)) if value > -700 else 0.0
    row: dict[str, Any] = {
        "index": index,
        "label": "LABEL_0",
        "probs": [value],
        "num_classes": 1,
    }
    given = {"feedback": reward.feedback, "notes": list(reward.notes)}
    row.update((key, said) for key, said in given.items() if said)
    return row


def _number(reward: Reward) -> float | None:
    """Take a reward as a number; NaN, which JSON does not have, as None."""
    if math.isinf(reward):
        raise RewardError(
            f"The scorer gave {reward!r} as a reward; expected a finite number, or NaN."
        )
    return None if math.isnan(reward) else float(reward)


class BearerToken:
    """Lets only requests with the token through, but for ``/health``.

    Args:
        app: The application behind it.
        token: What must come as ``Authorization: Bearer <token>``.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the header in a time that does not depend on where it differs."""
        given = dict(scope.get("headers", [])).get(b"authorization", b"")
        if (
            scope["type"] != "http"
            or scope["path"] == "/health"
            or hmac.compare_digest(given, self._wanted)
        ):
            await self._app(scope, receive, send)
            return
        refusal = _error(401, "Expected the header 'Authorization: Bearer <token>'.")
        refusal.headers["www-authenticate"] = "Bearer"
        await refusal(scope, receive, send)


def build_app(scorer: Scorer, name: str, token: str | None, options: ServeOptions) -> Starlette:
    """Put the endpoints together."""
    service = ScoringService(scorer, name, options)
    return Starlette(
        routes=[
            Route("/classify", service.classify, methods=["POST"]),
            Route("/v1/classify", service.classify, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/health", service.health),
            Route("/metrics", service.metrics),
        ],
        middleware=[] if token is None else [Middleware(BearerToken, token=token)],
        exception_handlers={
            HTTPException: _on_refusal,
            TPOError: _on_failure,
            Exception: _on_defect,
        },
        lifespan=service.lifespan,
    )


async def _on_refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    answer = _error(error.status_code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _on_failure(request: Request, error: Exception) -> Response:
    return _error(500, f"{type(error).__name__}: {error}")


async def _on_defect(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, so that the log has the traceback.
    return _error(500, f"{type(error).__name__} in the scorer; see the server's log.")


def _error(status: int, message: str) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _json({"error": {"message": message, "type": kind, "code": status}}, status)


def _json(content: object, status: int = 200) -> Response:
    body = json.dumps(content, allow_nan=False).encode()
    return Response(body, status_code=status, media_type="application/json")
