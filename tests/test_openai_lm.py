"""`OpenAIServerLM` against a server in another process: answers, faults, cache, copies, several servers."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from fake_openai import Choice, fake_openai
from perf.fake_server import FakeServer, start_server

from tpo_modules import PlainTextAdapter, TPOModule
from tpo_modules.errors import ConfigurationError
from tpo_modules.lm import parameters, supports_native_n
from tpo_modules.lms import endpoints as endpoints_module
from tpo_modules.lms.http_client import (
    _sessions,  # pyright: ignore[reportPrivateUsage]
    close_client,
)
from tpo_modules.lms.openai_lm import OpenAIServerLM
from tpo_modules.lms.openai_wire import PARAMETERS

pytestmark = pytest.mark.server

CLOSED = "http://127.0.0.1:9/v1"  # the discard port: nothing listens there

ERRORS: dict[str, type[dspy.LMError]] = {
    "rate_limit": dspy.LMRateLimitError,
    "quota": dspy.LMBillingError,
    "server_error": dspy.LMServerError,
    "unavailable": dspy.LMServerError,
    "gateway_timeout": dspy.LMTimeoutError,
    "auth": dspy.LMAuthError,
    "billing": dspy.LMBillingError,
    "no_model": dspy.LMUnsupportedModelError,
    "bad_request": dspy.LMInvalidRequestError,
    "filtered": dspy.LMInvalidRequestError,
    "context": dspy.ContextWindowExceededError,
    "hang": dspy.LMTimeoutError,
    "reset": dspy.LMTransportError,
    "half_body": dspy.LMTransportError,
    "garbage": dspy.LMServerError,
    "no_choices": dspy.LMServerError,
}
PASSING = ["rate_limit", "unavailable", "hang", "reset", "half_body", "garbage", "no_choices"]


@pytest.fixture(scope="module")
def process() -> Generator[FakeServer]:
    with start_server(record=True) as running:
        yield running


@pytest.fixture
def server(process: FakeServer) -> FakeServer:
    process.reset()
    process.configure(faults={}, retry_after=None, median=0.0, words=40)
    return process


@pytest.fixture
def cache(tmp_path: Path) -> Generator[Path]:
    module: Any = dspy
    before = module.cache
    dspy.configure_cache(disk_cache_dir=str(tmp_path))
    yield tmp_path
    module.cache.disk_cache.close()
    module.cache = before


def lm_for(*servers: FakeServer | str, **kwargs: Any) -> OpenAIServerLM:
    urls = [one if isinstance(one, str) else one.url for one in servers]
    defaults: dict[str, Any] = {"cache": False, "num_retries": 0, "backoff": 0.01, "timeout": 5.0}
    return OpenAIServerLM("openai/fake", api_base=urls, **{**defaults, **kwargs})


def different_letters(query: str, response: str) -> float:
    return float(len(set(response)))


def call(lm: OpenAIServerLM, how: str, prompt: str = "hi", **kwargs: Any) -> list[Any]:
    return lm(prompt, **kwargs) if how == "sync" else asyncio.run(lm.acall(prompt, **kwargs))


both = pytest.mark.parametrize("how", ["sync", "async"])


@both
@pytest.mark.parametrize(("fault", "error"), ERRORS.items())
def test_every_fault_has_its_error(
    server: FakeServer, how: str, fault: str, error: type[dspy.LMError]
) -> None:
    server.configure(script=[fault])
    with pytest.raises(error) as caught:
        call(lm_for(server, timeout=0.3 if fault == "hang" else 5.0), how)
    assert type(caught.value) is error
    assert caught.value.model == "openai/fake"
    assert server.stats()["requests"] == 1


@both
@pytest.mark.parametrize("fault", PASSING)
def test_what_can_pass_is_tried_again(server: FakeServer, how: str, fault: str) -> None:
    server.configure(script=[fault, fault])
    assert len(call(lm_for(server, num_retries=2, timeout=1.5), how)) == 1
    assert server.stats()["requests"] == 3


@both
def test_what_cannot_pass_is_not_tried_again(server: FakeServer, how: str) -> None:
    server.configure(script=["context"])
    with pytest.raises(dspy.ContextWindowExceededError, match="maximum context length is 4096"):
        call(lm_for(server, num_retries=3), how)
    assert server.stats()["requests"] == 1


@both
def test_retry_after_is_waited_for(server: FakeServer, how: str) -> None:
    server.configure(script=[{"kind": "rate_limit", "retry_after": 0.3}])
    start = time.monotonic()
    call(lm_for(server, num_retries=1, backoff=0.0), how)
    assert time.monotonic() - start >= 0.3


def test_a_long_retry_after_is_an_error_at_once(server: FakeServer) -> None:
    server.configure(script=[{"kind": "rate_limit", "retry_after": 3600}])
    with pytest.raises(dspy.LMRateLimitError) as caught:
        lm_for(server, num_retries=3)("hi")
    assert caught.value.retry_after == 3600


@both
def test_n_sequences_are_one_request(server: FakeServer, how: str) -> None:
    outputs = call(lm_for(server), how, n=3)
    assert len(set(outputs)) == 3
    assert [body["n"] for body in server.requests()] == [3]


@pytest.mark.parametrize(("fault", "said"), [("empty", ["", ""]), ("null", [None, None])])
def test_empty_completions_pass_as_they_are(server: FakeServer, fault: str, said: Any) -> None:
    server.configure(script=[fault])
    assert lm_for(server)("hi", n=2) == said


def test_what_is_sent(server: FakeServer) -> None:
    lm = lm_for(server, temperature=0.7, max_tokens=None, extra_body={"guided": 1}, rollout_id=4)
    lm("hi", top_k=5, seed=3)
    assert server.requests() == [
        {
            "model": "fake",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0.7,
            "top_k": 5,
            "seed": 3,
            "guided": 1,
        }
    ]


@both
def test_a_lone_surrogate_is_refused_before_it_is_sent(server: FakeServer, how: str) -> None:
    with pytest.raises(dspy.LMInvalidRequestError, match="surrogates"):
        call(lm_for(server), how, "half a character: \ud83d")
    assert server.requests() == []


def test_reasoning_and_logprobs_come_beside_the_text() -> None:
    with fake_openai(lambda body, serial: Choice("answer", reasoning="hm")) as endpoint:
        (output,) = lm_for(endpoint.url)("hi", logprobs=True)
    assert output == {"text": "answer", "reasoning_content": "hm", "logprobs": None}


@both
def test_a_cached_call_sends_nothing(server: FakeServer, cache: Path, how: str) -> None:
    lm = lm_for(server, CLOSED, cache=True, temperature=1.0)
    first = call(lm, how, rollout_id=1)
    other_place = lm_for(CLOSED, cache=True, temperature=1.0)
    with dspy.track_usage() as usage:
        assert call(other_place, "async", rollout_id=1) == call(other_place, "sync", rollout_id=1)
    assert other_place.history[0]["outputs"] == first
    assert other_place.history[0]["usage"] == {}
    assert usage.get_total_tokens() == {}
    dspy.cache.reset_memory_cache()
    assert call(other_place, how, rollout_id=1) == first  # from disk
    call(lm, how, rollout_id=2)
    assert server.stats()["requests"] == 2


class Recorder(BaseCallback):
    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.seen.append(("start", inputs["prompt"]))

    def on_lm_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self.seen.append(("end", type(exception or outputs).__name__))


@both
def test_usage_callbacks_and_history(server: FakeServer, how: str) -> None:
    server.configure(script=["served", "auth"])
    recorder = Recorder()
    lm = lm_for(server, callbacks=[recorder])
    with dspy.track_usage() as usage:
        call(lm, how, n=2)
        with pytest.raises(dspy.LMAuthError):
            call(lm, how, "again")
        with dspy.context(disable_history=True):
            call(lm, how, "unseen")
    assert usage.get_total_tokens()["openai/fake"]["completion_tokens"] == 120
    assert recorder.seen[:4] == [
        ("start", "hi"),
        ("end", "list"),
        ("start", "again"),
        ("end", "LMAuthError"),
    ]
    (entry,) = lm.history
    assert (entry["prompt"], entry["kwargs"], entry["usage"]["completion_tokens"]) == (
        "hi",
        {"n": 2},
        80,
    )
    assert (entry["model"], entry["response_model"]) == ("openai/fake", "fake")


def test_copies_share_servers_and_nothing_else(server: FakeServer) -> None:
    lm = lm_for(server, temperature=0.7, top_p=0.9)
    view = lm.copy(temperature=0.1, top_p=None, timeout=9.0, seed=4)
    assert view.link is lm.link
    assert (view.kwargs["temperature"], view.timeout, view.kwargs["seed"]) == (0.1, 9.0, 4)
    assert "top_p" not in view.kwargs
    assert (lm.kwargs["temperature"], lm.kwargs["top_p"], lm.timeout) == (0.7, 0.9, 5.0)
    view("hi")
    assert len(view.history) == 1
    assert lm.history == []


def test_a_copy_for_another_server_keeps_headers() -> None:
    lm = lm_for(CLOSED, api_key="first", headers={"X-Team": "a"})
    other = lm.copy(api_base="http://elsewhere:1/v1/", api_key="second")
    assert other.api_base == ["http://elsewhere:1/v1"]
    assert other.link.headers["authorization"] == "Bearer second"
    assert other.link.headers["x-team"] == "a"
    assert lm.link.headers["authorization"] == "Bearer first"


def test_pickles_and_deep_copies_answer(server: FakeServer) -> None:
    lm = lm_for(server, api_key="secret", temperature=0.2)
    assert copy.deepcopy(lm).link is lm.link
    revived = pickle.loads(pickle.dumps(lm))
    assert revived.link.headers == lm.link.headers
    assert revived("hi") == lm("hi")


def test_saved_state_has_no_secrets_and_loads(server: FakeServer) -> None:
    lm = lm_for(server, api_key="secret", headers={"x-key": "secret"}, temperature=0.2)
    program = dspy.Predict("question -> answer")
    program.lm = lm
    state = program.dump_state()
    assert "secret" not in str(state)
    other = dspy.Predict("question -> answer")
    other.load_state(state, allow_unsafe_lm_state=True)
    assert isinstance(other.lm, OpenAIServerLM)
    assert other.lm("hi") == lm("hi")
    assert (other.lm.timeout, other.lm.backoff, other.lm.num_retries) == (5.0, 0.01, 0)


def test_bad_arguments_say_what_is_expected() -> None:
    for kwargs in (
        {"model_type": "responses"},
        {"engine": "litellm"},
        {"timeout": 0},
        {"timeout": None},
    ):
        with pytest.raises(ConfigurationError, match="expected"):
            lm_for(CLOSED, **kwargs)
    for urls in ([], ["localhost:8000"], [CLOSED, CLOSED + "/"]):
        with pytest.raises(ConfigurationError, match="api_base"):
            OpenAIServerLM("m", api_base=urls or ["ftp://x"])
    for url in ("http://a..b/v1", "http://x:port/v1", "http://[::1/v1", "http:///v1"):
        with pytest.raises(ConfigurationError, match="api_base"):
            lm_for(url)
    with pytest.raises(ConfigurationError, match="plain ASCII"):
        lm_for(CLOSED, headers={"x-a": "1\r\nx-b: 2"})
    with pytest.raises(ConfigurationError, match="engine"):
        lm_for(CLOSED).copy(engine="litellm")


@both
def test_a_dead_server_is_left_out(server: FakeServer, how: str) -> None:
    lm = lm_for(CLOSED, server)
    for i in range(10):
        call(lm, how, f"question {i}")
    dead, alive = lm.link.endpoints.all
    assert server.stats()["requests"] == 10
    assert (dead.failures, alive.failures, dead.in_flight, alive.in_flight) == (1, 0, 0, 0)


def test_all_dead_is_a_transport_error() -> None:
    with pytest.raises(dspy.LMTransportError, match="cannot connect to http://127"):
        lm_for(CLOSED, CLOSED.replace("9", "19"), num_retries=1)("hi")


async def test_requests_of_a_server_that_dies_move_and_it_is_taken_back(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints_module, "_FIRST_PAUSE", 0.2)
    server.configure(median=0.05, sigma=0.1)
    with start_server(median=20.0, sigma=0.0) as mortal:
        lm = lm_for(server, mortal)
        tasks = [asyncio.create_task(lm.acall(f"question {i}")) for i in range(20)]
        await asyncio.sleep(0.2)
        assert lm.link.endpoints.all[1].in_flight > 0
        mortal.kill()
        assert all(len(outputs) == 1 for outputs in await asyncio.gather(*tasks))
        assert lm.link.endpoints.all[1].failures > 0
        mortal.revive()
        mortal.configure(median=0.05)
        await asyncio.sleep(0.8)
        await asyncio.gather(*(lm.acall(f"later {i}") for i in range(8)))
        assert lm.link.endpoints.all[1].failures == 0
        await asyncio.gather(*(lm.acall(f"even later {i}") for i in range(8)))
        assert mortal.stats()["served"] > 1
    assert [one.in_flight for one in lm.link.endpoints.all] == [0, 0]


async def test_load_is_balanced(server: FakeServer) -> None:
    server.configure(median=0.05, sigma=0.0)
    with start_server(median=0.05, sigma=0.0) as second:
        lm = lm_for(server, second)
        await asyncio.gather(*(lm.acall(f"question {i}") for i in range(20)))
        assert (server.stats()["served"], second.stats()["served"]) == (10, 10)


async def test_a_cancelled_call_frees_its_server_and_its_connection(server: FakeServer) -> None:
    server.configure(script=["hang"])
    lm = lm_for(server)
    task = asyncio.create_task(lm.acall("hi"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lm.link.endpoints.all[0].in_flight == 0
    assert len(await lm.acall("hi")) == 1
    await asyncio.sleep(0.05)
    assert server.stats()["outcomes"] == {"abandoned": 1, "served": 1}


def test_one_lm_in_many_threads_and_loops(server: FakeServer) -> None:
    lm = lm_for(server)

    def job(i: int) -> list[Any]:
        return call(lm, "async" if i % 2 else "sync", f"question {i}")

    with ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(job, range(32)))
    assert len({output for (output,) in outputs}) == 32
    assert len(_sessions) == 0  # each loop closed its connections at its end


async def test_in_a_running_loop(server: FakeServer) -> None:
    lm = lm_for(server)
    assert lm("hi") == await lm.acall("hi")  # the first blocks, as it says
    await lm.aclose()
    assert len(await lm.acall("hi")) == 1


@both
def test_a_proxy_of_the_environment_is_used(
    server: FakeServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_client()
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    assert len(call(lm_for("http://behind.invalid/v1"), how)) == 1
    close_client()
    assert server.stats()["served"] == 1


def test_the_whole_loop_counts_as_the_server_does(server: FakeServer) -> None:
    lm = lm_for(server, temperature=0.7)
    assert supports_native_n(lm)
    assert parameters(lm, native=True) == PARAMETERS == lm.supported_params
    module = TPOModule(scorer=different_letters, seed=1)
    module.set_lm(lm)
    trace = module("What is it?").trace
    assert server.stats()["requests"] == 7
    assert sum(body.get("n") or 1 for body in server.requests()) == 19
    assert trace.usage["completion_tokens"] == 19 * 40
    assert abs(sum(candidate.tokens for candidate in trace.candidates) - 15 * 40) < 15


@both
def test_an_explicit_request_gets_a_response(server: FakeServer, how: str) -> None:
    recorder = Recorder()
    lm = lm_for(server, callbacks=[recorder])
    lm15: Any = dspy.lm15
    request = lm15.Request("openai/fake", (lm15.Message.user("hi"),))
    response = lm(request) if how == "sync" else asyncio.run(lm.acall(request))
    assert response.text == lm("hi")[0]
    assert [kind for kind, _ in recorder.seen] == ["start", "end"] * 2
    assert len(lm.history) == 2


async def test_streaming_goes_through_an_ordinary_lm(server: FakeServer) -> None:
    program: Any = dspy.streamify(dspy.Predict("question -> answer"), is_async_program=True)
    lm = lm_for(server)
    with dspy.context(lm=lm, adapter=PlainTextAdapter()):
        *chunks, last = [value async for value in program(question="What is it?")]
    assert last.answer == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(chunks) > 10
    assert server.requests()[0]["stream"] is True
    assert len(lm.history) == 1


def test_forward_gives_the_servers_answer(server: FakeServer) -> None:
    lm = lm_for(server)
    answer = lm.forward("hi", n=2)
    assert [choice.message.content for choice in answer.choices] == lm("hi", n=2)
    assert asyncio.run(lm.aforward("hi", n=2))["choices"] == answer["choices"]
