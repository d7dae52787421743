"""What TPO sends, against the paper's counts and settings: real HTTP, real DSPy."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest
from fake_openai import LM_CLASSES, Body, Choice, Endpoint, fake_openai

from tpo_modules import BestOfNModule, RevisionModule, Sampling, TPOModule

pytestmark = pytest.mark.server

Call = Callable[[dspy.Module, str], Any]


def sync_call(module: dspy.Module, query: str) -> dspy.Prediction:
    return module(query)


def async_call(module: dspy.Module, query: str) -> dspy.Prediction:
    return asyncio.run(module.acall(query))


both_ways = pytest.mark.parametrize("call", [sync_call, async_call])


class CountingScorer:
    """Rewards text by its checksum, and counts."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        self.batches.append([str(response) for response in responses])
        return [checksum(response) for response in responses]

    @property
    def rewarded(self) -> int:
        return sum(map(len, self.batches))


def checksum(text: str) -> float:
    return zlib.crc32(text.encode()) / 2**32


@pytest.fixture(autouse=True)
def own_cache() -> None:
    """Give each test a cache of its own: equal requests of other tests must not answer."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)


@pytest.fixture(autouse=True, params=LM_CLASSES)
def lm_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything with each LM that takes ``n`` in one request."""
    monkeypatch.setattr(Endpoint, "lm_class", request.param)


def shape(body: Body) -> str:
    """Tell which step sent a request by the labels in its prompt."""
    prompt = body["messages"][-1]["content"]
    if "how to change the draft" in prompt:
        return "update"
    if "the review):" in prompt:
        return "gradient"
    return "loss" if "the answer with the worse grade" in prompt else "policy"


@both_ways
def test_d2_n5_sends_7_requests_for_19_sequences_and_15_rewards(call: Call) -> None:
    scorer = CountingScorer()
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm()):
        prediction = call(TPOModule(scorer=scorer, depth=2, width=5), "Why is the sky blue?")
    assert len(endpoint.requests) == 7
    assert endpoint.sequences == 19
    assert scorer.rewarded == 15
    assert [shape(body) for body in endpoint.requests] == [
        "policy", "loss", "gradient", "update", "loss", "gradient", "update",
    ]  # fmt: skip
    assert [body.get("n") for body in endpoint.requests] == [5, None, None, 5, None, None, 5]
    assert prediction.trace.status == "complete"
    assert sum(call.requests for call in prediction.trace.calls) == 7


@pytest.mark.parametrize(("depth", "width"), [(0, 1), (0, 4), (1, 1), (1, 3), (3, 2), (5, 20)])
def test_counts_follow_the_formulas(depth: int, width: int) -> None:
    scorer = CountingScorer()
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm()):
        TPOModule(scorer=scorer, depth=depth, width=width)("Why is the sky blue?")
    assert len(endpoint.requests) == 1 + 3 * depth
    assert endpoint.sequences == width + depth * (width + 2)
    assert scorer.rewarded == width * (1 + depth)
    assert len(scorer.batches) == depth + 1


def test_sampling_and_critique_settings_are_the_papers() -> None:
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm()):
        TPOModule(scorer=CountingScorer())("Why is the sky blue?")
    sent = {(shape(body), body["temperature"], body["top_p"]) for body in endpoint.requests}
    assert sent == {
        ("policy", 0.7, 0.95),
        ("update", 0.7, 0.95),
        ("loss", 0.7, 0.99),
        ("gradient", 0.7, 0.99),
    }
    assert not any("max_tokens" in body for body in endpoint.requests)


@both_ways
def test_chosen_and_rejected_are_the_extremes_of_the_whole_pool(call: Call) -> None:
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm()):
        prediction = call(TPOModule(scorer=checksum_of, depth=3, width=4), "Why?")
    trace = prediction.trace
    losses = [c for c in trace.calls if c.name == "loss"]
    assert len(trace.candidates) == 16
    for step, loss in enumerate(losses, start=1):
        before = [c for c in trace.candidates if c.step < step]
        assert loss.inputs["chosen_response"] == max(before, key=lambda c: c.reward).response
        assert loss.inputs["rejected_response"] == min(before, key=lambda c: c.reward).response
        assert loss.inputs["chosen_response"] in endpoint.prompts[3 * step - 2]
        assert loss.inputs["rejected_response"] in endpoint.prompts[3 * step - 2]
    best = max(trace.candidates, key=lambda c: c.reward)
    assert (prediction.reward, prediction.response) == (best.reward, best.response)


def checksum_of(query: str, response: str) -> float:
    return checksum(response)


def test_the_query_is_sent_as_it_is() -> None:
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm()):
        BestOfNModule(scorer=checksum_of, width=2)("  Why {is} the\nsky blue? ")
    assert endpoint.requests[0]["messages"] == [
        {"role": "user", "content": "  Why {is} the\nsky blue? "}
    ]


@both_ways
def test_without_native_n_samples_are_concurrent_and_all_different(call: Call) -> None:
    scorer = CountingScorer()
    with fake_openai(delay=0.1) as endpoint, dspy.context(lm=endpoint.lm()):
        module = TPOModule(scorer=scorer, width=5, depth=2, seed=3, native_n=False)
        trace = call(module, "Why is the sky blue?").trace
    assert len(endpoint.requests) == endpoint.sequences == 19
    assert scorer.rewarded == 15
    assert endpoint.most_at_once == 5
    assert len({body["seed"] for body in endpoint.requests}) == 19
    assert len({c.response for c in trace.candidates}) == 15
    assert all("rollout_id" not in body for body in endpoint.requests)


def by_seed(body: Body, serial: int) -> str:
    return f"answer to seed {body['seed']}" if "seed" in body else f"answer {serial}"


@both_ways
@pytest.mark.parametrize("native_n", [True, False])
@pytest.mark.parametrize("seed", [None, 7])
def test_the_same_run_again_comes_from_the_cache(
    call: Call, native_n: bool, seed: int | None
) -> None:
    module = TPOModule(scorer=checksum_of, width=4, depth=2, seed=seed, native_n=native_n)
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm(cache=True)):
        first = call(module, "Why is the sky blue?")
        sent = len(endpoint.requests)
        second = call(module, "Why is the sky blue?")
        assert sent == (7 if native_n else 16)
        assert len(endpoint.requests) == sent
        other = call(module, "Why is the sea blue?")
        assert len(endpoint.requests) == 2 * sent
    assert second.trace.candidates == first.trace.candidates
    assert second.trace.usage == {}
    assert second.trace.generated_tokens == first.trace.generated_tokens == 16 * 7
    assert [c.cached for c in second.trace.calls] == [c.requests for c in second.trace.calls]
    assert other.trace.candidates != first.trace.candidates


def test_another_seed_is_another_run() -> None:
    with fake_openai(by_seed) as endpoint, dspy.context(lm=endpoint.lm(cache=True)):
        one, two, again = (
            TPOModule(scorer=checksum_of, width=3, depth=1, seed=seed, native_n=False)("Why?")
            for seed in (1, 2, 1)
        )
        assert len(endpoint.requests) == 2 * 8
    assert one.trace.candidates == again.trace.candidates
    assert {c.response for c in one.trace.candidates}.isdisjoint(
        c.response for c in two.trace.candidates
    )


@both_ways
def test_an_endpoint_that_ignores_n_is_asked_for_the_rest(call: Call) -> None:
    with fake_openai(n="ignored") as endpoint, dspy.context(lm=endpoint.lm()):
        trace = call(TPOModule(scorer=checksum_of, width=5, depth=1), "Why?").trace
    assert len(trace.candidates) == 10
    assert len({c.response for c in trace.candidates}) == 10
    assert trace.failures == []
    assert len(endpoint.requests) == 5 + 1 + 1 + 5


@both_ways
def test_an_endpoint_that_refuses_n_is_asked_one_by_one(call: Call) -> None:
    with fake_openai(n="refused") as endpoint, dspy.context(lm=endpoint.lm()):
        trace = call(TPOModule(scorer=checksum_of, width=5, depth=1), "Why?").trace
    assert len(trace.candidates) == 10
    assert trace.failures == []
    assert len(endpoint.requests) == 6 + 1 + 1 + 6


def test_depth_0_and_best_of_n_send_the_same() -> None:
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm(cache=True)):
        one = TPOModule(scorer=checksum_of, width=4, depth=0)("Why?")
        two = BestOfNModule(scorer=checksum_of, width=4)("Why?")
        three = TPOModule(scorer=checksum_of, width=4, depth=1)("Why?")
        revision = RevisionModule(scorer=checksum_of, width=4, depth=1)("Why?")
        assert len(endpoint.requests) == 1 + 3 + 3
    assert one.trace.candidates == two.trace.candidates == three.trace.candidates[:4]
    assert revision.trace.candidates[:4] == one.trace.candidates
    assert (one.response, one.reward) == (two.response, two.reward)


def test_usage_adds_up_to_the_tokens_served() -> None:
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm()):
        trace = TPOModule(scorer=checksum_of, width=3, depth=2)("Why is the sky blue?").trace
        assert trace.usage == endpoint.served
    assert trace.generated_tokens == endpoint.served["completion_tokens"] == (9 + 4) * 7


def test_the_lms_own_token_limit_stands_unless_one_is_given() -> None:
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm(max_tokens=64)):
        BestOfNModule(scorer=checksum_of, width=2)("Why?")
        BestOfNModule(scorer=checksum_of, width=2, sampling=Sampling(max_tokens=32))("Why?")
    assert [body["max_tokens"] for body in endpoint.requests] == [64, 32]


@pytest.mark.parametrize("native_n", [True, False])
def test_an_lm_made_for_several_sequences_is_asked_for_ours(native_n: bool) -> None:
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm(n=3)):
        TPOModule(scorer=checksum_of, width=2, depth=1, native_n=native_n)("Why?")
    assert endpoint.sequences == 2 + (2 + 2)


@both_ways
@pytest.mark.parametrize("native_n", [True, None])
@pytest.mark.parametrize("temperature", [0.0, 0.1, 0.15, None])
def test_low_temperatures_are_sent_as_they_are(
    call: Call, native_n: bool | None, temperature: float | None
) -> None:
    sampling = Sampling(temperature=temperature)
    module = TPOModule(scorer=checksum_of, width=3, depth=0, sampling=sampling, native_n=native_n)
    with fake_openai() as endpoint, dspy.context(lm=endpoint.lm()):
        call(module, "Why?")
    sent = [(body.get("n", 1), body.get("temperature")) for body in endpoint.requests]
    assert sent == [(1, temperature)] * 3


def test_a_low_temperature_of_the_lms_own_is_sent_as_it_is() -> None:
    sampling = Sampling(temperature=None)
    with fake_openai() as endpoint:
        for own in (0.1, 1.0):
            with dspy.context(lm=endpoint.lm(temperature=own)):
                BestOfNModule(scorer=checksum_of, width=2, sampling=sampling)("Why?")
    sent = [(body.get("n", 1), body.get("temperature")) for body in endpoint.requests]
    assert sent == [(1, 0.1), (1, 0.1), (2, 1.0)]


def every_second_without_markers(body: Body, serial: int) -> str:
    marked = "[[ ## title ## ]]\nT\n\n[[ ## response ## ]]\nhello\n\n[[ ## completed ## ]]"
    return "no markers at all" if serial % 2 else marked


@both_ways
def test_of_several_outputs_only_what_does_not_parse_is_lost(call: Call) -> None:
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    module = BestOfNModule("query -> title, response", response_field="response",
                           scorer=checksum_of, width=4)  # fmt: skip
    says = every_second_without_markers
    with fake_openai(says) as endpoint, dspy.context(lm=endpoint.lm(), adapter=adapter):
        trace = call(module, "Why?").trace
    assert [body.get("n") for body in endpoint.requests] == [None] * 4
    assert [candidate.response for candidate in trace.candidates] == ["hello"] * 2
    assert [failure.type for failure in trace.failures] == ["AdapterParseError"] * 2


class PlansFirst(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("query -> plan")
        self.answer = dspy.Predict("query, plan -> response")

    def forward(self, query: str) -> dspy.Prediction:
        return self.answer(query=query, plan=self.plan(query=query).plan)


def long_plan(body: Body, serial: int) -> Choice:
    prompt = str(body["messages"])
    name = "response" if "`response`" in prompt else "plan"
    text = f"[[ ## {name} ## ]]\n{name} {serial}\n\n[[ ## completed ## ]]"
    return Choice(text, tokens=1000 if name == "plan" else 10)


@both_ways
def test_every_request_of_a_program_counts_as_generated(call: Call) -> None:
    module = BestOfNModule(PlansFirst(), response_field="response", scorer=checksum_of, width=2)
    with fake_openai(long_plan) as endpoint, dspy.context(lm=endpoint.lm(cache=True)):
        first, again = call(module, "Why?").trace, call(module, "Why?").trace
    assert len(endpoint.requests) == 4
    assert first.generated_tokens == endpoint.served["completion_tokens"] == 2 * 1010
    assert again.generated_tokens == first.generated_tokens


def broken_at_first(body: Body, serial: int) -> Choice:
    tokens = 100 if serial < 2 else 10
    return Choice(
        "no markers" if serial < 2 else '{"title": "T", "response": "hello"}', tokens=tokens
    )


def test_a_request_that_was_repeated_as_json_counts_as_generated() -> None:
    module = BestOfNModule("query -> title, response", response_field="response",
                           scorer=checksum_of, width=2, native_n=True)  # fmt: skip
    with fake_openai(broken_at_first) as endpoint, dspy.context(lm=endpoint.lm()):
        trace = module("Why?").trace
    assert [body["n"] for body in endpoint.requests] == [2, 2]
    assert [c.tokens for c in trace.calls[0].completions] == [110, 110]


def test_a_replay_of_single_requests_over_litellm_counts_as_the_first_run() -> None:
    module = RevisionModule(scorer=checksum_of, width=1, depth=1)
    with fake_openai() as endpoint:
        lm = dspy.LM("openai/fake", api_base=endpoint.url, api_key="unused", engine="litellm")
        with dspy.context(lm=lm):
            first, again = module("Why?").trace, module("Why?").trace
    assert len(endpoint.requests) == 4
    assert first.generated_tokens == again.generated_tokens == 4 * 7
