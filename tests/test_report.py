"""Reports: what their figures say, what their pages hold, and what they refuse."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from report_runs import HOSTILE, Prose, make_run, queries
from typer.testing import CliRunner

from tpo_modules.cli import app
from tpo_modules.errors import ConfigurationError, RunFolderError
from tpo_modules.report import align, figures_of, open_runs, report_html
from tpo_modules.report.plots import gain_distribution
from tpo_modules.report.words import diff_words
from tpo_modules.runs.queries import QueryRow
from tpo_modules.runs.saved_run import SavedRun

TABLE = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 0.5, "six": 0.25}


def table(query: str, response: str) -> float:
    return TABLE[response]


def by_query(*scripts: list[str]) -> Callable[[str], str]:
    """One list of replies per query; queries run side by side, so each has its own."""
    replies = [iter(script) for script in scripts]
    return lambda prompt: next(replies[int(re.findall(r"(\d+) loaves", prompt)[0]) - 1])


@pytest.fixture(scope="module")
def tpo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two queries, N = 2, D = 1: the first gains 1, the second nothing."""
    script = by_query(
        ["one", "two", "loss a", "gradient a", "three", "one"],
        ["four", "five", "loss b", "gradient b", "six", "six"],
    )
    folder = tmp_path_factory.mktemp("runs") / "tpo"
    return make_run(folder, count=2, width=2, depth=1, script=script, scorer=table)


@pytest.fixture(scope="module")
def bon_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same queries, best of two: 2 and 3."""
    folder = tmp_path_factory.mktemp("runs") / "bon"
    script = by_query(["one", "two"], ["three", "one"])
    return make_run(folder, count=2, method="bon", width=2, script=script, scorer=table)


def page(*folders: Path, **options: Any) -> str:
    return report_html(align(open_runs(folders), **options))


def block(text: str, name: str) -> str:
    found = re.search(rf'<script type="[a-z/]+" id="{name}">([^<]*)</script>', text)
    assert found, f"no block {name}, or one with markup in it"
    return found[1]


def details(text: str, place: int) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(block(text, f"d{place}"))))


def test_figures_of_one_run(tpo_run: Path) -> None:
    (figures,) = figures_of(align(open_runs([tpo_run])))
    assert (figures.name, figures.label) == ("tpo", "tpo D1-N2")
    assert (figures.queries, figures.failed, figures.troubled) == (2, 0, 0)
    assert figures.reward is not None
    assert figures.reward.value == 3.5
    assert figures.gains == (1.0, 0.0)
    assert (figures.unimproved, figures.copied) == (0.5, 0.0)
    assert [e and e.value for e in figures.samples_by_step] == [1.875, 1.125]
    assert figures.best_by_step == (3.0, 3.5)
    assert figures.requests == 12
    assert figures.paired is None


def test_figures_against_a_baseline(tpo_run: Path, bon_run: Path) -> None:
    aligned = align(open_runs([tpo_run, bon_run]), baseline="bon")
    bon, tpo = figures_of(aligned)
    assert [run.name for run in aligned.runs] == ["bon", "tpo"]
    assert bon.paired is None
    assert bon.gain is None, "best-of-N has no updates to gain by"
    assert bon.unimproved is None
    assert tpo.paired is not None
    assert tpo.paired.gains == (1.0, 1.0)
    assert tpo.paired.win_rate.value == 1.0


def test_a_page_holds_each_querys_trace(tpo_run: Path) -> None:
    text = page(tpo_run)
    (first,) = details(text, 0)
    assert [c["response"] for c in first["candidates"]] == ["one", "two", "three", "one"]
    assert first["steps"] == [
        {"step": 1, "chosen": 1, "rejected": 0, "chosen_diff": None, "rejected_diff": None}
    ]
    assert first["returned"] == {"index": 2, "diff": [["-", "two"], ["+", "three"]]}
    assert {c["name"]: c.get("texts") for c in first["calls"]} == {
        "policy": None,
        "loss": ["loss a"],
        "gradient": ["gradient a"],
        "update": None,
    }
    asked = [m["text"] for c in first["calls"] for m in c["messages"] if m["role"] == "user"]
    assert asked[0] == "How do I keep 1 loaves of bread fresh?"
    index = json.loads(block(text, "index"))
    assert [query["runs"][0]["gain"] for query in index["queries"]] == [1.0, 0.0]


def test_a_page_names_no_address(tpo_run: Path, bon_run: Path) -> None:
    text = page(tpo_run, bon_run)
    loaded = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)""", text)
    assert {a or b for a, b in loaded} <= {"data:,"} | {
        a for a, _ in loaded if a.startswith("#")
    } | {b for _, b in loaded if b.startswith("#")}
    assert "default-src 'none'" in text
    assert text.count("<svg") == 3


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(4)>"
    rows = [QueryRow("</script><b>", {"query": f"{HOSTILE} $x$?"})]
    run = make_run(tmp_path / name, rows=rows, script=Prose(hostile=True))
    text = report_html(align(open_runs([run])), title=HOSTILE)
    assert "alert(1)</script>" not in text
    assert "<img" not in text
    assert html.escape(name) in text
    assert json.loads(block(text, "index"))["queries"][0]["query"] == f"{HOSTILE} $x$?"
    assert HOSTILE in details(text, 0)[0]["response"]
    assert len(re.findall(r"<script\b", text)) == 3  # index, details, ours


def test_failures_are_shown(tmp_path: Path) -> None:
    def script(prompt: str) -> str | Exception:
        return RuntimeError("boom") if "2 loaves" in prompt else f"{prompt[:30]} {len(prompt)}"

    run = make_run(tmp_path / "run", count=3, script=script)
    aligned = align(open_runs([run]))
    (figures,) = figures_of(aligned)
    text = report_html(aligned)
    assert (figures.queries, figures.failed) == (3, 1)
    assert "boom" in details(text, 1)[0]["message"]
    assert json.loads(block(text, "index"))["queries"][1]["runs"] == [{"failed": True}]


def test_a_run_of_failures_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", count=1, script=lambda _: RuntimeError("boom"))
    text = page(run, make_run(tmp_path / "other", count=1))
    assert "no query that both answered" in text


def test_a_comparisons_folder_stands_for_its_methods(
    tmp_path: Path, tpo_run: Path, bon_run: Path
) -> None:
    folder = tmp_path / "comparison"
    for run in (tpo_run, bon_run):
        shutil.copytree(run, folder / "methods" / run.name)
    shutil.copytree(bon_run, folder / "first")
    (folder / "compare.json").write_text("{}")
    assert [run.name for run in open_runs([folder])] == ["bon", "tpo"]
    methods = {name: {"run": f"methods/{name}"} for name in ("bon", "tpo")}
    (folder / "compare.json").write_text(json.dumps({"methods": methods, "baseline": "tpo"}))
    assert [run.name for run in open_runs([folder])] == ["tpo", "bon"]


def test_equal_names_become_paths(tmp_path: Path, tpo_run: Path) -> None:
    other = shutil.copytree(tpo_run, tmp_path / "tpo")
    assert [run.name for run in open_runs([tpo_run, other])] == [str(tpo_run), str(other)]


def test_different_queries_are_refused_or_left_out(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", rows=queries(12))
    two = make_run(tmp_path / "two", rows=[*queries(2), QueryRow("x", {"query": "Why?"})])
    with pytest.raises(
        ConfigurationError, match=r"one lacks 1 \(x\); two lacks 10 \(2, 3, .* and 2 more\)"
    ):
        align(open_runs([one, two]))
    aligned = align(open_runs([one, two]), common=True)
    assert aligned.ids == ("0", "1")
    assert aligned.left_out == (*map(str, range(2, 12)), "x")
    assert "11 queries are left out" in report_html(aligned)


def test_one_id_for_two_queries_is_no_match(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", rows=queries(2))
    two = make_run(tmp_path / "two", rows=[queries(2)[0], QueryRow("1", {"query": "Why?"})])
    with pytest.raises(ConfigurationError, match=r"these ids stand for different queries: 1 \(1\)"):
        align(open_runs([one, two]))
    assert align(open_runs([one, two]), common=True).ids == ("0",)
    other = make_run(tmp_path / "other", rows=[QueryRow("9", {"query": "Why?"})])
    with pytest.raises(ConfigurationError, match="queries in common"):
        align(open_runs([one, other]), common=True)


def test_folders_that_hold_no_results(tmp_path: Path, tpo_run: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no config\.json in it"):
        open_runs([tmp_path])
    with pytest.raises(RunFolderError, match=r"no config\.json in it"):
        open_runs([tmp_path / "missing"])
    shutil.copy(tpo_run / "config.json", tmp_path)
    with pytest.raises(RunFolderError, match="is empty: no query has finished or failed"):
        align(open_runs([tmp_path]))
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(RunFolderError, match="found none"):
        open_runs([tmp_path])
    with pytest.raises(ConfigurationError, match=r"a baseline among \['tpo'\], got 'x'"):
        align(open_runs([tpo_run]), baseline="x")


@pytest.mark.parametrize(("version", "age"), [(0, "an older"), (2, "a newer")])
def test_a_trace_of_another_version(tmp_path: Path, tpo_run: Path, version: int, age: str) -> None:
    folder = shutil.copytree(tpo_run, tmp_path / "run")
    file = folder / "traces.jsonl"
    first, second = map(orjson.loads, file.read_bytes().splitlines())
    second["trace"]["version"] = version
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in (first, second)))
    message = rf"traces\.jsonl, line 2: expected a trace of version 1, got one of version {version}.*{age}"
    with pytest.raises(RunFolderError, match=message):
        page(folder)


def test_a_trace_that_was_extended_is_shown_once_and_a_missing_one_is_said(
    tmp_path: Path, tpo_run: Path
) -> None:
    folder = shutil.copytree(tpo_run, tmp_path / "run")
    file = folder / "traces.jsonl"
    first = orjson.loads(file.read_bytes().splitlines()[0])
    first["trace"]["stop_reason"] = "later"
    file.write_bytes(file.read_bytes() + orjson.dumps(first) + b"\n")
    run = SavedRun(folder)
    trace = run.trace("0")
    assert trace is not None
    assert trace.stop_reason == "later"
    assert run.trace("unknown") is None
    file.unlink()
    (first,) = details(page(folder), 0)
    assert "candidates" not in first
    assert first["response"] == "three"


def test_diffs_are_exact_and_whole() -> None:
    old = "The crust dries out. Keep it\n in a box, for 3 days!"
    new = "The crust stays crisp. Keep it\n in a linen bag, for 3 days! Or freeze it."
    pieces = diff_words(old, new)
    assert "".join(text for kind, text in pieces if kind != "+") == old
    assert "".join(text for kind, text in pieces if kind != "-") == new
    assert pieces[:4] == [
        ("=", "The crust "),
        ("-", "dries out"),
        ("+", "stays crisp"),
        ("=", ". Keep it\n in a "),
    ]
    assert diff_words("same", "same") == [("=", "same")]
    assert diff_words("", "") == []
    assert diff_words("", "new") == [("+", "new")]
    assert diff_words("a b c", "a c") == [("=", "a "), ("-", "b "), ("=", "c")]


def test_long_texts_are_compared_in_time() -> None:
    words = [f"w{i % 700}" for i in range(8000)]
    old, new = " ".join(words), " ".join(words[3000:] + words[:2000])
    pieces = diff_words(old, new)
    assert "".join(text for kind, text in pieces if kind != "-") == new


def test_the_command_writes_a_file(tmp_path: Path, tpo_run: Path, bon_run: Path) -> None:
    out = tmp_path / "new" / "out.html"
    done = CliRunner().invoke(
        app, ["report", str(tpo_run), str(bon_run), "--out", str(out), "--title", "A < B"]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    assert "<h1>A &lt; B</h1>" in out.read_text()
    done = CliRunner().invoke(app, ["report", str(tpo_run)])
    assert (tpo_run / "report.html").is_file()
    done = CliRunner().invoke(app, ["report", str(tpo_run), "--out", str(tpo_run)])
    assert isinstance(done.exception, ConfigurationError)


@pytest.mark.parametrize("values", [[0.4 - 0.1, 0.5 - 0.2], [-3.0, -3.0], [0.0], [1.0, 1e-12]])
def test_gains_that_differ_by_rounding_are_drawn(values: list[float]) -> None:
    assert gain_distribution([(0, values)], "gain").count("var(--run-0)") > 1


def test_matplotlib_is_loaded_when_it_is_needed() -> None:
    code = "import sys, tpo_modules.report, tpo_modules.cli; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
