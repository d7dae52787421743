"""The commands of ``tpo``, each imported when it is called: most need DSPy, some torch, and ``--help`` neither."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS: dict[str, str] = {
    "run": "tpo_modules.cli.run:run",
    "demo": "tpo_modules.cli.demo:demo",
    "compare": "tpo_modules.cli.compare:compare_command",
    "experiment": "tpo_modules.cli.experiment:experiment_command",
    "eval": "tpo_modules.cli.eval:evaluate",
    "score": "tpo_modules.cli.score:score",
    "report": "tpo_modules.cli.report:report",
    "import-reference": "tpo_modules.cli.reference:import_reference",
    "export-reference": "tpo_modules.cli.reference:export_reference",
    "serve-scorer": "tpo_modules.cli.serve:serve_scorer",
}
"""Every command by its name, as ``module:function``; `optimizers` adds its own."""


class LazyCommands(TyperGroup):
    """A group that imports a command when it is called, and lists all by what their sources say of them."""

    def __init__(self, **options: Any) -> None:
        """Prepare a placeholder for each of `COMMANDS`, from which they are listed and misspellings mended."""
        super().__init__(**options)
        self.commands = {
            name: _command(name, _nothing, help=first_line(COMMANDS[name])) for name in COMMANDS
        }
        self._listing = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command, unless the commands are only being listed."""
        if self._listing or cmd_name not in self.commands:
            return self.commands.get(cmd_name)
        module, _, function = COMMANDS[cmd_name].partition(":")
        command = _command(cmd_name, getattr(importlib.import_module(module), function))
        quieten_dspy()
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help without importing a command."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def quieten_dspy() -> None:
    """Keep DSPy's warnings out of the progress; to be called after DSPy's import, which sets its own level."""
    logging.getLogger("dspy").setLevel(logging.ERROR)


def first_line(spec: str) -> str:
    """Read the first paragraph of a function's docstring from its module's source."""
    module, _, function = spec.partition(":")
    found = importlib.util.find_spec(module)
    source = Path(found.origin).read_text(encoding="utf-8") if found and found.origin else ""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n\n")[0]
    return ""


def _command(name: str, function: Callable[..., Any], **options: Any) -> Any:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, **options)(function)
    return typer.main.get_command(app)


def _nothing() -> None:
    """Stand in for a command that is not imported."""
