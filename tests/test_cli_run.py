"""``tpo run``: its help, its plan, and its options from a file, with the nearest name where one is unknown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import dspy
import pytest
import typer
from typer.testing import CliRunner, Result

from optimizers.command import cli as command_line
from tests.perf.fake_server import start_server
from tpo_modules import TPOModule
from tpo_modules.cli import app
from tpo_modules.cli.options import RunOptions, make_critic
from tpo_modules.errors import ConfigurationError
from tpo_modules.runs import read_queries, run_queries
from tpo_modules.runs.saved_run import SavedRun
from tpo_modules.testing import ScriptedLM


def length(query: str, response: str) -> float:
    return len(response)


def run(folder: Path, config: Any, *more: str) -> Result:
    (folder / "reward.py").write_text("def reward(query, response):\n    return 1.0\n")
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    command = ["run", "Why?", "--reward", f"python:{folder / 'reward.py'}:reward", "--dry-run"]
    return CliRunner().invoke(app, [*command, "--config", str(folder / "config.json"), *more])


def test_options_come_from_the_file_and_the_command_line_goes_before(tmp_path: Path) -> None:
    config = {"width": 3, "depth": 4, "max_tokens": 10, "critique-max-tokens": 10}
    assert "tpo D4-N3" in run(tmp_path, config).output
    assert "tpo D1-N3" in run(tmp_path, config, "--depth", "1").output


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"widht": 3}, "did you mean 'width' by 'widht'?"),
        ({"budget_token": 3}, "did you mean 'budget-tokens' by 'budget-token'?"),
        ({"zzz": 3}, "got 'zzz'; there are "),
        ([1], "expected .* to hold an object"),
        ("{", "cannot read"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest_name(
    config: Any, said: str, tmp_path: Path
) -> None:
    error = run(tmp_path, config).exception
    assert isinstance(error, ConfigurationError)
    with pytest.raises(ConfigurationError, match=said):
        raise error


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_help_shows_every_default(name: str) -> None:
    """Rich takes what stands in brackets for markup, and leaves it out unless it is escaped."""
    shown = CliRunner().invoke(command_line.app, [name, "--help"], env={"COLUMNS": "999"}).output
    group: Any = typer.main.get_command(command_line.app)
    parameters = group.get_command(click.Context(group), name).params
    helps = [str(getattr(parameter, "help", "")) for parameter in parameters]
    defaults = [text.partition("[default: ")[2] for text in helps if "[default: " in text]
    assert all(f"[default: {default}" in shown for default in defaults)
    assert all("\\[" not in line for line in shown.splitlines())


def test_the_plan_leaves_out_what_the_folder_has(tmp_path: Path) -> None:
    (tmp_path / "queries.json").write_text('["Why?", "How?", "When?"]')
    queries = read_queries(tmp_path / "queries.json")
    module = TPOModule(scorer=length, width=2, depth=1)
    with dspy.context(lm=ScriptedLM(lambda prompt: "Because.")):
        run_queries(module, queries[:2], out=tmp_path / "run")
    command = ["run", "--data", str(tmp_path / "queries.json"), "--width", "2", "--depth", "1"]
    said = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run"), "--dry-run"]).output
    assert "1 query" in said
    assert f"besides 2 queries whose results are in {tmp_path / 'run'} already" in said
    assert "3 queries" in CliRunner().invoke(app, [*command, "--dry-run"]).output


def test_the_run_of_less_depth_is_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.json").write_text('["Why?", "How?"]')
    Path("reward.py").write_text("def length(query, response):\n    return len(response)\n")

    def make_lm(model: str, options: RunOptions) -> ScriptedLM:
        return ScriptedLM(lambda prompt: "Because.")

    monkeypatch.setattr("tpo_modules.cli.run.make_lm", make_lm)
    command = ["run", "--data", "q.json", "--reward", "python:reward.py:length", "--width", "2"]

    def answer(depth: int, *more: str) -> Result:
        return CliRunner().invoke(app, [*command, "--depth", str(depth), *more])

    missing = answer(2, "--extend-depth").exception
    assert isinstance(missing, ConfigurationError)
    assert "expected --out FOLDER, the run to extend" in str(missing)
    assert not Path("runs").exists()
    assert answer(1).exit_code == 0
    assert "besides 2 queries" in answer(2, "--extend-depth", "--dry-run").output
    done = answer(2, "--extend-depth")
    assert done.exit_code == 0, (done.output, done.exception)
    assert [path.name for path in Path("runs").iterdir()] == ["q-tpo-D1-N2"]
    traces = dict(SavedRun("runs/q-tpo-D1-N2").traces())
    assert [max(call.step for call in trace.calls) for trace in traces.values()] == [2, 2]
    assert answer(2).exit_code == 0  # a run of its own
    several = answer(3, "--extend-depth").exception
    assert all(f"q-tpo-D{depth}-N2" in str(several) for depth in (1, 2))


def test_ray_wants_many_queries_and_a_reachable_lm(tmp_path: Path) -> None:
    one = CliRunner().invoke(app, ["run", "Why?", "--ray", "auto"]).exception
    (tmp_path / "queries.json").write_text('["Why?"]')
    many = ["run", "--data", str(tmp_path / "queries.json"), "--ray", "auto"]
    embedded = CliRunner().invoke(app, many).exception
    assert "expected --data with --ray" in str(one)
    assert "an LM that every machine reaches, got the embedded one" in str(embedded)


@pytest.mark.server
def test_a_failure_of_every_sample_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("def reward(query, response):\n    return len(response)\n")
    nowhere = ["run", "Why?", "--lm", "openai/none", "--api-base", "http://127.0.0.1:9/v1"]
    reward = ["--reward", f"python:{tmp_path / 'reward.py'}:reward"]
    said = CliRunner().invoke(app, [*nowhere, *reward]).stderr
    assert said.count("step 0  policy   LMTransportError: [openai/none] cannot connect") == 1


def test_a_misspelt_reward_is_no_hub_id() -> None:
    error = CliRunner().invoke(app, ["run", "Why?", "--reward", "bundeled"]).exception
    assert "there is no 'bundeled'; did you mean 'bundled'" in str(error)


@pytest.mark.server
def test_the_critic_may_live_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("def reward(query, response):\n    return len(response)\n")
    one = ["run", "Why?", "--depth", "1", "--reward", f"python:{tmp_path / 'reward.py'}:reward"]
    critic = ["--critic-lm", "openai/critic", "--critic-api-base"]
    with start_server() as policy, start_server() as other:
        command = [*one, "--lm", "openai/policy", "--api-base", policy.url, *critic, other.url]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert policy.stats()["served"] == 2  # the samples and the updates
        assert other.stats()["served"] == 2  # loss and gradient


def test_the_policys_key_stays_with_the_policy() -> None:
    options = RunOptions(
        lm="openai/policy",
        api_base="http://policy/v1",
        api_key="secret",
        critic_lm="openai/critic",
    )
    elsewhere = replace(options, critic_api_base="http://critic/v1")
    assert make_critic(options).link.headers["authorization"] == "Bearer secret"
    assert "secret" not in str(make_critic(elsewhere).link.headers)
    with pytest.raises(ConfigurationError, match="--critic-lm with --critic-api-base, got none"):
        make_critic(replace(elsewhere, critic_lm=None))


def test_commands_are_listed_by_what_they_say_of_themselves() -> None:
    """The list is read from sources; the command itself is imported when it is called."""
    shown = CliRunner().invoke(command_line.app, ["--help"], env={"COLUMNS": "200"}).output
    group: Any = typer.main.get_command(command_line.app)
    for name in command_line.COMMANDS:
        said = group.get_command(click.Context(group), name).help.partition("\n\n")[0]
        assert " ".join(said.split()) in " ".join(shown.replace("│", "").split()), name
    wrong = CliRunner().invoke(command_line.app, ["repot"])
    assert wrong.exit_code == 2
    assert "Did you mean 'report'" in wrong.output


QUIET = """
import logging, sys
from optimizers.command import main
sys.argv = ["tpo", *sys.argv[1:]]
try:
    main()
except SystemExit:
    print(logging.getLogger("dspy").level == logging.ERROR)
"""


@pytest.mark.parametrize("words", [["run", "Why?", "--dry-run"], ["score", "FILE"]])
def test_dspys_warnings_stay_out_of_the_progress(words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"query": "Why?", "response": "Because."}\n')
    words = [str(file) if word == "FILE" else word for word in words]
    with start_server() as server:
        judge = ["--reward", "judge:openai/judge"]
        where = ["--api-base", server.url] if words[0] == "run" else []
        done = subprocess.run(
            [sys.executable, "-c", QUIET, *words, *judge, *where],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OPENAI_API_BASE": server.url, "OPENAI_API_KEY": "none"},
        )
    assert done.stdout.endswith("True\n"), done.stderr
