"""How well-known reward models want to be asked, as their model cards say.

A recipe is found by the exact hub id or, for a copy in a folder, by the architecture that its
configuration names; never by a part of a name. Every option given to `RewardModelScorer` goes before
the recipe's.

What could be checked where this was written, without the hub: the cards' own example code, and for
PairRM, ArmoRM, QRM and InternLM2 also the pipelines that RewardBench (allenai/reward-bench) runs
them with. Formats and heads of the same kind are tested on small random models; the published
weights themselves were not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tpo_modules.errors import ConfigurationError

Format = Literal["chat", "pair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a family of reward models needs.

    Attributes:
        name: The family.
        ids: Hub ids, exact.
        architectures: Names in ``config.architectures`` that are this family's alone.
        format: "chat", "pair", or None to go by the tokenizer.
        output: The output of the head that is the reward; None where there is only one.
        num_labels: Outputs of the head, where the configuration on the hub does not say.
        reward_field: The field of the model's result that holds the reward.
        model_class: The ``transformers`` class that loads it.
        remote_code: It comes with Python code of its own, so it needs ``trust_remote_code=True``.
        final_token: Name of the model's attribute with a token id that must end the input.
        pairwise: It compares two responses: use `PairwiseScorer`.
        source: Where this was read, and what the card does otherwise.
    """

    name: str
    ids: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    format: Format | None = None
    output: int | None = None
    num_labels: int | None = None
    reward_field: str = "logits"
    model_class: str = "AutoModelForSequenceClassification"
    remote_code: bool = False
    final_token: str | None = None
    pairwise: bool = False
    source: str = ""


DEFAULT_RECIPE = Recipe(name="default", source="one output, raw logits, format by the tokenizer")

FSFAIRX = Recipe(
    name="FsfairX",
    ids=("sfairXC/FsfairX-LLaMA3-RM-v0.1",),
    format="chat",
    output=0,
    source=(
        "Card: Llama 3 chat template, its BOS taken out because the pipeline adds one, no "
        "activation. One BOS either way. The paper's first reward model."
    ),
)
TULU_3 = Recipe(
    name="Tulu 3",
    ids=("allenai/Llama-3.1-Tulu-3-8B-RM",),
    format="chat",
    output=0,
    source=(
        "open-instruct's command for it: chat template 'tulu' (no BOS), 2048 tokens in training. "
        "The paper's second reward model."
    ),
)
SKYWORK_V2 = Recipe(
    name="Skywork-Reward-V2",
    ids=tuple(
        f"Skywork/Skywork-Reward-V2-{size}"
        for size in (
            "Llama-3.1-8B",
            "Llama-3.1-8B-40M",
            "Llama-3.2-1B",
            "Llama-3.2-3B",
            "Qwen3-0.6B",
            "Qwen3-1.7B",
            "Qwen3-4B",
            "Qwen3-8B",
        )
    ),
    format="chat",
    output=0,
    num_labels=1,
    source="Card: chat template with at most one BOS (Qwen 3 has none), num_labels=1, logits[0][0].",
)
ARMO_RM = Recipe(
    name="ArmoRM",
    ids=("RLHFlow/ArmoRM-Llama3-8B-v0.1",),
    architectures=("LlamaForRewardModelWithGating",),
    format="chat",
    output=0,
    reward_field="score",
    remote_code=True,
    source="Card: chat template tokenised, output.score (19 objectives through a gating layer).",
)
QRM = Recipe(
    name="QRM",
    ids=(
        "nicolinho/QRM-Llama3.1-8B",
        "nicolinho/QRM-Llama3.1-8B-v2",
        "nicolinho/QRM-Llama3-8B",
    ),
    architectures=("LlamaForRewardModelWithGating31", "LlamaForRewardModelWithGating3"),
    format="chat",
    output=0,
    reward_field="score",
    remote_code=True,
    source=(
        "Card: chat template tokenised, output.score (mean of the reward's quantiles). Its code was "
        "written for transformers 4 and may not load under 5."
    ),
)
URM = Recipe(
    name="URM",
    ids=("LxzGordon/URM-LLaMa-3.1-8B", "LxzGordon/URM-LLaMa-3-8B"),
    format="chat",
    output=0,
    remote_code=True,
    source=(
        "Card: chat template, logits[0][0]. The card's example tokenises the rendered template "
        "with special tokens, which doubles the BOS; here there is one."
    ),
)
INTERNLM2 = Recipe(
    name="InternLM2-reward",
    ids=tuple(f"internlm/internlm2-{size}-reward" for size in ("1_8b", "7b", "20b")),
    architectures=("InternLM2ForRewardModel",),
    format="chat",
    output=0,
    model_class="AutoModel",
    remote_code=True,
    final_token="reward_token_id",
    source=(
        "Card: AutoModel with its own get_score, which ends the input with the reward token and "
        "reads the head there (as RewardBench's pipeline does)."
    ),
)
OPEN_ASSISTANT = Recipe(
    name="OpenAssistant DeBERTa",
    ids=tuple(
        f"OpenAssistant/reward-model-{size}"
        for size in ("deberta-v3-large-v2", "deberta-v3-large", "deberta-v3-base")
    ),
    format="pair",
    output=0,
    source="Card: tokenizer(question, answer), logits[0]; 512 tokens.",
)
PAIR_RM = Recipe(
    name="PairRM",
    ids=("llm-blender/PairRM-hf",),
    architectures=("DebertaV2PairRM",),
    pairwise=True,
    source=(
        "Card: <|source|>, <|candidate1|>, <|candidate2|>, each encoded on its own; 1224 tokens for "
        "the source and 412 for a candidate."
    ),
)

RECIPES: tuple[Recipe, ...] = (
    FSFAIRX,
    TULU_3,
    SKYWORK_V2,
    ARMO_RM,
    QRM,
    URM,
    INTERNLM2,
    OPEN_ASSISTANT,
    PAIR_RM,
)
"""Every named recipe, in the order of the table in ``docs/scoring.md``."""


def find_recipe(model: str, architectures: Sequence[str] = ()) -> Recipe:
    """Find the recipe of a model.

    Args:
        model: The exact hub id, or a folder.
        architectures: What the model's configuration names, once it has been read.

    Returns:
        The recipe, or `DEFAULT_RECIPE` for a model that has none of its own.

    Raises:
        ConfigurationError: The model compares responses and gives no reward by itself.
    """
    by_id = (recipe for recipe in RECIPES if model in recipe.ids)
    by_architecture = (r for r in RECIPES if set(r.architectures) & set(architectures))
    recipe = next(by_id, None) or next(by_architecture, DEFAULT_RECIPE)
    if recipe.pairwise:
        raise ConfigurationError(
            f"{model!r} ({recipe.name}) compares two responses and gives none a reward of its own: "
            f"use PairwiseScorer(PairRM({model!r})), whose rewards are mean win margins"
        )
    return recipe
