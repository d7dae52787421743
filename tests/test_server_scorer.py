from __future__ import annotations

import asyncio
import copy
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from stub_servers import Answer, Request, reward_of, stub_server

from tpo_modules.cli.rewards import make_ready
from tpo_modules.errors import ConfigurationError, RewardError, ScorerError
from tpo_modules.scorers.base import Query, Reward
from tpo_modules.scorers.score_check import check_rewards, guess_cause
from tpo_modules.scorers.server import ServerScorer
from tpo_modules.scorers.transport import Retry

pytestmark = pytest.mark.server

QUICK = Retry(limit=3, first_wait=0.01, longest_wait=0.02)
QUERY = Query.from_messages(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
)
RESPONSES = [
    "Scattering.",
    "No idea.",
    "Rayleigh scattering of sunlight.",
    "",
    "Blau — 青 😀",
]


# --- one stub per server, in the shapes that their documentation gives ----------------------------


def vllm_data(values: Sequence[float], name: str) -> dict[str, Any]:
    rows = [
        {"index": i, "label": "LABEL_0", name: [v] if name != "score" else v, "num_classes": 1}
        for i, v in enumerate(values)
    ]
    return {"id": "classify-1", "object": "list", "created": 1, "model": "rm", "data": rows[::-1]}


def vllm_chat(name: str) -> Callable[[Request], Any]:
    def handle(request: Request) -> Any:
        assert request.body["use_activation"] is False
        *_, user, reply = request.body["messages"]
        assert (user["role"], reply["role"]) == ("user", "assistant")
        return vllm_data([reward_of(user["content"] + reply["content"])], name)

    return handle


def vllm_score(request: Request) -> Any:
    assert request.path == "/score"
    assert request.body["use_activation"] is False
    pairs = zip(request.body["text_1"], request.body["text_2"], strict=True)
    return vllm_data([reward_of(last_paragraph(a) + b) for a, b in pairs], "score")


def tei_predict(request: Request) -> Any:
    assert request.path == "/predict"
    assert request.body["raw_scores"] is True
    return [
        [{"score": reward_of(last_paragraph(query) + response), "label": "LABEL_0"}]
        for query, response in request.body["inputs"]
    ]


def tei_rerank(request: Request) -> Any:
    assert request.path == "/rerank"
    assert request.body["raw_scores"] is True
    scores = [reward_of(last_paragraph(request.body["query"]) + t) for t in request.body["texts"]]
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [{"index": i, "score": scores[i]} for i in ranked]


def rerank(request: Request) -> Any:
    assert request.path == "/rerank"
    assert request.body["top_n"] == len(request.body["documents"])
    query = last_paragraph(request.body["query"])
    scores = [reward_of(query + text) for text in request.body["documents"]]
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    return {
        "model": "rm",
        "usage": {"total_tokens": 9},
        "results": [{"index": i, "relevance_score": scores[i]} for i in ranked],
    }


def last_paragraph(text: str) -> str:
    return text.split("\n\n")[-1].removeprefix("User: ")


STUBS: dict[str, Callable[[Request], Any]] = {
    "vllm-classify": vllm_chat("probs"),
    "vllm-pooling": vllm_chat("data"),
    "vllm-score": vllm_score,
    "tei-predict": tei_predict,
    "tei-rerank": tei_rerank,
    "rerank": rerank,
}
EXPECTED = [reward_of(str(QUERY) + response) for response in RESPONSES]


@pytest.mark.parametrize("api", STUBS)
def test_rewards_come_in_the_order_of_the_responses(api: str) -> None:
    with stub_server(STUBS[api]) as stub, ServerScorer(stub.url, api=api, batch_size=2) as scorer:
        assert scorer.score(QUERY, RESPONSES) == EXPECTED
        assert asyncio.run(scorer.ascore(QUERY, RESPONSES)) == EXPECTED


@pytest.mark.parametrize("api", STUBS)
def test_pairs_of_several_queries_keep_their_order(api: str) -> None:
    pairs = [(f"question {i % 3}", f"answer {i}") for i in range(10)]
    with stub_server(STUBS[api]) as stub, ServerScorer(stub.url, api=api, batch_size=4) as scorer:
        assert scorer.score_pairs(pairs) == [reward_of(q + r) for q, r in pairs]


def test_equal_responses_are_sent_once() -> None:
    with stub_server(STUBS["rerank"]) as stub, ServerScorer(stub.url, api="rerank") as scorer:
        rewards = scorer.score("q", ["a", "b", "a", "a"])
        assert rewards == [reward_of(t) for t in ("qa", "qb", "qa", "qa")]
        assert stub.bodies[0]["documents"] == ["a", "b"]


def test_nothing_to_score_sends_nothing() -> None:
    with stub_server(STUBS["rerank"]) as stub, ServerScorer(stub.url, api="rerank") as scorer:
        assert scorer.score("q", []) == []
        assert asyncio.run(scorer.ascore("q", [])) == []
        assert stub.requests == []


def test_model_token_headers_and_extra_fields_are_sent() -> None:
    with (
        stub_server(STUBS["rerank"]) as stub,
        ServerScorer(
            stub.url + "/rerank",
            api="rerank",
            model="rm",
            token="secret",
            headers={"x-team": "tpo"},
            extra={"truncate_prompt_tokens": 99, "use_activation": None},
        ) as scorer,
    ):
        scorer.score("q", ["a"])
        [request] = stub.requests
        assert request.path == "/rerank"
        assert request.headers["authorization"] == "Bearer secret"
        assert request.headers["x-team"] == "tpo"
        assert request.body == {
            "query": "q",
            "documents": ["a"],
            "top_n": 1,
            "model": "rm",
            "truncate_prompt_tokens": 99,
        }
        assert "secret" not in repr(scorer)


def test_white_space_around_a_token_or_header_is_left_out() -> None:
    options: dict[str, Any] = {"token": "abc\n", "headers": {"x-api-key": " k\r\n"}}
    with (
        stub_server(STUBS["rerank"]) as stub,
        ServerScorer(stub.url, api="rerank", **options) as scorer,
    ):
        scorer.score("q", ["a"])
        [request] = stub.requests
        assert request.headers["authorization"] == "Bearer abc"
        assert request.headers["x-api-key"] == "k"


# --- asked once before a run ----------------------------------------------------------------------


def test_a_probe_sends_what_a_score_sends() -> None:
    options: dict[str, Any] = {"model": "rm", "token": "s3cret", "headers": {"x-team": "tpo"}}
    with (
        stub_server(STUBS["rerank"]) as stub,
        ServerScorer(
            stub.url, api="rerank", extra={"truncate_prompt_tokens": 99}, **options
        ) as scorer,
    ):
        scorer.score("Hello", ["Hello."])
        assert make_ready(scorer) is scorer
        scored, probed = stub.requests
        assert probed.body == scored.body
        assert probed.headers == scored.headers


def test_a_probe_reads_the_output_that_is_the_reward() -> None:
    with (
        stub_server(lambda _: {"data": [{"index": 0, "probs": [0.25, 2.5]}]}) as stub,
        ServerScorer(stub.url, output=1) as scorer,
    ):
        make_ready(scorer)
        with (
            ServerScorer(stub.url) as unclear,
            pytest.raises(RewardError, match="gave 2 numbers per response"),
        ):
            make_ready(unclear)


def test_a_probe_does_not_try_for_as_long_as_a_run() -> None:
    patient = Retry(limit=50, first_wait=0.01, longest_wait=0.01)
    once = Retry(limit=1, first_wait=0.01)
    for retry, attempts in [(patient, 3), (once, 2)]:
        with (
            stub_server(lambda _: Answer(503)) as stub,
            ServerScorer(stub.url, api="rerank", retry=retry) as scorer,
        ):
            with pytest.raises(ScorerError, match=f"after {attempts} attempt"):
                make_ready(scorer)
            assert len(stub.requests) == attempts


def test_a_probe_passes_where_the_served_scorer_wants_an_input_that_only_queries_have() -> None:
    lacking = Answer(422, json={"error": {"message": "no input 'answer'"}})
    with stub_server(lambda _: lacking) as stub:
        with ServerScorer(stub.url, api="tpo") as scorer:
            make_ready(scorer)
        with (  # sends no inputs, so it never could be scored
            ServerScorer(stub.url, api="vllm-classify") as scorer,
            pytest.raises(ScorerError, match="no input 'answer'"),
        ):
            make_ready(scorer)


# --- models with several outputs ------------------------------------------------------------------


def test_several_outputs_need_a_choice() -> None:
    def two(request: Request) -> Any:
        return {"data": [{"index": 0, "probs": [0.25, 2.5]}]}

    with stub_server(two) as stub:
        with (
            ServerScorer(stub.url) as scorer,
            pytest.raises(RewardError, match=r"2 numbers per response; expected one.*output="),
        ):
            scorer.score("q", ["a"])
        with ServerScorer(stub.url, output=1) as scorer:
            assert scorer.score("q", ["a"]) == [2.5]
        with (
            ServerScorer(stub.url, output=2) as scorer,
            pytest.raises(RewardError, match="no output 2"),
        ):
            scorer.score("q", ["a"])


@pytest.mark.parametrize(("output", "reward"), [(0, -1.0), (1, 3.0), ("LABEL_1", 3.0)])
def test_labels_are_followed_where_outputs_are_sorted(output: int | str, reward: float) -> None:
    def sorted_by_score(request: Request) -> Any:
        return [[{"score": 3.0, "label": "LABEL_1"}, {"score": -1.0, "label": "LABEL_0"}]]

    with (
        stub_server(sorted_by_score) as stub,
        ServerScorer(stub.url, api="tei-predict", output=output) as scorer,
    ):
        assert scorer.score("q", ["a"]) == [reward]


# --- failures -------------------------------------------------------------------------------------


def flaky(failures: Sequence[Answer]) -> Callable[[Request], Any]:
    def handle(request: Request) -> Any:
        return failures[request.number] if request.number < len(failures) else rerank(request)

    return handle


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_failures_that_may_pass_are_retried(status: int) -> None:
    with (
        stub_server(flaky([Answer(status), Answer(status)])) as stub,
        ServerScorer(stub.url, api="rerank", retry=QUICK) as scorer,
    ):
        assert scorer.score("q", ["a"]) == [reward_of("qa")]
        assert len(stub.requests) == 3


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "token="), (403, "allow"), (404, "address"), (405, "api=")]
)
def test_failures_that_will_not_pass_are_not_retried(status: int, remedy: str) -> None:
    answer = Answer(status, json={"error": {"message": "go away"}})
    with (
        stub_server(lambda _: answer) as stub,
        ServerScorer(stub.url, api="rerank", retry=QUICK) as scorer,
    ):
        with pytest.raises(ScorerError, match=f"HTTP {status}: go away.*{remedy}"):
            scorer.score("q", ["a", "b"])
        assert len(stub.requests) == 1


def test_retry_after_is_kept_to() -> None:
    busy = Answer(429, headers={"retry-after": "0.3"})
    with (
        stub_server(flaky([busy])) as stub,
        ServerScorer(stub.url, api="rerank", retry=QUICK) as scorer,
    ):
        started = time.monotonic()
        scorer.score("q", ["a"])
        assert 0.3 <= time.monotonic() - started < 2
        assert len(stub.requests) == 2


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_wait_longer_than_the_patience_is_an_error_at_once(form: str) -> None:
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    asked = "3600" if form == "seconds" else format_datetime(due, usegmt=True)
    busy = Answer(503, json={"detail": "loading"}, headers={"retry-after": asked})
    with (
        stub_server(lambda _: busy) as stub,
        ServerScorer(stub.url, api="rerank", retry=Retry(give_up_after=5)) as scorer,
    ):
        started = time.monotonic()
        with pytest.raises(ScorerError, match=r"HTTP 503: loading \(it asks to wait 3[56]\d\d s\)"):
            scorer.score("q", ["a"])
        assert time.monotonic() - started < 2
        assert len(stub.requests) == 1


def test_a_slow_answer_is_retried_and_then_named() -> None:
    def slow(request: Request) -> Any:
        time.sleep(2 if request.number < 2 else 0)
        return rerank(request)

    with (
        stub_server(slow) as stub,
        ServerScorer(stub.url, api="rerank", timeout=0.7, retry=QUICK) as scorer,
    ):
        assert scorer.score("q", ["a"]) == [reward_of("qa")]
    with stub_server(lambda _: time.sleep(1)) as stub:
        once = Retry(limit=1, first_wait=0.01)
        with (
            ServerScorer(stub.url, api="rerank", timeout=0.1, retry=once) as scorer,
            pytest.raises(ScorerError, match=r"no answer within 0.1 s.*timeout="),
        ):
            scorer.score("q", ["a"])


def test_an_unreachable_server_is_named() -> None:
    with stub_server(rerank) as stub:
        url = stub.url
    with (
        ServerScorer(url, api="rerank", retry=QUICK) as scorer,
        pytest.raises(ScorerError, match=r"127\.0\.0\.1.*after 4 attempt.*connection failed"),
    ):
        scorer.score("q", ["a"])


NONSENSE: dict[str, tuple[Any, str]] = {
    "html": (Answer(raw=b"<html>login</html>", headers={"content-type": "text/html"}), "not JSON"),
    "empty": (Answer(raw=b""), "not JSON"),
    "other shape": ({"choices": []}, "'results'"),
    "a list": ([1, 2], "'results'"),
    "too few": ({"results": [{"index": 0, "relevance_score": 1}]}, "Expected 2 results.*got 1"),
    "too many": (
        {"results": [{"index": i, "relevance_score": 1} for i in range(3)]},
        "Expected 2 results.*got 3",
    ),
    "an index twice": (
        {"results": [{"index": 0, "relevance_score": 1}, {"index": 0, "relevance_score": 2}]},
        "each index from 0 to 1 once",
    ),
    "no index": ({"results": [{"relevance_score": 1}, {"relevance_score": 2}]}, "each index"),
    "no score": ({"results": [{"index": 0}, {"index": 1}]}, "'relevance_score'"),
    "words": (
        {"results": [{"index": i, "relevance_score": "good"} for i in range(2)]},
        "'good' as a reward; expected a number",
    ),
    "a false content-encoding": (
        Answer(raw=b'{"results": []}', headers={"content-encoding": "gzip"}),
        "not packed as its content-encoding says",
    ),
    "too many brackets": (Answer(raw=b"[" * 100_000), "not JSON"),
    "a number beyond floats": (
        {"results": [{"index": i, "relevance_score": 10**400} for i in range(2)]},
        r"100000.*\.\.\. as a reward; expected a number that a float can hold",
    ),
    "a truth value": (
        {"results": [{"index": i, "relevance_score": True} for i in range(2)]},
        "True as a reward",
    ),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_an_error_that_names_the_server_and_is_not_retried(kind: str) -> None:
    answer, words = NONSENSE[kind]
    with (
        stub_server(lambda _: answer) as stub,
        ServerScorer(stub.url, api="rerank", retry=QUICK) as scorer,
    ):
        with pytest.raises(RewardError, match=f"127.0.0.1.*{words}"):
            scorer.score("q", ["a", "b"])
        assert len(stub.requests) == 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "null"])
def test_a_response_without_a_finite_score_is_nan_and_the_others_stay(value: str) -> None:
    bad_row = f'{{"index": 1, "relevance_score": {value}}}'
    raw = f'{{"results": [{bad_row}, {{"index": 0, "relevance_score": 1.5}}]}}'
    with (
        stub_server(lambda _: Answer(raw=raw.encode())) as stub,
        ServerScorer(stub.url, api="rerank") as scorer,
    ):
        good, bad = scorer.score("q", ["a", "b"])
        assert good == 1.5
        assert math.isnan(bad)
        assert isinstance(bad, Reward)
        assert "the server scored it with" in bad.notes[0]


def test_an_error_of_many_brackets_is_told_as_text() -> None:
    refusal = Answer(401, raw=b"[" * 100_000)
    with (
        stub_server(lambda _: refusal) as stub,
        ServerScorer(stub.url, api="rerank", retry=QUICK) as scorer,
        pytest.raises(ScorerError, match=r"HTTP 401: \[\[.*token="),
    ):
        scorer.score("q", ["a"])


def too_long(request: Request) -> Any:
    if any(len(text) > 50 for text in request.body["documents"]):
        return Answer(400, json={"error": {"message": "maximum context length is 50"}})
    return rerank(request)


def test_a_refused_response_does_not_take_the_others_along() -> None:
    responses = ["a", "b", "x" * 60, "c", "d"]
    with stub_server(too_long) as stub, ServerScorer(stub.url, api="rerank") as scorer:
        rewards = scorer.score("q", responses)
        assert [math.isnan(r) for r in rewards] == [False, False, True, False, False]
        assert rewards[:2] + rewards[3:] == [reward_of("q" + r) for r in "abcd"]
        assert isinstance(rewards[2], Reward)
        assert "maximum context length is 50" in rewards[2].notes[0]
        scored = [
            d
            for b in stub.bodies
            if not any(len(d) > 50 for d in b["documents"])
            for d in b["documents"]
        ]
        assert sorted(scored) == ["a", "b", "c", "d"], "each was scored exactly once"


def test_all_refused_is_an_error() -> None:
    with (
        stub_server(too_long) as stub,
        ServerScorer(stub.url, api="rerank") as scorer,
        pytest.raises(ScorerError, match="HTTP 400: maximum context length is 50"),
    ):
        scorer.score("q", ["x" * 60, "y" * 60])


def test_only_the_failed_batch_is_sent_again() -> None:
    def handle(request: Request) -> Any:
        if "b1" in request.body["documents"] and sum("b1" in b["documents"] for b in seen()) < 3:
            return Answer(503)
        return rerank(request)

    def seen() -> list[Any]:
        return stub.bodies

    with (
        stub_server(handle) as stub,
        ServerScorer(stub.url, api="rerank", batch_size=2, retry=QUICK) as scorer,
    ):
        responses = ["a1", "a2", "b1", "b2", "c1"]
        assert scorer.score("q", responses) == [reward_of("q" + r) for r in responses]
        sent = [tuple(body["documents"]) for body in stub.bodies]
        assert sorted(sent) == [("a1", "a2"), *[("b1", "b2")] * 3, ("c1",)]


# --- everywhere it can be called from -------------------------------------------------------------


def test_score_works_inside_a_running_event_loop() -> None:
    async def in_a_loop(scorer: ServerScorer) -> list[float]:
        return scorer.score("q", ["a"])

    with stub_server(rerank) as stub, ServerScorer(stub.url, api="rerank") as scorer:
        assert asyncio.run(in_a_loop(scorer)) == [reward_of("qa")]


def test_several_event_loops_share_a_scorer() -> None:
    with stub_server(rerank) as stub, ServerScorer(stub.url, api="rerank") as scorer:
        for _ in range(3):
            assert asyncio.run(scorer.ascore("q", ["a"])) == [reward_of("qa")]


def test_the_limit_on_concurrency_holds_over_all_calls() -> None:
    import threading

    lock, now, most = threading.Lock(), [0], [0]

    def counting(request: Request) -> Any:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return rerank(request)

    async def many(scorer: ServerScorer) -> None:
        await asyncio.gather(*(scorer.ascore(f"q{i}", ["a"]) for i in range(20)))

    with (
        stub_server(counting) as stub,
        ServerScorer(stub.url, api="rerank", max_concurrency=3) as scorer,
    ):
        asyncio.run(many(scorer))
        assert most[0] == 3


def test_a_cancelled_call_leaves_the_scorer_usable() -> None:
    def slow(request: Request) -> Any:
        time.sleep(0.3 if request.number == 0 else 0)
        return rerank(request)

    async def cancel_one(scorer: ServerScorer) -> list[float]:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(scorer.ascore("q", ["a"]), 0.05)
        return await scorer.ascore("q", ["b"])

    with (
        stub_server(slow) as stub,
        ServerScorer(stub.url, api="rerank", max_concurrency=1) as scorer,
    ):
        assert asyncio.run(cancel_one(scorer)) == [reward_of("qb")]


def test_copies_and_pickles_work_and_close_can_be_followed_by_more() -> None:
    with stub_server(rerank) as stub, ServerScorer(stub.url, api="rerank") as scorer:
        assert copy.deepcopy({"scorer": scorer})["scorer"].score("q", ["a"]) == [reward_of("qa")]
        with pickle.loads(pickle.dumps(scorer)) as other:
            assert other.score("q", ["a"]) == [reward_of("qa")]
        scorer.close()
        assert scorer.score("q", ["a"]) == [reward_of("qa")]


# --- wrong arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("http://x", {"api": "openai"}, "one of tpo, vllm-classify.*got 'openai'"),
        ("localhost:8000", {}, "Expected the server's address"),
        ("ftp://x", {}, "Expected the server's address"),
        ("http://x", {"api": "sglang-classify"}, "give tokenizer="),
        ("http://x", {"timeout": 0}, "timeout to be positive"),
        ("http://x", {"batch_size": 0}, "batch_size of at least 1"),
        ("http://x", {"max_concurrency": 0}, "max_concurrency of at least 1"),
        ("http://x", {"token": "\n"}, "Expected a token, got an empty one"),
        ("http://x", {"token": "abc\u00e9"}, "the token to be one line of ASCII"),
        ("http://x", {"token": "abc\ndef"}, "the token to be one line of ASCII"),
        ("http://x", {"headers": {"x-key": "a\nb"}}, "the header 'x-key' to be one line"),
        ("http://x", {"headers": {"x key": "a"}}, "a header's name.*got 'x key'"),
        (
            "http://x",
            {"chat_template": "{{x}}", "max_length": 5},
            "vllm-classify, chat_template=, max_length= would not be heeded: expected tokenizer=",
        ),
        (
            "http://x",
            {"api": "rerank", "tokenizer": "folder", "max_length": 5},
            "rerank, tokenizer=, max_length= would not be heeded: expected another api",
        ),
    ],
)
def test_arguments_that_cannot_work(url: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ServerScorer(url, **options)


# --- the template on the client's side ------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with a chat template that writes a BOS, and that adds one itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}"
        "{% endfor %}"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture
def wanted_ids(tokenizer_folder: Path) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    from tpo_modules.scorers.encoding import encode_chat

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    return lambda response: list(encode_chat(tokenizer, QUERY.messages, response).ids)


def ids_reader(folder: Path, read: list[list[int]], shape: str) -> Callable[[Request], Any]:
    """A server that tokenises as vLLM, SGLang or TEI do, and keeps the ids that its model reads."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))

    def tokenised(text: str, special: bool) -> list[int]:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])

    def handle(request: Request) -> Any:
        body = request.body
        if shape == "vllm-classify":
            special = body.get("add_special_tokens", True)
            ids = [t if isinstance(t, list) else tokenised(t, special) for t in body["input"]]
        elif shape == "sglang-classify":
            ids = body.get("input_ids") or [tokenised(text, True) for text in body["text"]]
        else:
            ids = [tokenised(text, True) for [text] in body["inputs"]]
        read.extend(ids)
        scores = [float(len(one)) for one in ids]
        return {
            "vllm-classify": {"data": [{"index": i, "probs": [s]} for i, s in enumerate(scores)]},
            "sglang-classify": [{"embedding": [s], "meta_info": {"id": "1"}} for s in scores],
            "tei-predict": [[{"score": s, "label": "LABEL_0"}] for s in scores],
        }[shape]

    return handle


TEMPLATED = ["vllm-classify", "sglang-classify", "tei-predict"]


@pytest.mark.parametrize("api", TEMPLATED)
def test_the_server_reads_the_tokens_of_the_chat_template_with_one_bos(
    api: str, tokenizer_folder: Path, wanted_ids: Callable[[str], list[int]]
) -> None:
    read: list[list[int]] = []
    responses = ["Scattering.", "Über-Ψ"]
    with (
        stub_server(ids_reader(tokenizer_folder, read, api)) as stub,
        ServerScorer(stub.url, api=api, tokenizer=str(tokenizer_folder)) as scorer,
    ):
        scorer.score(QUERY, responses)
        assert len(stub.requests) == 1, "templated conversations share a request"
    assert read == [wanted_ids(response) for response in responses]
    assert [ids.count(0) for ids in read] == [1, 1]


def test_a_probe_applies_the_template_too(tokenizer_folder: Path) -> None:
    read: list[list[int]] = []
    with (
        stub_server(ids_reader(tokenizer_folder, read, "sglang-classify")) as stub,
        ServerScorer(stub.url, api="sglang-classify", tokenizer=str(tokenizer_folder)) as scorer,
    ):
        make_ready(scorer)
        scorer.score("Hello", ["Hello."])
    probed, scored = read
    assert probed == scored


@pytest.mark.parametrize("api", TEMPLATED[:2])
def test_control_tokens_in_a_response_do_not_act(
    api: str, tokenizer_folder: Path, wanted_ids: Callable[[str], list[int]]
) -> None:
    read: list[list[int]] = []
    with (
        stub_server(ids_reader(tokenizer_folder, read, api)) as stub,
        ServerScorer(stub.url, api=api, tokenizer=str(tokenizer_folder)) as scorer,
    ):
        scorer.score(QUERY, ["good</s><s>[user]", "plain"])
    assert read == [wanted_ids("good</s><s>[user]"), wanted_ids("plain")]
    assert read[0].count(1) == read[1].count(1) == 3, "one </s> per message"


def test_a_server_that_takes_no_ids_leaves_such_a_response_unscored(tokenizer_folder: Path) -> None:
    read: list[list[int]] = []
    with (
        stub_server(ids_reader(tokenizer_folder, read, "tei-predict")) as stub,
        ServerScorer(stub.url, api="tei-predict", tokenizer=str(tokenizer_folder)) as scorer,
    ):
        bad, good = scorer.score(QUERY, ["good</s>", "plain"])
    assert math.isnan(bad)
    assert isinstance(bad, Reward)
    assert "control tokens" in bad.notes[0]
    assert good > 0


def test_a_cut_is_noted(tokenizer_folder: Path) -> None:
    read: list[list[int]] = []
    with (
        stub_server(ids_reader(tokenizer_folder, read, "sglang-classify")) as stub,
        ServerScorer(
            stub.url, api="sglang-classify", tokenizer=str(tokenizer_folder), max_length=80
        ) as scorer,
    ):
        [reward] = scorer.score(QUERY, ["x" * 500])
    assert isinstance(reward, Reward)
    assert any("cut by" in note for note in reward.notes)
    assert len(read[0]) <= 80


# --- check() --------------------------------------------------------------------------------------

Change = Callable[[float], float]
PAIRS = [("q", "a"), ("q", "b"), ("r", "c"), ("r", "d")]
KNOWN = [-2.0, 0.5, 1.25, 3.0]


def transformed(change: Change) -> Callable[[Request], Any]:
    known = {response: reward for (_, response), reward in zip(PAIRS, KNOWN, strict=True)}

    def handle(request: Request) -> Any:
        return vllm_data([change(known[request.body["messages"][-1]["content"]])], "probs")

    return handle


def test_check_returns_the_rewards_where_they_are_right() -> None:
    with (
        stub_server(transformed(lambda x: x + 1e-5)) as stub,
        ServerScorer(stub.url) as scorer,
    ):
        assert scorer.check(PAIRS, KNOWN, tol=1e-4) == pytest.approx(KNOWN, abs=1e-4)


CHANGES: list[tuple[Change, str]] = [
    (lambda x: 1 / (1 + math.exp(-x)), "sigmoid of the expected"),
    (lambda _: 1.0, "softmax over a single output"),
    (math.tanh, "tanh of the expected"),
    (lambda x: -x, "opposite sign"),
    (lambda x: x - 0.9, "constant offset.*BOS"),
    (lambda x: 0.5 * x + 3, "rescaled"),
    (lambda x: x + 0.02 * math.sin(40 * x), "precision"),
    (lambda x: x + 0.9 * math.sin(40 * x), "another chat template"),
    (lambda x: math.sin(900 * x), "do not follow"),
    (lambda x: (x == 3.0) / 2 + 0.1, "between 0 and 1"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_check_guesses_the_cause(change: Change, words: str) -> None:
    with (
        stub_server(transformed(change)) as stub,
        ServerScorer(stub.url) as scorer,
        pytest.raises(ScorerError, match=rf"(?s)127\.0\.0\.1.*of 4 differ by more than.*{words}"),
    ):
        scorer.check(PAIRS, KNOWN, tol=0.01)


def test_causes_that_numbers_alone_show() -> None:
    sigmoids = [1 / (1 + math.exp(-x)) for x in KNOWN]
    assert "raw logits as expected" in guess_cause(KNOWN, sigmoids)
    assert "another order" in guess_cause([0.5, -2.0, 3.0, 1.25], KNOWN)
    assert "not finite" in guess_cause([math.nan, 1, 2, 3], KNOWN)
    powers = [math.exp(x) for x in KNOWN]
    assert "a softmax" in guess_cause([p / sum(powers) for p in powers], KNOWN)


def test_check_needs_one_expected_reward_per_pair() -> None:
    with pytest.raises(ConfigurationError, match="got 1 rewards for 2 pairs"):
        check_rewards([1.0, 2.0], [1.0], tol=0.1, subject="x")


@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_check_needs_finite_expected_rewards(unknown: float) -> None:
    with pytest.raises(ConfigurationError, match=f"got {unknown} for pair 1"):
        check_rewards([1.0, 5.0, 2.0], [1.0, unknown, 2.0], tol=0.1, subject="x")


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    import threading

    yield
    assert not [t for t in threading.enumerate() if t.name == "tpo-scorer-http"]
