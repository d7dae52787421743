"""What the README and the docs say works: Python examples run, command lines parse."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import dspy
import pytest
import typer

import tpo_modules
from optimizers.command import cli as command_line
from tpo_modules import embedded_lm
from tpo_modules.testing import ScriptedLM

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def length(query: str, response: str) -> float:
    return float(len(response))


@pytest.mark.local_model
def test_the_ten_lines_run_on_the_embedded_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [block for block in blocks(README, "python") if "embedded_lm()" in block]
    short = embedded_lm(max_tokens=16)
    used: list[Any] = []
    monkeypatch.setattr(dspy, "configure", lambda *, lm: used.append(lm))  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(tpo_modules, "embedded_lm", lambda: short)
    found: dict[str, Any] = {}
    with dspy.context(lm=short):
        exec(code, found)
    assert used == [short]
    best = found["best"]
    assert [len(rewards) for rewards in best.trace.rewards_by_step] == [5, 5, 5]
    assert str(best.reward) in capsys.readouterr().out


@pytest.mark.parametrize(
    "code", [block for block in blocks(README, "python") if "embedded_lm()" not in block]
)
def test_the_other_examples_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {
        "dspy": dspy,
        "TPOModule": tpo_modules.TPOModule,
        "scorer": length,
        "retrieve": "found for {}".format,
    }
    exec(code, names)
    if "Assistant" in names:
        with dspy.context(
            lm=ScriptedLM(lambda prompt: "[[ ## search_query ## ]]\nx\n" + prompt[:9])
        ):
            answered = names["Assistant"](length)(question="Why?")
        assert answered.reward > 0
    if "Blunt" in names:
        assert "{chosen_reward}" in capsys.readouterr().out


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_examples_import_what_is_there(page: Path) -> None:
    ours = r"(?:tpo_modules|signatures|optimizers)"
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and re.match(ours, node.module or ""):
                exec(ast.unparse(node), {})


def command_lines() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "sh"):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["tpo"] and "..." not in words:
                    yield page.name, words


@pytest.mark.parametrize(("page", "words"), list(command_lines()))
def test_command_lines_parse(page: str, words: list[str]) -> None:
    group: Any = typer.main.get_command(command_line.app)
    words = words[: next((i for i, w in enumerate(words) if w in ("|", ">", "&&", "&")), None)]
    command: click.Command | None = group.get_command(click.Context(group), words[1])
    assert command is not None, f"{page}: there is no command {words[1]!r}"
    command.make_context(words[1], list(words[2:]))


def links() -> Iterator[tuple[str, Path]]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                yield f"{page.name}: {target}", page.parent / target


@pytest.mark.parametrize(("name", "target"), list(links()))
def test_links_resolve(name: str, target: Path) -> None:
    assert target.exists(), name
