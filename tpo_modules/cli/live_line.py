"""One line of progress: live on a terminal, now and then where there is none."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

_LOG_EVERY = 10.0  # seconds between lines that stay


class LiveLine:
    """A line that is rewritten in place while the block it is opened for lasts.

    Outside such a block, and where there is no terminal, a line is printed every ten seconds instead.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._logged = float("-inf")

    def __enter__(self) -> LiveLine:
        """Begin the live line, on a terminal."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Take the live line away."""
        if self._live:
            self._live.stop()
            self._live = None

    def show(self, text: str, *, keep: bool = False) -> None:
        """Show how far the work is; ``keep`` prints a line that stays, whatever the time."""
        if self._live and not keep:
            self._live.update(Text(text))
        elif keep or time.monotonic() - self._logged >= _LOG_EVERY:
            self._logged = time.monotonic()
            self._console.print(Text(text), soft_wrap=True)
