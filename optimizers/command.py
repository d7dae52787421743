"""The command ``tpo`` with ``tpo compile``, which the test-time package cannot import."""

from __future__ import annotations

from tpo_modules import cli

cli.COMMANDS["compile"] = "optimizers.compile_command:compile_step"


def main() -> None:
    """Run the command line: see `tpo_modules.cli.main`."""
    cli.main()
