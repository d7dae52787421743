"""Headers checked where they are given: a bad one would look like a failed connection later."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tpo_modules.errors import ConfigurationError

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def checked_token(token: str) -> str:
    """Return a bearer token without the white space around it, such as a file's last line break.

    Raises:
        ConfigurationError: Nothing is left of it, or no header can carry it.
    """
    bare = _sendable("the token", token)
    if not bare:
        raise ConfigurationError(
            "Expected a token, got an empty one (from a variable or file without it?). "
            "Leave the option out to go without a token."
        )
    return bare


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers without the white space around their values.

    Raises:
        ConfigurationError: A name is no header's, or a value cannot be sent.
    """
    for name in headers:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"Expected a header's name, such as 'x-api-key', got {name!r}."
            )
    return {name: _sendable(f"the header {name!r}", value) for name, value in headers.items()}


def _sendable(what: str, value: str) -> str:
    bare = value.strip()
    if not (bare.isascii() and bare.isprintable()):  # not shown: it may be a secret
        raise ConfigurationError(
            f"Expected {what} to be one line of ASCII characters, got others among the "
            f"{len(bare)} given. Is it read from the right file or variable?"
        )
    return bare
