"""Options of a scorer's server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tpo_modules.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How requests are batched, and what is refused.

    Attributes:
        max_batch: Responses up to which requests that arrive together are merged.
        max_wait: Seconds that a request may wait for others while the scorer is free.
        workers: Batches scored at once: 1 for a model in this process, more for a judge.
        max_responses: The most responses in one request; more is answered with 413.
        max_body_bytes: The largest body of a request; a larger one is answered with 413.
        max_pending: Responses that may wait in all; beyond them the answer is 429.
        shutdown_seconds: How long requests under way may take to finish when the server is stopped.
    """

    max_batch: int = 64
    max_wait: float = 0.01
    workers: int = 1
    max_responses: int = 256
    max_body_bytes: int = 16 * 2**20
    max_pending: int = 8192
    shutdown_seconds: int = 60

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            least = 0 if one.name == "max_wait" else 1
            if not value >= least:
                raise ConfigurationError(f"Expected {one.name} of at least {least}, got {value}.")
