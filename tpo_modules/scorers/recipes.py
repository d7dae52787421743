"""How well-known reward models want to be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["chat", "pair"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a family of reward models needs beyond the defaults."""

    name: str
    ids: tuple[str, ...] = ()
    format: Format | None = None
    output: int | None = None
    reward_field: str = "logits"
    model_class: str = "AutoModelForSequenceClassification"
    remote_code: bool = False
    max_length: int | None = None


DEFAULT_RECIPE = Recipe("default")
RECIPES: tuple[Recipe, ...] = ()


def find_recipe(model: str) -> Recipe:
    """Find the recipe of a model by its exact hub id."""
    return next((recipe for recipe in RECIPES if model in recipe.ids), DEFAULT_RECIPE)
