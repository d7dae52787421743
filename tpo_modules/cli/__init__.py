"""The command ``tpo``: parsing and printing, no more."""

from __future__ import annotations

import logging
import sys

import typer
from rich.console import Console
from rich.text import Text

from tpo_modules import TPOError, __version__
from tpo_modules.cli.commands import COMMANDS, LazyCommands

__all__ = ["COMMANDS", "app", "main"]

app = typer.Typer(
    cls=LazyCommands,
    help="Test-time preference optimization: steer a frozen LM to a reward model while it answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def version(
    show: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    """Test-time preference optimization: steer a frozen LM to a reward model while it answers."""
    if show:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of ours is one clear message and exit status 2."""
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    try:
        app()
    except TPOError as error:
        message = Text(f"{type(error).__name__}: {error}", style="red")
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)
