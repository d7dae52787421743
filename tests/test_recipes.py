"""Recipes of well-known reward models, on tiny models of their shape; pairwise models."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import FAMILIES, TinyModels, make_tokenizer, plain_reward

from tpo_modules.errors import ConfigurationError, ModelNotFoundError, RewardError, ScorerError
from tpo_modules.scorers.base import Query, Reward
from tpo_modules.scorers.pairwise import PairRM, PairwiseScorer
from tpo_modules.scorers.recipes import DEFAULT_RECIPE, RECIPES, find_recipe
from tpo_modules.scorers.reward_model import RewardModelScorer

REMOTE = [recipe for recipe in RECIPES if recipe.remote_code]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("models"))


def test_ids_are_exact_and_belong_to_one_recipe() -> None:
    ids = [model for recipe in RECIPES for model in recipe.ids]
    assert len(ids) == len(set(ids))
    assert all(model.count("/") == 1 for model in ids)
    for recipe in RECIPES:
        for model in recipe.ids:
            if not recipe.pairwise:
                assert find_recipe(model) is recipe
                assert find_recipe(model.upper()) is DEFAULT_RECIPE
                assert find_recipe(f"{model}-copy") is DEFAULT_RECIPE


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_say_where_they_come_from(recipe: Any) -> None:
    assert len(recipe.source) > 20


@pytest.mark.parametrize("recipe", REMOTE, ids=lambda recipe: recipe.name)
def test_code_of_the_model_is_run_only_when_trusted(recipe: Any) -> None:
    with pytest.raises(ConfigurationError, match="pass trust_remote_code=True"):
        RewardModelScorer(recipe.ids[0]).load()


def test_trusted_code_that_is_not_to_be_had_is_a_missing_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="hub did not give it"):
        RewardModelScorer(REMOTE[0].ids[0], trust_remote_code=True).load()


REMOTE_CODE = """
import torch
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput


class {name}(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.head = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.reward_token_id = 7
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        hidden = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        {read}
"""
GATED = """ends = (attention_mask.cumsum(-1)).argmax(-1)
        score = self.head(hidden[torch.arange(len(ends)), ends])
        return ModelOutput(logits=score * 0 - 1, score=score)"""
EVERY_TOKEN = """assert all(7 in row for row in input_ids.tolist())
        return ModelOutput(logits=self.head(hidden))"""


def save_remote(folder: Path, tiny: TinyModels, name: str, auto: str, read: str) -> Path:
    """Save a tiny Llama with Python code of its own, as the hub would give it."""
    import torch
    from safetensors.torch import load_file, save_file

    plain = tiny.folder("llama")
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(str(plain / "model.safetensors"))
    weights["head.weight"] = weights.pop("score.weight")
    save_file(
        {key: torch.clone(value) for key, value in weights.items()},
        str(folder / "model.safetensors"),
        metadata={"format": "pt"},
    )
    code = REMOTE_CODE.replace("{name}", name).replace("{read}", read)
    (folder / "modeling_own.py").write_text(code, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": [name], "auto_map": {auto: f"modeling_own.{name}"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def no_module_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep code of models out of the user's cache."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


RESPONSES = ["Mix flour.", "mix flour, water and salt, then wait " * 4, ""]
USER = [{"role": "user", "content": "How do I bake bread?"}]


@pytest.mark.usefixtures("no_module_cache")
def test_gated_model_is_known_by_its_architecture(tiny: TinyModels, tmp_path: Path) -> None:
    auto = "AutoModelForSequenceClassification"
    folder = tmp_path / "gated"
    folder.mkdir()
    save_remote(folder, tiny, "LlamaForRewardModelWithGating", auto, GATED)
    with pytest.raises(ConfigurationError, match=r"\(ArmoRM\) comes with Python code"):
        RewardModelScorer(folder).load()
    scorer = RewardModelScorer(folder, trust_remote_code=True, device="cpu")
    expected = [plain_reward(tiny.folder("llama"), USER, r)[0] for r in RESPONSES]
    rewards = scorer.score(USER[0]["content"], RESPONSES)
    assert rewards == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("no_module_cache")
def test_input_ends_in_the_reward_token(tiny: TinyModels, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "intern"
    folder.mkdir()
    save_remote(folder, tiny, "InternLM2ForRewardModel", "AutoModel", EVERY_TOKEN)
    scorer = RewardModelScorer(folder, trust_remote_code=True, device="cpu")
    rewards = scorer.score(USER[0]["content"], RESPONSES)

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.folder("llama"))
    model: Any = AutoModelForSequenceClassification.from_pretrained(tiny.folder("llama"))
    for response, reward in zip(RESPONSES, rewards, strict=True):
        turns = [*USER, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        with torch.no_grad():
            expected = float(model(torch.tensor([[*ids, 7]])).logits[0, 0])
        assert reward == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("no_module_cache")
def test_code_that_does_not_load_is_a_clear_error(tiny: TinyModels, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    save_remote(folder, tiny, "Old", "AutoModelForSequenceClassification", GATED)
    code = (folder / "modeling_own.py").read_text(encoding="utf-8")
    old = "from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING\n"
    (folder / "modeling_own.py").write_text(old + code, encoding="utf-8")
    with pytest.raises(ScorerError, match=r"cannot load .* with transformers .*DOCSTRING"):
        RewardModelScorer(folder, trust_remote_code=True).load()


# --- pairwise models ----------------------------------------------------------------------------


class LongerIsBetter:
    """Compares two responses by their lengths."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def margins(self, query: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.asked += pairs
        return [float(len(first) - len(second)) for first, second in pairs]


def test_rewards_are_mean_margins_over_the_first_responses() -> None:
    model = LongerIsBetter()
    scorer = PairwiseScorer(model)
    assert scorer.score("query", ["x", "xxx", "xx", "x"]) == [-1.0, 1.0, 0.0, -1.0]
    assert len(model.asked) == 6, "three different responses, each against two others"
    later = scorer.score("query", ["xxxxx", "xxx"])
    assert later == [3.0, 1.0], "comparable with the first step's"
    assert isinstance(later[0], Reward)
    assert later[0].notes == ("mean margin over 3 anchors",)
    assert scorer.score("another query", ["xxxxx"]) == [0.0]
    assert scorer.score("query", []) == []


def test_anchors_belong_to_the_whole_conversation() -> None:
    scorer = PairwiseScorer(LongerIsBetter())
    scorer.score(Query("query"), ["xx"])
    system = {"role": "system", "content": "Be brief."}
    other = Query.from_messages([system, {"role": "user", "content": "query"}])
    assert scorer.score(other, ["xxxx"]) == [0.0]
    assert scorer.score("query", ["xxxx"]) == [2.0]


def test_wrong_number_of_margins_is_an_error() -> None:
    class Short:
        def margins(self, query: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
            return []

    with pytest.raises(RewardError, match="2 pairs, 0 numbers"):
        PairwiseScorer(Short()).score("query", ["a", "b"])


def test_copies_share_the_anchors() -> None:
    scorer = PairwiseScorer(LongerIsBetter())
    scorer.score("query", ["xx"])
    assert copy.deepcopy(scorer) is scorer
    again: PairwiseScorer = pickle.loads(pickle.dumps(scorer))
    assert again.score("query", ["xxxx"]) == [0.0]


def test_pairwise_model_is_no_scorer_by_itself() -> None:
    with pytest.raises(ConfigurationError, match=r"use PairwiseScorer\(PairRM"):
        RewardModelScorer("llm-blender/PairRM-hf")


PREFIXES = ("<|source|>", "<|candidate1|>", "<|candidate2|>")


@pytest.fixture(scope="session")
def pair_rm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random PairRM: a DeBERTa and the head, under the names of the published weights."""
    import torch
    from safetensors.torch import save_file
    from tiny_models import make_model
    from torch import nn

    folder = tmp_path_factory.mktemp("pairrm")
    tokenizer = make_tokenizer(FAMILIES["deberta"])
    tokenizer.add_special_tokens({"additional_special_tokens": list(PREFIXES)})
    tokenizer.save_pretrained(folder)
    body = make_model("deberta", tokenizer).deberta
    head = {
        "head_layer.1": nn.Linear(64, 32),
        "head_layer.4": nn.Linear(32, 1),
    }
    weights = {f"pretrained_model.{key}": value for key, value in body.state_dict().items()}
    for name, layer in head.items():
        nn.init.normal_(layer.weight, std=0.5)
        weights |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
    save_file({k: torch.clone(v) for k, v in weights.items()}, str(folder / "model.safetensors"))
    ids = tokenizer.convert_tokens_to_ids(list(PREFIXES))
    names = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")
    config = {**body.config.to_dict(), **dict(zip(names, ids, strict=True)), "n_tasks": 1}
    config["architectures"] = ["DebertaV2PairRM"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def pair_rm_logit(folder: Path, query: str, first: str, second: str) -> float:
    """Compare once, unbatched, as the model card's example and class do."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    weights = load_file(str(folder / "model.safetensors"))
    body: Any = DebertaV2Model(DebertaV2Config.from_pretrained(folder))
    prefix = "pretrained_model."
    body.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    texts = zip(PREFIXES, (query, first, second), strict=True)
    ids = [i for token, text in texts for i in tokenizer(token + text)["input_ids"]]
    marks = tokenizer.convert_tokens_to_ids(list(PREFIXES))
    with torch.no_grad():
        vectors = body.eval()(torch.tensor([ids])).last_hidden_state[0]
        source, left, right = (vectors[ids.index(mark)] for mark in marks)
        rated: list[Any] = []
        for side in (left, right):
            inner = weights["head_layer.1.weight"] @ torch.cat([source, side])
            inner = torch.tanh(inner + weights["head_layer.1.bias"])
            rated.append(weights["head_layer.4.weight"] @ inner + weights["head_layer.4.bias"])
    return float(rated[0] - rated[1])


def test_pair_rm_equals_its_own_example(pair_rm_folder: Path) -> None:
    query = "How do I bake bread?"
    pairs = [("Mix flour.", "wait"), ("", "mix flour and water " * 9), ("wait", "Mix flour.")]
    expected = [
        (
            pair_rm_logit(pair_rm_folder, query, first, second)
            - pair_rm_logit(pair_rm_folder, query, second, first)
        )
        / 2
        for first, second in pairs
    ]
    margins = PairRM(pair_rm_folder, batch_size=4, device="cpu").margins(query, pairs)
    assert margins == pytest.approx(expected, abs=1e-4)
    assert abs(margins[0]) > 1e-3
    assert margins[0] == pytest.approx(-margins[2], abs=1e-5)


def test_pair_rm_gives_rewards(pair_rm_folder: Path) -> None:
    scorer = PairwiseScorer(PairRM(pair_rm_folder, device="cpu"))
    first = scorer.score("How do I bake bread?", ["Mix flour.", "wait", "mix salt"])
    assert sum(first) == pytest.approx(0.0, abs=1e-4), "what one wins another loses"
    assert len(set(first)) == 3
    assert scorer.score("How do I bake bread?", ["wait"]) == pytest.approx([first[1]], abs=1e-4)


def test_pair_rm_takes_any_text(pair_rm_folder: Path) -> None:
    model = PairRM(pair_rm_folder, source_length=40, total_length=120, device="cpu")
    spelt = "".join(PREFIXES) + "[SEP]"
    long = "mix flour " * 500
    margins = model.margins(long + spelt, [(spelt, long), (long + spelt, "")])
    assert all(margin == margin for margin in margins)


def test_pair_rm_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="hub did not give it"):
        PairRM("nobody/no-such-model").margins("q", [("a", "b")])
    with pytest.raises(ConfigurationError, match="source_length"):
        PairRM(source_length=5, total_length=5)


def test_other_weights_are_no_pair_rm(tiny: TinyModels) -> None:
    with pytest.raises(ConfigurationError, match="is no PairRM: it lacks the weights"):
        PairRM(tiny.folder("deberta", n_tasks=1), device="cpu").margins("q", [("a", "b")])
