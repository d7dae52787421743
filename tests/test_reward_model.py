"""`RewardModelScorer` against plain `transformers`, on tiny models saved as real folders."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import math
import pickle
import random
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_models import FAMILIES, TinyModels, make_tokenizer, plain_reward

from tpo_modules.errors import (
    ConfigurationError,
    InputError,
    ModelNotFoundError,
    ScorerError,
)
from tpo_modules.scorers import reward_model as module
from tpo_modules.scorers.base import Query, Reward
from tpo_modules.scorers.loading import LoadedModel
from tpo_modules.scorers.reward_model import RewardModelScorer
from tpo_modules.scorers.sources import LoadOptions

QUERY = "How do I bake bread?"
WORDS = ["mix", "flour", "water", "salt", "yeast", "then", "wait", "dough", "12", "(x", "+", "y)"]
TOLERANCE = 1e-4
DECODERS = ["llama", "qwen2", "gemma", "gpt2"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("models"))


def make_scorer(folder: Path | str, **options: Any) -> RewardModelScorer:
    chosen: dict[str, Any] = {"dtype": "float32", "device": "cpu", **options}
    return RewardModelScorer(folder, **chosen)


def make_responses(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    lengths = [0, 1, *(rng.randint(2, 60) for _ in range(count - 2))]
    return [" ".join(rng.choices(WORDS, k=length)) for length in lengths]


def user(text: str = QUERY) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# --- conformance --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_rewards_equal_a_plain_forward(tiny: TinyModels, name: str) -> None:
    folder = tiny.folder(name)
    responses = make_responses(14)
    alone = {r: plain_reward(folder, user(), r)[0] for r in responses}
    assert max(alone.values()) - min(alone.values()) > 0.1, "the model tells them apart"
    rng = random.Random(1)
    for batch_size, max_tokens in ((1, 16384), (3, 16384), (16, 16384), (16, 150)):
        scorer = make_scorer(folder, batch_size=batch_size, max_batch_tokens=max_tokens)
        for _ in range(3):
            batch = rng.choices(responses, k=rng.randint(1, 20))
            rewards = scorer.score(QUERY, batch)
            assert rewards == pytest.approx([alone[r] for r in batch], abs=TOLERANCE)


@pytest.mark.parametrize("name", DECODERS)
def test_left_padding_changes_nothing(tiny: TinyModels, name: str) -> None:
    responses = make_responses(12)
    right = make_scorer(tiny.folder(name)).score(QUERY, responses)
    left = make_scorer(tiny.folder(name), padding_side="left").score(QUERY, responses)
    assert left == pytest.approx(right, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_left_padding_is_refused_for_encoders(tiny: TinyModels, name: str) -> None:
    with pytest.raises(ConfigurationError, match="reads the first token"):
        make_scorer(tiny.folder(name), padding_side="left").load()


def test_model_whose_padding_is_its_end_token(tiny: TinyModels) -> None:
    tokenizer = make_tokenizer(FAMILIES["llama"])
    folder = tiny.folder("llama", pad_token_id=tokenizer.eos_token_id)
    responses = make_responses(10)
    alone = [plain_reward(folder, user(), r)[0] for r in responses]
    assert make_scorer(folder).score(QUERY, responses) == pytest.approx(alone, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_system_messages_and_turns(tiny: TinyModels, name: str) -> None:
    turns = [
        {"role": "system", "content": "You are a baker."},
        *user("What do I need?"),
        {"role": "assistant", "content": "Flour."},
        *user(),
    ]
    query = Query.from_messages(turns)
    responses = make_responses(5)
    alone = [plain_reward(tiny.folder(name), turns, r)[0] for r in responses]
    scorer = make_scorer(tiny.folder(name))
    assert scorer.score(query, responses) == pytest.approx(alone, abs=TOLERANCE)
    assert scorer.score(QUERY, responses) != pytest.approx(alone, abs=TOLERANCE)


def test_pairs_of_different_queries(tiny: TinyModels) -> None:
    folder = tiny.folder("qwen2")
    pairs = [(f"{QUERY} {i}", response) for i, response in enumerate(make_responses(9))]
    alone = [plain_reward(folder, user(query), response)[0] for query, response in pairs]
    assert make_scorer(folder).score_pairs(pairs) == pytest.approx(alone, abs=TOLERANCE)


def test_truncation_saved_in_a_tokenizer_does_not_count(tiny: TinyModels, tmp_path: Path) -> None:
    from tiny_models import save_tiny

    folder = save_tiny(tmp_path, "bert")
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    saved["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (folder / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    one, other = make_scorer(folder).score(QUERY, ["mix flour " * 9, "mix flour " * 9 + "wait"])
    assert one != other


# --- heads --------------------------------------------------------------------------------------


def test_several_outputs_need_a_choice(tiny: TinyModels) -> None:
    labels = {"id2label": {0: "bad", 1: "good", 2: "odd"}}
    folder = tiny.folder("llama", num_labels=3, **labels)
    expected = plain_reward(folder, user(), "Mix flour.")
    with pytest.raises(ConfigurationError, match=r"3 outputs.*0 \(bad\), 1 \(good\), 2 \(odd\)"):
        make_scorer(folder).score(QUERY, ["Mix flour."])
    for output, index in ((0, 0), (2, 2), ("good", 1)):
        rewards = make_scorer(folder, output=output).score(QUERY, ["Mix flour."])
        assert rewards == pytest.approx([expected[index]], abs=TOLERANCE)
    for output in (3, -1, "nice"):
        with pytest.raises(ConfigurationError, match="has no output"):
            make_scorer(folder, output=output).load()


def test_dtype_is_the_saved_one_or_as_asked(tiny: TinyModels) -> None:
    exact = make_scorer(tiny.folder("llama")).score(QUERY, ["Mix flour."])
    rough = make_scorer(tiny.folder("llama"), dtype="bfloat16").score(QUERY, ["Mix flour."])
    assert rough != exact
    assert rough == pytest.approx(exact, abs=1.0)
    auto = RewardModelScorer(tiny.folder("llama"), device="cpu").score(QUERY, ["Mix flour."])
    assert auto == pytest.approx(exact, abs=TOLERANCE)


# --- lengths ------------------------------------------------------------------------------------


def test_cuts_are_noted_on_the_reward(tiny: TinyModels) -> None:
    scorer = make_scorer(tiny.folder("llama"), max_length=120)
    rewards = scorer.score(QUERY, ["mix flour " * 200, "Mix flour."])
    long, short = (reward for reward in rewards if isinstance(reward, Reward))
    assert len(long.notes) == 1
    assert long.notes[0].startswith("response cut by ")
    assert short.notes == ()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_response_of_100k_tokens_is_cut_to_the_models_limit(tiny: TinyModels, name: str) -> None:
    rewards = make_scorer(tiny.folder(name)).score(QUERY, ["flour water " * 50_000, ""])
    assert all(math.isfinite(reward) for reward in rewards)
    assert isinstance(rewards[0], Reward)
    assert rewards[0].notes[-1].startswith("response cut by ")


def test_rotary_positions_may_be_extended_and_learned_ones_may_not(tiny: TinyModels) -> None:
    for name in ("gpt2", "bert"):
        with pytest.raises(ConfigurationError, match=r"to be at most 512; got 513"):
            make_scorer(tiny.folder(name), max_length=513).load()
        rewards = make_scorer(tiny.folder(name), max_length=512).score(QUERY, ["mix " * 1200])
        assert all(math.isfinite(reward) for reward in rewards)
    for name in ("llama", "deberta"):
        (reward,) = make_scorer(tiny.folder(name), max_length=3000).score(QUERY, ["mix " * 600])
        assert isinstance(reward, Reward)
        assert math.isfinite(reward)
        assert reward.notes == ()


def test_positions_that_begin_behind_the_padding_index(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tokenizer = make_tokenizer(FAMILIES["bert"])
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=66,
        pad_token_id=1,
        type_vocab_size=2,
    )
    config.num_labels = 1
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (reward,) = make_scorer(tmp_path).score(QUERY, ["mix " * 200])
    assert math.isfinite(reward)
    with pytest.raises(ConfigurationError, match=r"to be at most 64; got 66"):
        make_scorer(tmp_path, max_length=66).load()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_control_tokens_spelt_out_at_length_are_scored(tiny: TinyModels, name: str) -> None:
    spelt = {"llama": "<|eot_id|>", "bert": "[SEP] "}[name]
    scorer = make_scorer(tiny.folder(name))
    rewards = scorer.score(QUERY, [spelt * 300, "Mix flour. " * 20 + spelt * 2000])
    for reward in rewards:
        assert isinstance(reward, Reward)
        assert math.isfinite(reward)
        assert reward.notes[-1].startswith("response cut by ")


@pytest.mark.parametrize("name", FAMILIES)
def test_lone_surrogate_is_noted_and_the_others_are_scored(tiny: TinyModels, name: str) -> None:
    scorer = make_scorer(tiny.folder(name))
    good, cut = scorer.score(QUERY, ["Mix flour.", "Mix flour. \ud83d"])
    assert good == pytest.approx(scorer.score(QUERY, ["Mix flour."])[0], abs=TOLERANCE)
    assert isinstance(cut, Reward)
    assert math.isfinite(cut)
    assert cut.notes == ("response: lone surrogate read as U+FFFD",)


def test_input_that_cannot_fit_is_recorded(tiny: TinyModels) -> None:
    (reward,) = make_scorer(tiny.folder("llama"), max_length=5).score(QUERY, ["Mix flour."])
    assert isinstance(reward, Reward)
    assert math.isnan(reward)
    assert "leaves no room" in reward.notes[0]


def test_no_responses_no_rewards(tiny: TinyModels) -> None:
    scorer = make_scorer(tiny.folder("llama"))
    assert scorer.score(QUERY, []) == []
    assert scorer.score_pairs([]) == []


# --- what the model does ------------------------------------------------------------------------


class Spy:
    """Stands in for a model: passes calls on, and keeps the shapes of its inputs."""

    __module__ = "transformers.models.spy"

    def __init__(self, model: Any, before: Callable[[Any], None] | None = None) -> None:
        self.model = model
        self.config = model.config
        self.before = before
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, **inputs: Any) -> Any:
        self.shapes.append(tuple(inputs["input_ids"].shape))
        if self.before is not None:
            self.before(inputs["input_ids"])
        return self.model(**inputs)


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Spy]]:
    """Put a spy around every model that is loaded from now on."""

    def spy_on(before: Callable[[Any], None] | None = None) -> list[Spy]:
        spies: list[Spy] = []
        load = module.load_reward_model

        def load_spied(options: LoadOptions) -> LoadedModel:
            loaded = load(options)
            spies.append(Spy(loaded.model, before))
            return dataclasses.replace(loaded, model=spies[-1])

        monkeypatch.setattr(module, "load_reward_model", load_spied)
        return spies

    return spy_on


def test_duplicates_are_scored_once(tiny: TinyModels, spied: Callable[..., list[Spy]]) -> None:
    spies = spied()
    scorer = make_scorer(tiny.folder("llama"))
    rewards = scorer.score(QUERY, ["a", "b", "a", "a", "b"])
    assert sum(rows for rows, _ in spies[0].shapes) == 2
    assert rewards == [rewards[0], rewards[1], rewards[0], rewards[0], rewards[1]]


def test_batches_are_grouped_by_length(tiny: TinyModels, spied: Callable[..., list[Spy]]) -> None:
    spies = spied()
    responses = ["mix " * n for n in (1, 40, 2, 41, 3, 42)]
    make_scorer(tiny.folder("llama"), batch_size=3, max_batch_tokens=16384).score(QUERY, responses)
    (long_rows, long_width), (short_rows, short_width) = spies[0].shapes
    assert (long_rows, short_rows) == (3, 3)
    assert long_width - short_width > 30


def out_of_memory_above(rows: int) -> Callable[[Any], None]:
    import torch

    def check(ids: Any) -> None:
        if ids.shape[0] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return check


def test_out_of_memory_halves_the_batch(tiny: TinyModels, spied: Callable[..., list[Spy]]) -> None:
    responses = make_responses(16)
    expected = make_scorer(tiny.folder("llama")).score(QUERY, responses)
    spies = spied(out_of_memory_above(2))
    rewards = make_scorer(tiny.folder("llama"), batch_size=8, max_batch_tokens=16384).score(
        QUERY, responses
    )
    assert rewards == pytest.approx(expected, abs=TOLERANCE)
    failed = [rows for rows, _ in spies[0].shapes if rows > 2]
    assert failed[:2] == [8, 4]
    assert len(failed) < 6, "later batches begin smaller"


def test_out_of_memory_for_one_is_recorded(
    tiny: TinyModels, spied: Callable[..., list[Spy]]
) -> None:
    import torch

    def check(ids: Any) -> None:
        if ids.shape[1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")

    spied(check)
    short, long = make_scorer(tiny.folder("llama")).score(QUERY, ["Mix.", "mix flour " * 80])
    assert math.isfinite(short)
    assert isinstance(long, Reward)
    assert math.isnan(long)
    assert "out of memory at" in long.notes[0]


@pytest.mark.parametrize(
    "error", [RuntimeError("device-side assert"), IndexError("index out of range")]
)
def test_other_failures_are_raised(
    tiny: TinyModels, spied: Callable[..., list[Spy]], error: Exception
) -> None:
    def fail(ids: Any) -> None:
        raise error

    spied(fail)
    with pytest.raises(ScorerError, match=str(error)):
        make_scorer(tiny.folder("llama")).score(QUERY, ["Mix flour."])


def test_logit_that_is_nan_is_recorded(tiny: TinyModels, spied: Callable[..., list[Spy]]) -> None:
    import torch

    spies = spied()
    scorer = make_scorer(tiny.folder("llama")).load()
    tokenizer = make_tokenizer(FAMILIES["llama"])
    token = tokenizer("mix zzz", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        spies[0].model.get_input_embeddings().weight[token] = math.nan
    good, bad, also_good = scorer.score(QUERY, ["mix flour", "mix zzz", "wait"])
    assert math.isfinite(good)
    assert math.isfinite(also_good)
    assert isinstance(bad, Reward)
    assert math.isnan(bad)
    assert bad.notes == ("the reward model gave nan",)


def test_logit_that_is_infinite_is_recorded(
    tiny: TinyModels, spied: Callable[..., list[Spy]]
) -> None:
    import torch

    spies = spied()
    scorer = make_scorer(tiny.folder("llama")).load()
    with torch.no_grad():
        spies[0].model.score.weight.fill_(math.inf)
    rewards = scorer.score(QUERY, ["mix flour", "wait"])
    assert [math.isnan(reward) for reward in rewards] == [True, True]
    assert all(isinstance(r, Reward) and "the reward model gave" in r.notes[0] for r in rewards)


def test_shortcut_is_taken_and_changes_nothing(tiny: TinyModels) -> None:
    from tpo_modules.scorers.loading import load_reward_model

    loaded = load_reward_model(LoadOptions(model=str(tiny.folder("bert")), device="cpu"))
    assert "forward" in vars(loaded.model.bert.encoder.layer[-1])
    # That rewards stay the same is shown by test_rewards_equal_a_plain_forward[bert].


def test_shortcut_that_changes_something_is_taken_back(
    tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpo_modules.scorers import shortcuts
    from tpo_modules.scorers.loading import load_reward_model

    class Wrong(shortcuts.FirstPosition):
        def __call__(self, hidden: Any, *args: Any, **options: Any) -> Any:
            return hidden[:, :1] * 0

    monkeypatch.setattr(shortcuts, "FirstPosition", Wrong)
    loaded = load_reward_model(LoadOptions(model=str(tiny.folder("bert")), device="cpu"))
    assert "forward" not in vars(loaded.model.bert.encoder.layer[-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_causal_models_padded_on_the_right_get_no_mask(tiny: TinyModels, name: str) -> None:
    from tpo_modules.scorers.loading import load_reward_model

    loaded = load_reward_model(LoadOptions(model=str(tiny.folder(name)), device="cpu"))
    assert loaded.needs_mask == (name not in DECODERS)
    assert loaded.model.config.pad_token_id == loaded.own_pad_id, "as it was before the trial"
    # That rewards stay the same is shown by test_rewards_equal_a_plain_forward.


def test_a_model_that_looks_ahead_keeps_its_mask(tiny: TinyModels) -> None:
    from tpo_modules.scorers.loading import load_reward_model
    from tpo_modules.scorers.shortcuts import needs_mask

    model = load_reward_model(LoadOptions(model=str(tiny.folder("bert")), device="cpu")).model
    for part in model.modules():
        part.is_causal = True  # as it says, falsely
    assert needs_mask(model)


class ReadsTheLastPosition:
    """Like remote code that takes the last position whatever the mask says."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config

    def __call__(self, **inputs: Any) -> Any:
        from transformers.utils.generic import ModelOutput

        hidden = self.model.model(**inputs).last_hidden_state
        return ModelOutput(logits=self.model.score(hidden[:, -1]))


def test_foreign_code_that_ignores_the_mask_gets_no_padding(
    tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = make_responses(12)
    alone = [plain_reward(tiny.folder("llama"), user(), r)[0] for r in responses]
    load = module.load_reward_model

    def load_foreign(options: LoadOptions) -> LoadedModel:
        loaded = load(options)
        return dataclasses.replace(loaded, model=ReadsTheLastPosition(loaded.model))

    monkeypatch.setattr(module, "load_reward_model", load_foreign)
    rewards = make_scorer(tiny.folder("llama")).score(QUERY, responses)
    assert rewards == pytest.approx(alone, abs=TOLERANCE)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="the folder does not exist"):
        make_scorer(name).load()


def test_model_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="no local folder, and the Hugging Face hub"):
        make_scorer("nobody/no-such-reward-model").load()


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds neither config\.json"):
        make_scorer(tmp_path).load()


def copy_folder(source: Path, target: Path) -> Path:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_folder_without_weights(tiny: TinyModels, tmp_path: Path) -> None:
    (copy_folder(tiny.folder("llama"), tmp_path) / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"from the folder .* no file named model\.saf"):
        make_scorer(tmp_path).load()


def test_folder_with_a_broken_configuration(tiny: TinyModels, tmp_path: Path) -> None:
    (copy_folder(tiny.folder("llama"), tmp_path) / "config.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match=r"from the folder .* not a valid JSON file"):
        make_scorer(tmp_path).load()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_git_lfs_pointer_is_named(tiny: TinyModels, tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"
    (copy_folder(tiny.folder("llama"), tmp_path) / name).write_text(pointer)
    with pytest.raises(ModelNotFoundError, match=f"{name} is a Git LFS pointer.*`git lfs pull`"):
        make_scorer(tmp_path).load()


@pytest.mark.parametrize("kept", [0, 4, 5000])
def test_weights_whose_download_broke_off(tiny: TinyModels, tmp_path: Path, kept: int) -> None:
    weights = copy_folder(tiny.folder("llama"), tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ScorerError, match=r"cannot read the weights .* download broke off"):
        make_scorer(tmp_path).load()


def test_generative_model_is_named(tiny: TinyModels, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(FAMILIES["llama"])
    config = LlamaConfig.from_pretrained(tiny.folder("llama"))
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"LlamaForCausalLM: a generative model.*Judge"):
        make_scorer(tmp_path).score(QUERY, ["Mix flour."])


def test_other_model_is_named(tiny: TinyModels, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig.from_pretrained(tiny.folder("bert"))).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="is a BertModel, not a sequence classifier"):
        make_scorer(tmp_path).load()


def test_head_without_weights_is_refused(tiny: TinyModels, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig.from_pretrained(tiny.folder("bert"))).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    make_tokenizer(FAMILIES["bert"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no trained reward head.*classifier\.weight"):
        make_scorer(tmp_path).load()


def test_model_without_a_tokenizer(tiny: TinyModels, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny.folder("llama") / name).read_bytes())
    with pytest.raises(ModelNotFoundError, match="no tokenizer that can be loaded"):
        make_scorer(tmp_path).load()


@pytest.mark.parametrize(
    "options",
    [
        {"format": "xml"},
        {"padding_side": "top"},
        {"batch_size": 0},
        {"max_batch_tokens": 0},
        {"max_length": 0},
        {"max_batch": 0},
        {"max_wait": -1.0},
    ],
)
def test_options_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        RewardModelScorer("x", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float23"}, "expected dtype to be 'auto', .*; got 'float23'"),
        ({"dtype": "nn"}, "expected dtype to be 'auto', .*; got 'nn'"),
        ({"device": "toaster"}, "expected device to be 'cpu', .*; got 'toaster'"),
        ({"device": "cuda:99"}, "expected device to be 'cpu', .*; got 'cuda:99'"),
    ],
)
def test_no_such_dtype_or_device(tiny: TinyModels, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_scorer(tiny.folder("llama"), **options).load()


def test_device_and_device_map_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match=r"expected device= or device_map=, not both"):
        RewardModelScorer("x", device="cpu", device_map="auto")


def test_texts_only(tiny: TinyModels) -> None:
    scorer = make_scorer(tiny.folder("llama"))
    bad: Any = [(QUERY, "Mix flour."), (QUERY, None)]
    with pytest.raises(InputError, match="pair 1: expected a query and a response as text"):
        scorer.score_pairs(bad)


# --- adapters -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def adapter(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A LoRA adapter with a head on a tiny BERT: its folder, its base's, and the model itself."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForSequenceClassification

    base = tiny.folder("bert")
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = peft.get_peft_model(model, config)
        for name, weights in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weights.normal_(std=0.5)
    adapted.save_pretrained(str(folder))
    return folder, base, adapted.eval()


def adapter_reward(adapter: tuple[Path, Path, Any], response: str) -> float:
    import torch

    tokenizer: Any = make_tokenizer_from(adapter[1])
    with torch.no_grad():
        inputs = tokenizer([QUERY], [response], return_tensors="pt")
        return float(adapter[2](**inputs).logits[0, 0])


def make_tokenizer_from(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_adapter_equals_the_adapted_model(adapter: tuple[Path, Path, Any]) -> None:
    responses = make_responses(6)
    expected = [adapter_reward(adapter, response) for response in responses]
    rewards = make_scorer(adapter[0]).score(QUERY, responses)
    assert rewards == pytest.approx(expected, abs=TOLERANCE)


def test_adapters_base_is_spread_by_the_device_map(
    adapter: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification as Auto

    load, maps = Auto.from_pretrained, list[Any]()

    def load_noted(source: str, **options: Any) -> Any:
        maps.append(options.get("device_map"))
        return load(source, **options)

    monkeypatch.setattr(Auto, "from_pretrained", load_noted)
    scorer = make_scorer(adapter[0], device=None, device_map={"": "cpu"})
    expected = adapter_reward(adapter, "Mix flour.")
    assert scorer.score(QUERY, ["Mix flour."]) == pytest.approx([expected], abs=TOLERANCE)
    assert maps == [{"": "cpu"}]


def test_adapter_with_broken_files(adapter: tuple[Path, Path, Any], tmp_path: Path) -> None:
    weights = copy_folder(adapter[0], tmp_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(ScorerError, match=r"cannot read the weights of .* download broke off"):
        make_scorer(tmp_path).load()
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match=r"adapter_config\.json is no valid JSON"):
        make_scorer(tmp_path).load()


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device_map": "auto", "device": None}])
@pytest.mark.local_model
def test_bundled_refuses_what_it_does_not_honour(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="runs in float32 and on one device"):
        make_scorer("bundled", **options).load()


@pytest.mark.local_model
def test_bundled_equals_a_plain_forward_of_its_class() -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tpo_modules.scorers.bundled import bundled_path, register

    register()
    model = AutoModelForSequenceClassification.from_pretrained(bundled_path())
    tokenizer = AutoTokenizer.from_pretrained(bundled_path())
    responses = make_responses(6)
    with torch.inference_mode():
        expected = [
            float(model(**tokenizer(QUERY, text, return_tensors="pt")).logits) for text in responses
        ]
    rewards = make_scorer("bundled").score(QUERY, responses)
    assert rewards == pytest.approx(expected, abs=TOLERANCE)


def test_adapter_that_names_no_base(adapter: tuple[Path, Path, Any], tmp_path: Path) -> None:
    copy_folder(adapter[0], tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="does not name its base model"):
        make_scorer(tmp_path).load()
    expected = adapter_reward(adapter, "Mix flour.")
    rewards = make_scorer(tmp_path, base_model=adapter[1]).score(QUERY, ["Mix flour."])
    assert rewards == pytest.approx([expected], abs=TOLERANCE)


# --- sharing ------------------------------------------------------------------------------------


def test_importing_and_making_one_loads_nothing() -> None:
    code = (
        "import sys; from tpo_modules.scorers.reward_model import RewardModelScorer as S; S('x/y');"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_model_is_loaded_once(tiny: TinyModels, spied: Callable[..., list[Spy]]) -> None:
    spies = spied()
    scorer = make_scorer(tiny.folder("llama"))
    assert spies == []
    barrier = threading.Barrier(8)

    def load(_: int) -> None:
        barrier.wait()
        scorer.load()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load, range(8)))
    assert len(spies) == 1


def test_copies_share_the_model_and_pickles_do_not_carry_it(tiny: TinyModels) -> None:
    scorer = make_scorer(tiny.folder("llama"), max_length=100)
    expected = scorer.score(QUERY, ["Mix flour."])
    assert copy.deepcopy(scorer) is scorer
    assert copy.copy(scorer) is scorer
    pickled = pickle.dumps(scorer)
    assert len(pickled) < 5_000
    again: RewardModelScorer = pickle.loads(pickled)
    assert again.max_length == 100
    assert again.batching.scorer is again
    assert again.score(QUERY, ["Mix flour."]) == pytest.approx(expected, abs=TOLERANCE)


def test_threads_and_tasks_get_their_own_rewards(tiny: TinyModels) -> None:
    scorer = make_scorer(tiny.folder("qwen2"))
    responses = {f"{QUERY} {i}": make_responses(5, seed=i) for i in range(24)}
    pairs = [(query, r) for query, rs in responses.items() for r in rs]
    rewards = iter(make_scorer(tiny.folder("qwen2")).score_pairs(pairs))
    expected = {query: [next(rewards) for _ in rs] for query, rs in responses.items()}
    with ThreadPoolExecutor(12) as pool:
        futures = {query: pool.submit(scorer.score, query, rs) for query, rs in responses.items()}
        for query, future in futures.items():
            assert future.result() == pytest.approx(expected[query], abs=TOLERANCE)

    async def all_at_once() -> list[list[float]]:
        return await asyncio.gather(*(scorer.ascore(q, rs) for q, rs in responses.items()))

    for got, query in zip(asyncio.run(all_at_once()), responses, strict=True):
        assert got == pytest.approx(expected[query], abs=TOLERANCE)


def drawing_lm() -> Any:
    """Draw answers by the prompt and how often it came, so that no other run changes them."""
    from tpo_modules.testing import ScriptedLM

    asked: Counter[str] = Counter()

    def reply(prompt: str) -> str:
        asked[prompt] += 1
        rng = random.Random(f"{prompt} {asked[prompt]}")
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))

    return ScriptedLM(reply)


@pytest.mark.slow
async def test_100_concurrent_tpo_runs_share_one_scorer(tiny: TinyModels) -> None:
    from tpo_modules import TPOModule

    def tpo(scorer: RewardModelScorer) -> Any:
        module = TPOModule(scorer=scorer, width=5, depth=2, native_n=True)
        module.set_lm(drawing_lm())
        return module

    scorer = make_scorer(tiny.folder("qwen2"), max_batch=64, max_wait=0.25).load()
    together = tpo(scorer)
    queries = [f"{QUERY} {number}" for number in range(100)]
    runs = await asyncio.gather(*(together.acall(query=query) for query in queries))

    stats = scorer.batching.stats
    assert stats.requests == 300
    assert stats.mean_batch > 10, "one run alone asks for 5"
    assert stats.longest_wait <= 0.25
    alone = tpo(make_scorer(tiny.folder("qwen2"), batch_size=1))
    for query, run in list(zip(queries, runs, strict=True))[::4]:
        expected = alone(query=query)
        assert run.response == expected.response
        got = [(c.step, c.response) for c in run.trace.candidates]
        assert got == [(c.step, c.response) for c in expected.trace.candidates]
        assert len(got) == 15
        rewards = [c.reward for c in run.trace.candidates]
        assert rewards == pytest.approx(
            [c.reward for c in expected.trace.candidates], abs=TOLERANCE
        )
