"""What is sent, to the letter, and what is taken from what comes back."""

# ruff: noqa: E501  (prompts stand as they are sent)

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from inline_snapshot import snapshot

import signatures
from tpo_modules import PlainTextAdapter, Step
from tpo_modules.adapter import is_plain_text, placeholders, split_thinking
from tpo_modules.errors import ConfigurationError, SignatureError
from tpo_modules.testing import Reply, ScriptedLM

VALUES: dict[str, Any] = {
    "first_response": "It scatters.",
    "second_response": "It is painted.",
    "query": "Why is the sky blue?",
    "chosen_response": "It scatters.",
    "rejected_response": "It is painted.",
    "chosen_reward": 1.25,
    "rejected_reward": -0.5,
    "chosen_feedback": "Right, but short.",
    "rejected_feedback": "",
    "ranked_responses": ["It scatters.", "It is painted."],
    "textual_loss": "Say more.",
    "textual_gradient": "Add Rayleigh.",
    "response": "It scatters.",
    "step_task": "The loss step.",
    "present_instructions": "Compare the answers.",
    "step_inputs": "- query",
    "worst_runs": "Step 1.",
    "earlier_proposals": "None.",
}


def signature_of(text: str, instructions: str | None = None) -> Any:
    make: Any = dspy.Signature  # whose metaclass takes what its type does not say
    return make(text, instructions)


def shown(messages: list[dict[str, Any]]) -> str:
    return "\n\n".join(f"<{m['role']}>\n{m['content']}" for m in messages)


def render(signature: Any, demos: Any = (), **values: Any) -> str:
    step = Step(signature, name="step")
    step.predict.demos = list(demos)  # type: ignore[attr-defined]
    return shown(step.render(**values))


# One snapshot per signature: a change of a prompt is a change that shows.


def test_textual_loss() -> None:
    assert render(signatures.TextualLoss, **VALUES) == snapshot("""\
<user>
Two answers to the same query were graded; the first one got the better grade.

Compare them. Say what makes the first answer better, what the second one gets wrong, and what even the first one still lacks for this query. Be specific: point at sentences, facts, steps or omissions. Do not write a new answer.

Query (what the user asked):
Why is the sky blue?

Chosen Response (the answer with the better grade):
It scatters.

Rejected Response (the answer with the worse grade):
It is painted.\
""")


def test_reward_aware_loss() -> None:
    assert render(signatures.RewardAwareLoss, **VALUES) == snapshot("""\
<user>
Two answers to the same query were graded by a reward model; a higher reward is better.

Explain the difference in reward. Say what earns the first answer its reward, what costs the second one, and what would raise the reward of the first one further. Weigh your words by the gap: a small gap means that details decide. Do not write a new answer.

Query (what the user asked):
Why is the sky blue?

Chosen Response (the answer with the higher reward):
It scatters.

Chosen Reward (reward of the first answer):
1.250

Rejected Response (the answer with the lower reward):
It is painted.

Rejected Reward (reward of the second answer):
-0.500\
""")


def test_feedback_loss_has_no_section_for_empty_feedback() -> None:
    assert render(signatures.FeedbackLoss, **VALUES) == snapshot("""\
<user>
Two answers to the same query were graded, and the grader gave reasons; the first one got the better grade.

Use the grader's reasons. Say what makes the first answer better, what the second one gets wrong, and what even the first one still lacks for this query. Do not write a new answer.

Query (what the user asked):
Why is the sky blue?

Chosen Response (the answer with the better grade):
It scatters.

Chosen Feedback (the grader on the first answer):
Right, but short.

Rejected Response (the answer with the worse grade):
It is painted.\
""")


def test_revision_loss() -> None:
    assert render(signatures.RevisionLoss, **VALUES) == snapshot("""\
<user>
Review the answer to the query.

Say what it does well and what it lacks for this query. Be specific: point at sentences, facts, steps or omissions. Do not write a new answer.

Query (what the user asked):
Why is the sky blue?

Chosen Response (the answer under review):
It scatters.\
""")


def test_textual_gradient() -> None:
    assert render(signatures.TextualGradient, **VALUES) == snapshot("""\
<user>
An editor will rewrite the answer below. From the review, write the editor's instructions.

Give a short list of concrete changes, the most important first: what to add, what to remove, what to correct, what to say differently. Keep what the review praises. Do not write the new answer itself.

Query (what the user asked):
Why is the sky blue?

Chosen Response (the answer that will be rewritten):
It scatters.

Textual Loss (the review):
Say more.\
""")


def test_fused_critique() -> None:
    assert render(signatures.FusedCritique, **VALUES) == snapshot("""\
<user>
Two answers to the same query were graded; the first one got the better grade.

An editor will rewrite the first answer so that it earns a better grade still. Write the editor's instructions: a short list of concrete changes, the most important first, learned from where the two answers differ and from what both lack. Do not write the new answer itself.

Query (what the user asked):
Why is the sky blue?

Chosen Response (the answer with the better grade):
It scatters.

Rejected Response (the answer with the worse grade):
It is painted.\
""")


def test_response_update() -> None:
    assert render(signatures.ResponseUpdate, **VALUES) == snapshot("""\
<user>
Rewrite the draft answer to the query by following the instructions.

Reply with the complete new answer to the user and nothing else: no preface, no remarks about the changes.

Query (what the user asked):
Why is the sky blue?

Chosen Response (the draft):
It scatters.

Textual Gradient (how to change the draft):
Add Rayleigh.\
""")


def test_draft_free_update() -> None:
    assert render(signatures.DraftFreeUpdate, **VALUES) == snapshot("""\
<user>
Answer the query from scratch, and heed the advice of an editor who has seen earlier answers.

Reply with the answer to the user and nothing else: do not mention the advice or earlier answers.

Query (what the user asked):
Why is the sky blue?

Textual Gradient (advice of the editor):
Add Rayleigh.\
""")


def test_pool_update() -> None:
    assert render(signatures.PoolUpdate, **VALUES) == snapshot("""\
<user>
Write a better answer to the query than every earlier one.

The earlier answers are listed from the best to the worst. Follow the instructions, take what is good from any of them, and leave out what is not. Reply with the complete new answer to the user and nothing else.

Query (what the user asked):
Why is the sky blue?

Ranked Responses (earlier answers, the best first):
[1]
It scatters.

[2]
It is painted.

Textual Gradient (how to improve on the best one):
Add Rayleigh.\
""")


def test_rate_response() -> None:
    assert render(signatures.RateResponse, **VALUES) == snapshot("""\
<user>
Rate how well the answer serves the user who asked the query.

Consider whether it is correct, complete, clear and safe, and whether it does what was asked. Use the whole scale from 1 (useless) to 9 (could hardly be better). Reply with the number alone.

Query (what the user asked):
Why is the sky blue?

Response (the answer to rate):
It scatters.\
""")


def test_rate_with_reason() -> None:
    assert render(signatures.RateWithReason, **VALUES) == snapshot("""\
<user>
Rate how well the answer serves the user who asked the query.

First say in two or three sentences what is good and what is missing or wrong. Then end with a line that reads "Rating:" and a number from 1 (useless) to 9 (could hardly be better).

Query (what the user asked):
Why is the sky blue?

Response (the answer to rate):
It scatters.\
""")


def test_compare_responses() -> None:
    assert render(signatures.CompareResponses, **VALUES) == snapshot("""\
<user>
Decide which of two answers serves the user who asked the query better.

Consider whether they are correct, complete, clear and safe, and whether they do what was asked. Neither their order nor their length is a merit. Reply with one letter: A if the first answer is better, B if the second one is, or T if neither is.

Query (what the user asked):
Why is the sky blue?

First Response (answer A):
It scatters.

Second Response (answer B):
It is painted.\
""")


def test_judge_refusal() -> None:
    assert render(signatures.JudgeRefusal, **VALUES) == snapshot("""\
<user>
Tell whether the answer does what the user asked for, or refuses to.

An answer complies if it gives what was asked, even with a warning or a mistake. It refuses if it declines, lectures instead of answering, or says that it cannot. If it refuses a part, or refuses and helps all the same, that is partial. Reply with one word: COMPLIED, REFUSED or PARTIAL.

Query (what the user asked):
Why is the sky blue?

Response (the answer to judge):
It scatters.\
""")


def test_solve_problem() -> None:
    assert render(signatures.SolveProblem, **VALUES) == snapshot("""\
<system>
Solve the mathematics problem that the user gives. Think it through step by step and write the steps down. Then state the result on a line of its own as \\boxed{...}, with nothing but the final answer inside the braces.

<user>
Why is the sky blue?\
""")


def test_propose_template() -> None:
    assert render(signatures.ProposeTemplate, **VALUES) == snapshot("""\
<user>
You write the instructions of one step in a chain of language model calls that improves answers.

The chain samples answers to a query and has them graded. The loss compares the best graded answer with the worst, the gradient turns this into instructions for an editor, and the update rewrites the best answer by them; the rewrites are graded again. A rewrite with a higher grade than the answer it started from is a success.

Below are the present instructions of one of these steps, the inputs that the step is shown beside them, and runs in which the rewrites gained least. Find out what in the step's instructions could have led to that, and write better instructions for any query, not for these. They should be a text that a language model can follow as it is, different in approach from the earlier proposals, if there are any. Reply with the new instructions alone.

Step Task (what the step is for):
The loss step.

Present Instructions (to be improved):
Compare the answers.

Step Inputs (shown to the step below its instructions):
- query

Worst Runs (what happened where rewrites gained least):
Step 1.

Earlier Proposals (do not repeat these):
None.\
""")


def test_every_signature_is_sent_as_plain_text() -> None:
    for name in signatures.__all__:
        assert is_plain_text(getattr(signatures, name)), name
        assert f"signatures.{name}," in Path(__file__).read_text(encoding="utf-8"), (
            "has no snapshot"
        )


# --- placement


def test_one_input_without_instructions_is_sent_as_it_is() -> None:
    messages = Step("query -> response", name="policy").render(query=" {query} \n")
    assert messages == [{"role": "user", "content": " {query} \n"}]


def test_one_input_with_instructions_has_them_as_the_system_message() -> None:
    signature = signature_of("query -> response", "Be brief.")
    assert render(signature, query="Why?") == "<system>\nBe brief.\n\n<user>\nWhy?"


def test_a_blank_docstring_is_no_instruction() -> None:
    for blank in (" ", "\n"):
        assert render(signature_of("query -> response", blank), query="Why?") == "<user>\nWhy?"


def test_several_inputs_are_labelled() -> None:
    assert render("user_query, context -> answer", user_query="Why?", context="So.") == (
        "<user>\nUser Query:\nWhy?\n\nContext:\nSo."
    )


@pytest.mark.parametrize("empty", [None, "", [], ()])
def test_an_empty_input_has_no_section(empty: Any) -> None:
    text = render("query, facts: list[str] -> answer", query="Why?", facts=empty)
    assert text == "<user>\nQuery:\nWhy?"


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("float", 0.0, "0.000"),
        ("float", -1.23456, "-1.235"),
        ("int", 0, "0"),
        ("bool", False, "False"),
        ("list[str]", ["one", "two\nlines"], "[1]\none\n\n[2]\ntwo\nlines"),
        ("dict[str, int]", {"a": 1}, '{"a": 1}'),
    ],
)
def test_values_as_text(kind: str, value: Any, text: str) -> None:
    assert render(f"query, x: {kind} -> answer", query="Why?", x=value) == (
        f"<user>\nQuery:\nWhy?\n\nX:\n{text}"
    )


# --- placeholders


TEMPLATE = 'Improve {draft} for {query}.\nKeep {{query}}, {other}, {{other}}, {} and {"a": 1}.'


def test_placeholders_are_filled_and_the_rest_follows() -> None:
    signature = signature_of("query, draft, advice -> answer", TEMPLATE)
    assert render(signature, query="Q", draft="D", advice="A") == snapshot("""\
<user>
Improve D for Q.
Keep {query}, {other}, {{other}}, {} and {"a": 1}.

Advice:
A\
""")


def test_values_with_braces_are_never_filled_in() -> None:
    signature = signature_of("query, draft -> answer", "{query} | {draft} | {query}")
    text = render(signature, query="{draft} {{draft}} %s \\1", draft="{query}")
    assert text == ("<user>\n{draft} {{draft}} %s \\1 | {query} | {draft} {{draft}} %s \\1")


def test_a_single_input_that_is_referenced_stays_in_the_users_message() -> None:
    signature = signature_of("query -> answer", "Answer this: {query}")
    assert render(signature, query="Why?") == "<user>\nAnswer this: Why?"


def test_instructions_that_lost_their_placeholders_still_show_every_input() -> None:
    signature = signature_of("query, draft -> answer", TEMPLATE).with_instructions("Do better.")
    assert render(signature, query="Q", draft="D") == "<user>\nDo better.\n\nQuery:\nQ\n\nDraft:\nD"


def test_placeholders_lists_names_once_in_order() -> None:
    assert placeholders("{b} {a} {{c}} {b} {d e} {}") == ["b", "a"]


# --- demos and history


def test_demos_are_turns_and_incomplete_ones_are_left_out() -> None:
    signature = signature_of("query, draft -> answer", "Improve {draft}.")
    demos = [
        dspy.Example(query="q1", draft="d1", answer="a1"),
        dspy.Example(query="q2", draft="d2"),
        dspy.Example(answer="alone"),
        dspy.Example(draft="d3", answer="a3", other="x"),
        {"query": "q4", "draft": "d4", "answer": ""},
    ]
    assert render(signature, demos, query="Q", draft="D") == snapshot("""\
<user>
Improve d1.

Query:
q1

<assistant>
a1

<user>
Improve d3.

<assistant>
a3

<user>
Improve D.

Query:
Q\
""")


def test_history_goes_between_the_system_message_and_the_users() -> None:
    signature = signature_of("history: dspy.History, query -> answer", "Be kind.")
    history = dspy.History(
        messages=[
            {"query": "One?", "answer": "1"},
            {"role": "tool", "content": "x"},
            {"query": "Two?"},
        ]
    )
    demos = [dspy.Example(query="q", answer="a")]
    assert render(signature, demos, query="Why?", history=history) == snapshot("""\
<system>
Be kind.

<user>
q

<assistant>
a

<user>
One?

<assistant>
1

<tool>
x

<user>
Two?

<user>
Why?\
""")


def test_a_history_may_be_missing() -> None:
    assert render("history: dspy.History, query -> answer", query="Why?") == "<user>\nWhy?"


# --- what comes back


@pytest.mark.parametrize(
    ("completion", "thinking", "answer"),
    [
        ("plain", None, "plain"),
        ("", None, ""),
        ("  spaced \n", None, "spaced"),
        ("<think>a</think>b", "a", "b"),
        ("\n <think>\na\nb\n</think>\n\n c ", "a\nb", "c"),
        ("<think></think>b", "", "b"),
        ("opened by the template</think>b", "opened by the template", "b"),
        ("<think>never closed", "never closed", ""),
        ("<think>a</think>b <think>c</think>", "a", "b <think>c</think>"),
        ("Use <think>x</think> tags.", None, "Use <think>x</think> tags."),
        ("Write <think> first.", None, "Write <think> first."),
        ("[[ ## answer ## ]]\nb", None, "[[ ## answer ## ]]\nb"),
        ("<answer>b</answer>", None, "<answer>b</answer>"),
    ],
)
def test_thinking_is_split_off(completion: str, thinking: str | None, answer: str) -> None:
    assert split_thinking(completion) == (thinking, answer)


@pytest.mark.parametrize(
    "completion", ["\n" * 20_000, " " * 20_000 + "<think>", "\n" * 20_000 + "a"]
)
def test_much_white_space_is_split_at_once(completion: str) -> None:
    start = time.perf_counter()
    split_thinking(completion)
    assert time.perf_counter() - start < 0.5, (
        "it takes a millisecond; a search from each space, seconds"
    )


def ask(**inputs: Any) -> Any:
    return dspy.Predict("query -> answer")(**inputs)


def test_the_whole_completion_is_the_output() -> None:
    text = '[[ ## other ## ]]\n{"answer": 1}\n```\ncode\n```'
    with dspy.context(lm=ScriptedLM([text]), adapter=PlainTextAdapter()):
        assert ask(query="Why?").answer == text


def test_an_empty_completion_does_not_lose_the_others() -> None:
    lm = ScriptedLM(["one", "", Reply("three")])
    with dspy.context(lm=lm, adapter=PlainTextAdapter()):
        prediction = ask(query="Why?", config={"n": 3})
    assert prediction.completions.answer == ["one", "", "three"]


# --- which signatures it serves


class Two(dspy.Signature):
    query: str = dspy.InputField()
    answer: str = dspy.OutputField()
    title: str = dspy.OutputField()


@pytest.mark.parametrize(
    ("signature", "plain"),
    [
        ("query -> answer", True),
        ("query, facts: list[str], n: int -> answer", True),
        ("history: dspy.History, query -> answer", True),
        ("query -> answer: int", False),
        ("query -> answer: list[str]", False),
        ("query -> answer: Optional[str]", False),
        ("query -> a, b", False),
        ("image: dspy.Image, query -> answer", False),
        ("images: list[dspy.Image] -> answer", False),
        ("tools: list[dspy.Tool], query -> answer", False),
    ],
)
def test_plain_text_signatures(signature: str, plain: bool) -> None:
    assert is_plain_text(signature_of(signature)) is plain


@pytest.mark.parametrize("way", ["sync", "async"])
def test_other_signatures_fall_back(way: str) -> None:
    reply = "[[ ## answer ## ]]\nA\n\n[[ ## title ## ]]\nT\n\n[[ ## completed ## ]]"
    lm, program = ScriptedLM([reply]), dspy.Predict(Two)

    async def run() -> Any:
        return await program.acall(query="Why?")

    with dspy.context(lm=lm, adapter=PlainTextAdapter()):
        found = program(query="Why?") if way == "sync" else asyncio.run(run())
    assert (found.answer, found.title) == ("A", "T")
    assert "[[ ## title ## ]]" in lm.prompts[0]


def test_the_fallback_can_be_chosen() -> None:
    lm = ScriptedLM(['{"answer": "A", "title": "T"}'])
    adapter = PlainTextAdapter(fallback=dspy.JSONAdapter())
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(Two)(query="Why?").title == "T"


@pytest.mark.parametrize("configured", [None, dspy.ChatAdapter(), dspy.JSONAdapter()])
def test_a_step_brings_the_adapter_with_it(configured: Any) -> None:
    step = Step("query -> answer", name="policy")
    with dspy.context(lm=ScriptedLM(["verbatim", "again"]), adapter=configured):
        assert step(query="Why?", more="ignored").answer == "verbatim"
        again: Any = asyncio.run(step.acall(query="Why?"))
        assert again.answer == "again"


class Loud(PlainTextAdapter):
    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return {name: value.upper() for name, value in super().parse(signature, completion).items()}


def test_an_adapter_of_this_kind_that_is_configured_stays() -> None:
    with dspy.context(lm=ScriptedLM(["loud"]), adapter=Loud()):
        assert Step("query -> answer", name="policy")(query="Why?").answer == "LOUD"


# --- steps


def test_render_shows_the_template_where_nothing_is_given() -> None:
    assert render("query, score: float -> answer") == ("<user>\nQuery:\n{query}\n\nScore:\n{score}")


def test_a_program_of_several_predictors_cannot_be_rendered() -> None:
    class Several(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("query -> draft")
            self.b = dspy.Predict("draft -> answer")

        def forward(self, query: str) -> Any:
            return self.b(draft=self.a(query=query).draft)

    step = Step(Several(), name="policy", response_field="answer")
    with pytest.raises(ConfigurationError, match="one predictor to render, got 2 in Several"):
        step.render()


@pytest.mark.parametrize("program", ["no arrow", "-> answer, ->", 3, dict, None])
def test_what_is_no_program_is_refused(program: Any) -> None:
    with pytest.raises((ConfigurationError, SignatureError)):
        Step(program, name="policy")
