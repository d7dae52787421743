"""Any scorer behind HTTP, in the shape of vLLM's ``/classify``: what ``tpo serve-scorer`` runs.

Requests that arrive together are scored together, so many runs can share one model. The rewards are
those of the scorer, raw, whatever ``use_activation`` is left at; only ``use_activation: true``
gives their sigmoid. A response that could not be scored has ``null`` for its reward, and notes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from tpo_modules.errors import ConfigurationError, MissingExtraError
from tpo_modules.scorers.base import Scorer
from tpo_modules.scorers.http_headers import checked_token
from tpo_modules.scorers.serve_options import ServeOptions

if TYPE_CHECKING:
    from starlette.applications import Starlette


def create_app(
    scorer: Scorer,
    *,
    name: str = "scorer",
    token: str | None = None,
    options: ServeOptions | None = None,
) -> Starlette:
    """Make the ASGI application: ``/classify``, ``/v1/models``, ``/health`` and ``/metrics``.

    Args:
        scorer: Any scorer. One with ``score_pairs`` scores requests of different queries in one
            batch.
        name: The model's name for clients.
        token: A bearer token that every request must carry, but for ``/health``; None lets all
            through.
        options: Batching and limits.

    Raises:
        ConfigurationError: The token is empty, or no header can carry it.
        MissingExtraError: Starlette is not installed.
    """
    token = None if token is None else checked_token(token)
    try:
        from tpo_modules.scorers.serve_app import build_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "starlette", "serve", "Serving a scorer") from error
    return build_app(scorer, name, token, options or ServeOptions())


def serve(
    scorer: Scorer,
    *,
    name: str = "scorer",
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    options: ServeOptions | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a scorer until the process is told to stop (SIGINT, SIGTERM).

    Requests under way are finished then, no new ones taken.

    Args:
        scorer: See `create_app`.
        name: See `create_app`.
        host: The address to listen on; 127.0.0.1 is reachable from this machine only.
        port: The port; 0 takes a free one.
        token: See `create_app`.
        options: Batching and limits.
        on_ready: Called with the server's address once connections are taken.

    Raises:
        ConfigurationError: The address cannot be listened on, or the token cannot be used.
        MissingExtraError: Starlette or uvicorn is not installed.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise MissingExtraError("uvicorn", "serve", "Serving a scorer") from error
    options = options or ServeOptions()
    app = create_app(scorer, name=name, token=token, options=options)
    listener = _listen(host, port)
    with listener:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=options.shutdown_seconds,
        )
        if on_ready is not None:
            shown = f"[{host}]" if ":" in host else host
            on_ready(f"http://{shown}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"Cannot listen on {host!r}, port {port}: {error}.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(
            f"Cannot listen on {host}, port {port}: {error}. Is another server there? Give "
            "another port, or 0 for a free one."
        ) from error
    return listener
