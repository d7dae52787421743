"""The arguments of `ServerScorer`, checked where they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tpo_modules.errors import ConfigurationError
from tpo_modules.scorers.client_template import ClientTemplate
from tpo_modules.scorers.http_headers import checked_headers, checked_token
from tpo_modules.scorers.wire_shapes import WIRES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_options(api: str, timeout: float, batch_size: int, max_concurrency: int) -> None:
    """Check the api's name and the numbers.

    Raises:
        ConfigurationError: There is no such api, or a number is not positive.
    """
    if api not in WIRES:
        raise ConfigurationError(f"Expected api to be one of {', '.join(WIRES)}; got {api!r}.")
    if timeout <= 0:
        raise ConfigurationError(f"Expected timeout to be positive, got {timeout}.")
    for name, value in [("batch_size", batch_size), ("max_concurrency", max_concurrency)]:
        if value < 1:
            raise ConfigurationError(f"Expected {name} of at least 1, got {value}.")


def client_template(
    api: str,
    tokenizer: str | PreTrainedTokenizerBase | None,
    chat_template: str | None,
    max_length: int | None,
) -> ClientTemplate | None:
    """Make what applies the chat template on this side; None where the server does.

    Raises:
        ConfigurationError: The api needs a tokenizer, or an option is given that it cannot heed.
    """
    use = WIRES[api].template
    if tokenizer is None and use == "required":
        raise ConfigurationError(
            f"{api} takes text to which the chat template is already applied: give tokenizer=, the "
            "name or folder of the reward model that the server runs."
        )
    if tokenizer is not None and use != "unused":
        return ClientTemplate(tokenizer, chat_template=chat_template, max_length=max_length)
    given = {"tokenizer": tokenizer, "chat_template": chat_template, "max_length": max_length}
    unheeded = ", ".join(f"{name}=" for name, value in given.items() if value is not None)
    if unheeded:
        needs = "another api" if use == "unused" else "tokenizer="
        raise ConfigurationError(
            f"With {api}, {unheeded} would not be heeded: expected {needs} with it. Leave it out "
            "where the server itself applies the chat template and cuts."
        )
    return None


def endpoint(url: str, path: str) -> str:
    """Give the endpoint's URL for a server's address, with or without the endpoint in it.

    Raises:
        ConfigurationError: It is no HTTP URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(
            f"Expected the server's address, such as 'http://localhost:8000'; got {url!r}."
        )
    base = url.rstrip("/")
    return base if base.endswith(path) else base + path


def request_headers(token: str | None, more: Mapping[str, str] | None) -> dict[str, str]:
    """Put the headers of each request together.

    Raises:
        ConfigurationError: The token is empty, or something cannot be sent as a header.
    """
    own = {} if token is None else {"authorization": f"Bearer {checked_token(token)}"}
    return {**own, **checked_headers(more or {})}
