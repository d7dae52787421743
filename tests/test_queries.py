"""Query files: what is read, and what is refused with the line."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tpo_modules.errors import DataFileError
from tpo_modules.runs.queries import QueryRow, parse_queries, read_queries


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "queries.jsonl"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_a_list_and_lines_give_the_same_rows(tmp_path: Path) -> None:
    values: list[Any] = ["Why?", {"id": "b", "prompt": "How?"}, {"inputs": {"x": "1", "y": "2"}}]
    rows = [
        QueryRow("0", {"query": "Why?"}),
        QueryRow("b", {"query": "How?"}),
        QueryRow("2", {"x": "1", "y": "2"}),
    ]
    lines = "\r\n\n".join(json.dumps(value) for value in values)
    assert read_queries(written(tmp_path, lines)) == rows
    assert read_queries(written(tmp_path, "\n\n" + json.dumps(values, indent=1))) == rows
    assert read_queries(written(tmp_path, b"\xef\xbb\xbf" + lines.encode())) == rows
    assert parse_queries(lines, "standard input", limit=2) == rows[:2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one query"),
        ("\n \n", "at least one query"),
        ("[]", "at least one query"),
        ('{"id": 3, "query": "x"}', "line 1: expected the id to be a string, got 3"),
        ('{"id": null, "query": "x"}', "expected the id to be a string, got None"),
        ('"a"\n\n{"id": "0", "query": "x"}', "line 3: the id '0' was used at line 1 already"),
        ('["a", {"id": "0", "query": "x"}]', "row 2: the id '0' was used at row 1 already"),
        ('"a"\n{"query": ', "line 2: expected a JSON list of queries, or one JSON value per line"),
        ('\n["a",\n"b"\n', "line 4: not JSON"),
        ('{"qurey": "x"}', "did you mean 'query' by 'qurey'"),
        ('{"query": "  "}', "non-empty text"),
        ("7", "expected a string or an object, got int"),
        (b"\xff\xfe", "cannot read"),
    ],
)
def test_bad_files_are_refused_by_what_is_wrong(
    text: str | bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataFileError) as caught:
        read_queries(written(tmp_path, text))
    assert said in str(caught.value)


def test_half_a_character_is_read_as_its_replacement() -> None:
    text = '"half \\ud83d"\n{"id": "a\\udc4d", "inputs": {"x": ["\\ud83d\\udc4d", "\\ud83d"]}}'
    assert parse_queries(text, "text") == [
        QueryRow("0", {"query": "half \ufffd"}),
        QueryRow("a\ufffd", {"x": ["\U0001f44d", "\ufffd"]}),
    ]


def test_a_file_of_50_megabytes_is_read_line_by_line(tmp_path: Path) -> None:
    line = json.dumps({"id": "%06d", "query": "w" * 5000}) + "\n"
    with (tmp_path / "large.jsonl").open("w") as file:
        file.writelines(line % i for i in range(10_000))
    start = time.process_time()
    assert len(read_queries(tmp_path / "large.jsonl")) == 10_000
    assert time.process_time() - start < 5
    tracemalloc.start()
    try:
        assert len(read_queries(tmp_path / "large.jsonl", limit=10)) == 10
        assert tracemalloc.get_traced_memory()[1] < 2e6
        tracemalloc.reset_peak()
        rows = read_queries(tmp_path / "large.jsonl", limit=2_000)
        assert tracemalloc.get_traced_memory()[1] < 1.3 * 5000 * len(rows)
    finally:
        tracemalloc.stop()
