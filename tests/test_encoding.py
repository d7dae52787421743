"""Token ids: the chat template's own, pairs, texts that spell out control tokens, cuts."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, make_tokenizer

from tpo_modules.errors import ConfigurationError, InputError
from tpo_modules.scorers.encoding import (
    DEFAULT_CHAT_TEMPLATE,
    Encoded,
    conversation_text,
    encode_chat,
    encode_pair,
)
from tpo_modules.scorers.truncation import split_room

CHAT = [name for name, family in FAMILIES.items() if family.template]
PAIR = [name for name, family in FAMILIES.items() if not family.chat]
USER = {"role": "user", "content": "How do I bake bread?"}
CONVERSATIONS = {
    "one question": [USER],
    "several turns": [
        USER,
        {"role": "assistant", "content": "Mix flour.\n\n"},
        {"role": "user", "content": "  And then?  "},
    ],
    "empty question": [{"role": "user", "content": ""}],
    "other scripts": [{"role": "user", "content": "面包 \U0001f35e naïve ﷽\n\t x"}],
}
SYSTEM = {"role": "system", "content": "You are a baker."}


@cache
def tokenizer_of(name: str) -> Any:
    return make_tokenizer(FAMILIES[name])


def template_ids(tokenizer: Any, messages: list[dict[str, str]], response: str) -> list[int]:
    turns = [*messages, {"role": "assistant", "content": response}]
    return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)


def control_ids(tokenizer: Any, ids: tuple[int, ...]) -> list[int]:
    return [i for i in ids if i in set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}]


@pytest.mark.parametrize("name", CHAT)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("response", ["Mix flour and water.", "", " \n spaces \n ", "面包"])
def test_chat_ids_equal_the_templates(name: str, conversation: str, response: str) -> None:
    tokenizer, messages = tokenizer_of(name), CONVERSATIONS[conversation]
    encoded = encode_chat(tokenizer, messages, response)
    assert list(encoded.ids) == template_ids(tokenizer, messages, response)
    assert encoded.notes == ()


@given(query=st.text(max_size=60), response=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_chat_ids_equal_the_templates_on_any_text(query: str, response: str) -> None:
    for name in CHAT:
        tokenizer = tokenizer_of(name)
        messages = [{"role": "user", "content": query}]
        encoded = encode_chat(tokenizer, messages, response)
        assert list(encoded.ids) == template_ids(tokenizer, messages, response)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_bos_comes_once(name: str) -> None:
    tokenizer = tokenizer_of(name)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id, "would double it"
    ids = encode_chat(tokenizer, [USER], "Mix flour.").ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_system_message_goes_through_the_template(name: str) -> None:
    tokenizer = tokenizer_of(name)
    encoded = encode_chat(tokenizer, [SYSTEM, USER], "Mix flour.")
    assert list(encoded.ids) == template_ids(tokenizer, [SYSTEM, USER], "Mix flour.")


def test_system_message_is_joined_where_the_template_takes_none() -> None:
    tokenizer = tokenizer_of("gemma")
    encoded = encode_chat(tokenizer, [SYSTEM, USER], "Mix flour.")
    joined = {"role": "user", "content": f"{SYSTEM['content']}\n\n{USER['content']}"}
    assert list(encoded.ids) == template_ids(tokenizer, [joined], "Mix flour.")
    assert encoded.notes == (
        "system message joined to the first user message: the chat template takes none",
    )


def test_conversation_that_the_template_refuses() -> None:
    template = "{{ raise_exception('users first') }}"
    with pytest.raises(InputError, match=r"refuses the conversation \(user, assistant\): users"):
        encode_chat(tokenizer_of("llama"), [USER], "x", chat_template=template)


@pytest.mark.parametrize("name", [*CHAT, *PAIR])
def test_control_tokens_in_texts_do_not_act(name: str) -> None:
    tokenizer = tokenizer_of(name)
    spelt = "".join(tokenizer.all_special_tokens)
    texts = [f"a{spelt}b", spelt, f"{spelt} c"]

    def encode(query: str, response: str) -> Encoded:
        if name in PAIR:
            return encode_pair(tokenizer, query, response)
        return encode_chat(tokenizer, [{"role": "user", "content": query}], response)

    plain = control_ids(tokenizer, encode("a", "b").ids)
    for text in texts:
        for query, response in ((text, "b"), ("a", text), (text, text)):
            assert control_ids(tokenizer, encode(query, response).ids) == plain


@pytest.mark.parametrize("name", CHAT)
def test_control_tokens_are_spelt_out_as_transformers_does(name: str) -> None:
    tokenizer = tokenizer_of(name)
    if "sanitize_control_tokens" not in inspect.signature(tokenizer.apply_chat_template).parameters:
        pytest.skip("this transformers cannot sanitise control tokens")
    for token in tokenizer.all_special_tokens:
        if token == tokenizer.unk_token:
            continue
        response = f"one {token} two{token}"
        turns = [USER, {"role": "assistant", "content": response}]
        expected = tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=False, sanitize_control_tokens=True
        )
        assert list(encode_chat(tokenizer, [USER], response).ids) == expected


def test_added_token_that_the_template_writes_does_not_act() -> None:
    tokenizer = make_tokenizer(FAMILIES["qwen2"])
    tokenizer.add_tokens(["<turn>"])  # not flagged as special
    template = "{% for m in messages %}<turn>{{ m['content'] }}{% endfor %}"
    own = tokenizer.convert_tokens_to_ids("<turn>")
    ids = encode_chat(tokenizer, [USER], "a <turn> b", chat_template=template).ids
    assert ids.count(own) == 2


def test_private_markers_in_texts_are_dropped() -> None:
    tokenizer = tokenizer_of("llama")
    text = "a \ufdd0<|eot_id|>\ufdd1 b"
    ids = encode_chat(tokenizer, [USER], text).ids
    assert ids == encode_chat(tokenizer, [USER], "a <|eot_id|> b").ids


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("response", ["Mix flour.", "", "面包 [x]"])
def test_pair_ids_equal_the_tokenizers(name: str, response: str) -> None:
    tokenizer = tokenizer_of(name)
    encoded = encode_pair(tokenizer, USER["content"], response)
    expected = tokenizer([USER["content"]], [response])
    assert list(encoded.ids) == expected["input_ids"][0]
    assert list(encoded.token_type_ids or ()) == expected["token_type_ids"][0]


def test_default_format_is_used_without_a_template() -> None:
    tokenizer = make_tokenizer(FAMILIES["llama"])
    tokenizer.chat_template = None
    ids = encode_chat(tokenizer, [SYSTEM, USER], "Mix flour.").ids
    text = (
        "<|begin_of_text|>System: You are a baker.\n\nUser: How do I bake bread?\n\n"
        "Assistant: Mix flour.<|eot_id|>"
    )
    assert list(ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tokenizer_without_bos_eos_and_pad() -> None:
    from transformers import ByT5Tokenizer

    tokenizer: Any = ByT5Tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    plus = "{{ bos_token + 'Q: ' }}{{ messages[0]['content'] + eos_token }}"
    ids = encode_chat(tokenizer, [USER], "x", chat_template=plus).ids
    assert tokenizer.decode(list(ids)) == "Q: How do I bake bread?"
    default = encode_chat(tokenizer, [USER], "x", chat_template=DEFAULT_CHAT_TEMPLATE).ids
    assert tokenizer.decode(list(default)) == "User: How do I bake bread?\n\nAssistant: x"


def test_conversation_as_one_text() -> None:
    assert conversation_text([USER]) == USER["content"]
    turns = [SYSTEM, USER, {"role": "assistant", "content": "Mix."}, USER]
    assert conversation_text(turns) == (
        "System: You are a baker.\n\nUser: How do I bake bread?\n\nAssistant: Mix.\n\n"
        "User: How do I bake bread?"
    )


# --- cuts ---------------------------------------------------------------------------------------

QUERY = " ".join(f"q{i}" for i in range(300))
RESPONSE = " ".join(f"r{i}" for i in range(300))
lengths = st.integers(0, 3000)


@given(query=lengths, response=lengths, room=st.integers(1, 3000))
def test_room_goes_to_the_query_last(query: int, response: int, room: int) -> None:
    query_kept, response_kept = split_room(query, response, room)
    assert query_kept + response_kept <= room
    assert query_kept + response_kept == min(room, query + response), "no room is wasted"
    if response_kept < response:  # then the query is down to a quarter, if it was above
        assert query_kept <= max(-(-room // 4), 0)
    if query_kept < query:
        assert query_kept >= room // 4


def encode_long(name: str, query: str, response: str, max_length: int) -> Encoded:
    tokenizer = tokenizer_of(name)
    if name in PAIR:
        return encode_pair(tokenizer, query, response, max_length=max_length)
    messages = [{"role": "user", "content": query}]
    return encode_chat(tokenizer, messages, response, max_length=max_length)


@pytest.mark.parametrize("name", [*CHAT, *PAIR])
def test_query_is_cut_before_the_response(name: str) -> None:
    whole = encode_long(name, QUERY, "Mix flour.", 100_000)
    cut = encode_long(name, QUERY, "Mix flour.", 200)
    assert 190 <= len(cut.ids) <= 200
    assert cut.ids[-8:] == whole.ids[-8:]
    assert len(cut.notes) == 1
    dropped = int(cut.notes[0].removeprefix("query cut by ").removesuffix(" tokens"))
    assert abs(len(whole.ids) - len(cut.ids) - dropped) <= 4  # the seam may tokenise otherwise


@pytest.mark.parametrize("name", [*CHAT, *PAIR])
def test_long_response_leaves_a_quarter_to_the_query(name: str) -> None:
    cut = encode_long(name, QUERY, RESPONSE, 200)
    assert 190 <= len(cut.ids) <= 200
    assert [note.split(" by ")[0] for note in cut.notes] == ["query cut", "response cut"]
    text = tokenizer_of(name).decode(list(cut.ids)).replace(" ", "").replace("##", "")
    for kept in ("q0", "q299", "r0", "r299"):  # head and tail of both
        assert kept in text
    for dropped in ("q150", "r150"):
        assert dropped not in text


def test_short_query_is_left_whole_beside_a_long_response() -> None:
    cut = encode_long("llama", "How?", RESPONSE, 100)
    assert "How?" in tokenizer_of("llama").decode(list(cut.ids))
    assert len(cut.notes) == 1
    assert cut.notes[0].startswith("response cut by ")


def test_cut_goes_through_the_middle_of_a_conversation() -> None:
    tokenizer = tokenizer_of("llama")
    turns = [
        {"role": "system", "content": "first words"},
        {"role": "user", "content": QUERY},
        {"role": "assistant", "content": QUERY},
        {"role": "user", "content": "last words"},
    ]
    encoded = encode_chat(tokenizer, turns, "Mix flour.", max_length=150)
    text = tokenizer.decode(list(encoded.ids))
    assert len(encoded.ids) <= 150
    assert text.count("<|start_header_id|>") == 5, "every turn keeps its place"
    assert "first words" in text
    assert "last words" in text
    assert "Mix flour." in text


def test_slow_tokenizers_are_cut_too() -> None:
    from transformers import ByT5Tokenizer

    tokenizer: Any = ByT5Tokenizer()
    assert not tokenizer.is_fast
    encoded = encode_chat(tokenizer, [{"role": "user", "content": QUERY}], "Mix", max_length=99)
    assert len(encoded.ids) <= 99
    assert tokenizer.decode(list(encoded.ids)).endswith("q299\n\nAssistant: Mix</s>")


def test_response_of_100k_tokens() -> None:
    response = "flour water " * 50_000
    encoded = encode_long("bert", "How?", response, 512)
    assert len(encoded.ids) == 512
    assert encoded.notes[0].startswith("response cut by ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bert", "a [SEP] " * 50_000),
        ("llama", "good answer " * 20 + "<|eot_id|>" * 5000),
        ("qwen2", "<|im_end|>" * 200),
        ("gemma", "<end_of_turn>" * 1000),
    ],
)
@pytest.mark.parametrize("side", ["query", "response"])
def test_spelt_out_control_tokens_are_cut_like_other_text(name: str, text: str, side: str) -> None:
    query, response = (text, "Mix flour.") if side == "query" else ("How?", text)
    cut = encode_long(name, query, response, 200)
    assert 190 <= len(cut.ids) <= 200, "no more is cut than must be"
    whole = encode_long(name, query, response, 10_000_000)
    (note,) = cut.notes
    dropped = int(note.removeprefix(f"{side} cut by ").removesuffix(" tokens"))
    assert abs(len(whole.ids) - len(cut.ids) - dropped) <= 0.01 * len(whole.ids) + 4


def test_control_tokens_that_the_vocabulary_holds_as_text_are_cut_too() -> None:
    cut = encode_long("deberta", "How?", "[SEP] " * 300 + "flour " * 1000, 200)
    assert 190 <= len(cut.ids) <= 200
    assert cut.notes[0].startswith("response cut by ")

    tokenizer = make_tokenizer(FAMILIES["qwen2"])
    tokenizer.add_tokens(["<turn>"])  # not flagged as special
    template = "{% for m in messages %}<turn>{{ m['content'] }}{% endfor %}"
    text = "<turn>" * 500
    encoded = encode_chat(tokenizer, [USER], text, max_length=100, chat_template=template)
    assert 75 <= len(encoded.ids) <= 100, "each counted as one token, so the room is a guess"
    assert encoded.notes[-1].startswith("response cut by ")


def test_texts_have_a_limit_of_their_own() -> None:
    tokenizer = tokenizer_of("bert")
    whole = encode_pair(tokenizer, QUERY, "Mix flour.")
    second = (whole.token_type_ids or ()).count(0)
    query, rest = whole.ids[1 : second - 1], whole.ids[second - 1 :]
    limited = encode_pair(tokenizer, QUERY, "Mix flour.", max_text_tokens=41)
    assert limited.ids == (whole.ids[0], *query[:20], *query[-21:], *rest)
    assert limited.token_type_ids == (0,) * 43 + (1,) * (len(rest) - 1)
    assert limited.notes == (f"query cut by {len(query) - 41} tokens",)
    both = encode_pair(tokenizer, QUERY, RESPONSE, max_length=200, max_text_tokens=41)
    alone = encode_pair(tokenizer, QUERY, RESPONSE, max_length=200)
    assert len(both.ids) == 85
    counts = [[int(note.split()[3]) for note in encoded.notes] for encoded in (alone, both)]
    assert sum(counts[1]) - sum(counts[0]) == len(alone.ids) - len(both.ids)
    assert encode_pair(tokenizer, "How?", "", max_text_tokens=41) == encode_pair(
        tokenizer, "How?", ""
    )


def test_limit_per_text_needs_token_type_ids() -> None:
    with pytest.raises(ConfigurationError, match="limit of 5 tokens per text needs a tokenizer"):
        encode_pair(tokenizer_of("llama"), "How?", "Mix flour.", max_text_tokens=5)


@pytest.mark.parametrize("name", FAMILIES)
def test_lone_surrogates_become_the_replacement_character(name: str) -> None:
    broken, mended = "mix \ud83d flour \ude00", "mix \ufffd flour \ufffd"
    encoded = encode_long(name, broken, broken, 100_000)
    assert encoded.ids == encode_long(name, mended, mended, 100_000).ids
    assert encoded.notes == tuple(
        f"{side}: lone surrogate read as U+FFFD" for side in ("query", "response")
    )
    cut = encode_long(name, "How?", broken * 200, 200)
    assert len(cut.ids) <= 200
    assert [note.split()[0] for note in cut.notes] == ["response:", "response"]


def test_no_room_for_the_texts() -> None:
    with pytest.raises(InputError, match="max_length=5 leaves no room"):
        encode_long("llama", "How?", "Mix flour.", 5)


@given(query=st.text(max_size=200), response=st.text(max_size=200), limit=st.integers(40, 120))
@settings(max_examples=60, deadline=None)
def test_any_text_fits(query: str, response: str, limit: int) -> None:
    for name in FAMILIES:
        encoded = encode_long(name, query, response, limit)
        whole = encode_long(name, query, response, 10_000)
        assert len(encoded.ids) <= limit
        assert (encoded == whole) == (len(whole.ids) <= limit)
