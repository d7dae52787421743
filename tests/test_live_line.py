"""The line of progress, on a terminal and without one."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from tpo_modules.cli.live_line import LiveLine


def test_without_a_terminal_a_line_comes_now_and_then() -> None:
    said = StringIO()
    with LiveLine(Console(file=said, width=20)) as line:
        for count in range(3):
            line.show(f"{count} of a great many [bold]queries[/bold]")
        line.show("round done", keep=True)
    assert said.getvalue() == "0 of a great many [bold]queries[/bold]\nround done\n"


def test_on_a_terminal_it_is_rewritten_and_only_what_is_kept_stays() -> None:
    said = StringIO()
    with LiveLine(Console(file=said, force_terminal=True, width=60)) as line:
        line.show("1 of 2 queries")
        line.show("round done", keep=True)
        line.show("2 of 2 queries")
    shown = said.getvalue()
    kept = [text.strip() for text in shown.split("\x1b[2K") if "round done" in text]
    assert len(kept) == 1
    assert shown.rstrip().endswith("\x1b[2K")  # the line itself is wiped at the end
