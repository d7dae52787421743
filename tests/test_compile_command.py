"""``tpo compile``: from a folder of candidates and a file of queries to a prompt that ``tpo run`` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from optimizers import read_step
from optimizers.command import main
from optimizers.race_result import RaceResult
from tests.scripted_tpo import BETTER, answering, last_number, proposing
from tpo_modules import TPOModule, cli
from tpo_modules.errors import BudgetError, ConfigurationError, DataFileError
from tpo_modules.templates import load_program

REWARD = "def last(query: str, response: str) -> float:\n    return float(response.split()[-1])\n"


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, with an LM that earns more where a prompt speaks of sources."""
    monkeypatch.chdir(tmp_path)

    def make(model: str, options: Any) -> Any:
        return proposing() if model == "writer" else answering()

    monkeypatch.setattr("optimizers.compile_run.make_lm", make)
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "q.json").write_text(json.dumps([f"Why {i}?" for i in range(24)]))
    folder = tmp_path / "wordings"
    folder.mkdir()
    (folder / "loss_sources.txt").write_text(f"Compare both. {BETTER}")
    (folder / "kind.md").write_text("Be kind to both.")
    (folder / "gradient_other.txt").write_text("Advise.")


def tpo(*arguments: str, step: str = "loss") -> Result:
    given = ["compile", step, "--reward", "python:reward.py:last", "--width", "2", *arguments]
    if "--data" not in given:
        given += ["--data", "q.json"]
    return CliRunner().invoke(cli.app, given)


def test_a_race_ends_in_a_prompt_that_tpo_run_takes() -> None:
    done = tpo("--candidates", "wordings", "--limit", "16", "--validate", "4", "--out", "best.json")
    assert done.exit_code == 0, done.output
    assert "left out, as named after other steps: gradient_other.txt" in done.stderr
    assert "Use 'sources': every other candidate is clearly worse." in done.stderr
    assert "on 4 other queries, sources against the default" in done.stderr
    assert read_step("best.json").about["recommended"] == "sources"
    module = TPOModule(scorer=last_number, loss=load_program("best.json", "loss"))
    assert BETTER in module.render("loss")[-1]["content"]
    assert Path("best/candidates/kind/results.jsonl").exists()


def test_json_is_the_result_and_nothing_else() -> None:
    done = tpo("--candidates", "wordings", "--limit", "8", "--json")
    result = RaceResult.model_validate_json(done.stdout)
    assert {standing.name for standing in result.ranking} == {"default", "sources", "kind"}
    assert Path("loss.json").exists()


def test_a_dropped_input_is_warned_of_and_shown() -> None:
    Path("blind.txt").write_text("Praise {chosen_response}.")
    done = tpo("--candidates", "blind.txt", "--limit", "2")
    assert "'blind' for the loss is not shown query, rejected_response" in done.stderr
    assert "Praise {chosen_response}." in done.stderr


def test_python_files_and_saved_steps_are_candidates(tmp_path: Path) -> None:
    assert tpo("--candidates", "wordings", "--limit", "8", "--out", "saved.json").exit_code == 0
    (tmp_path / "mine.py").write_text(
        "from signatures import TextualLoss\n\n\nclass Mine(TextualLoss):\n    '''Say more.'''\n"
    )
    done = tpo("--candidates", "saved.json", "--candidates", "mine.py", "--limit", "2", "--json")
    if done.exit_code:
        raise AssertionError(done.output) from done.exception
    names = {standing.name for standing in RaceResult.model_validate_json(done.stdout).ranking}
    assert names == {"default", "saved", "Mine"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("optimizer", ["gepa", "copro", "simba", "bootstrap", "mipro"])
def test_dspys_optimizers_compile_on_recorded_first_rounds(optimizer: str) -> None:
    done = tpo(
        *("--optimizer", optimizer, "--limit", "4", "--budget-evaluations", "32"),
        *("--proposer-lm", "writer", "--max-in-flight", "1"),
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert read_step("loss.json").about == {"optimizer": optimizer}
    assert len(Path("loss/first/results.jsonl").read_text().splitlines()) == 4


def test_first_rounds_of_other_queries_are_not_compiled_on() -> None:
    for limit, said in (("4", "8 evaluations on 4 queries"), ("2", "4 evaluations on 2 queries")):
        done = tpo("--optimizer", "copro", "--limit", limit, "--budget-evaluations", "1")
        with pytest.raises(BudgetError, match=said):
            raise done.exception or AssertionError(done.output)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gepa_goes_on_with_the_same_job_only() -> None:
    states: list[int] = []
    for credit in ("update", "update", "pool"):
        done = tpo(
            *("--optimizer", "gepa", "--limit", "2", "--budget-evaluations", "8"),
            *("--proposer-lm", "writer", "--max-in-flight", "1", "--credit", credit),
        )
        assert done.exit_code == 0, (done.output, done.exception)
        states.append(len(list(Path("loss").glob("gepa-*/gepa_state.bin"))))
    assert states == [1, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["--candidates", "nowhere"], ConfigurationError, "found no nowhere"),
        ([], ConfigurationError, "expected --candidates"),
        (
            ["--candidates", "none"],
            ConfigurationError,
            "templates for the loss in none.*found none",
        ),
        (["--candidates", "bad/binary.txt"], ConfigurationError, "binary.txt"),
        (["--candidates", "bad/empty.txt"], ConfigurationError, "empty.txt.*empty text"),
        (["--candidates", "bad/asks.txt"], ConfigurationError, "asks.txt.*{weather}"),
        (["--candidates", "bad/table.csv"], ConfigurationError, "table.csv.*csv"),
        (["--candidates", "bad/no.py"], ConfigurationError, "no.py.*no public"),
        (["--candidates", "wordings", "--candidates", "twice"], ConfigurationError, "same prompt"),
        (["--candidates", "wordings", "--candidates", "wordings"], ConfigurationError, "twice"),
        (["--candidates", "wordings", "--data", "no.json"], DataFileError, "no.json"),
        (["--candidates", "wordings", "--data", "none.json"], DataFileError, "at least one query"),
        (["--candidates", "wordings", "--validate", "24"], ConfigurationError, "more queries"),
        (["--candidates", "wordings", "--budget-tokens", "9"], BudgetError, "pays for one round"),
        (["--optimizer", "adam"], ConfigurationError, "'adam'"),
        (["--optimizer", "copro", "--budget-evaluations", "9"], BudgetError, "48 evaluations"),
        (["--optimizer", "gepa", "--candidates", "wordings"], ConfigurationError, "belong to"),
        (["--method", "bon", "--candidates", "wordings"], ConfigurationError, "has no loss"),
        (
            ["--candidates", "wordings", "--out", "best"],
            ConfigurationError,
            "suffix, as in loss.json",
        ),
        (
            ["--candidates", "wordings", "--folder", "records", "--out", "none"],
            ConfigurationError,
            "--out to be a file",
        ),
        (
            ["--candidates", "wordings", "--folder", "a.json", "--out", "x/../a.json"],
            ConfigurationError,
            "with the folder a.json",
        ),
    ],
)
def test_bad_input_is_said(
    arguments: list[str], error: type[Exception], said: str, tmp_path: Path
) -> None:
    for name in ("none", "bad", "twice"):
        (tmp_path / name).mkdir()
    (tmp_path / "none.json").write_text("[]")
    bad = {"empty.txt": "", "asks.txt": "How is the {weather}?", "table.csv": "a", "no.py": "x = 1"}
    for name, text in bad.items():
        (tmp_path / "bad" / name).write_text(text)
    (tmp_path / "bad" / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "twice" / "again.txt").write_text("Be kind to both.")
    done = tpo(*arguments)
    with pytest.raises(error, match=f"(?s){said}"):
        raise done.exception or AssertionError(done.output)
    assert not Path("loss.json").exists()
    assert not Path("best").exists()


def test_an_unknown_step_is_refused() -> None:
    done = tpo("--candidates", "wordings", step="lost")
    with pytest.raises(ConfigurationError, match="got 'lost'"):
        raise done.exception or AssertionError(done.output)


def test_mipro_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", nothing)
    done = tpo("--optimizer", "mipro")
    with pytest.raises(ImportError, match=r"dspy-tpo\[optimizers\]"):
        raise done.exception or AssertionError(done.output)


def test_the_command_has_the_options_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(main)
    said = CliRunner().invoke(cli.app, ["compile", "--help"], env={"COLUMNS": "200"}).output
    for option in ("--critic-lm", "--reward", "--native-n", "--budget-tokens", "--candidates"):
        assert option in said
