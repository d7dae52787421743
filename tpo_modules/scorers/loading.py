"""Loads a reward model and its tokenizer into memory."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo_modules.errors import (
    ConfigurationError,
    MissingExtraError,
    ModelNotFoundError,
    ScorerError,
)
from tpo_modules.scorers.recipes import Recipe, find_recipe
from tpo_modules.scorers.shortcuts import apply_shortcuts
from tpo_modules.scorers.sources import (
    LoadOptions,
    find_sources,
    load_config,
    not_found,
    refuse_other_kinds,
)

if TYPE_CHECKING:
    import torch

_UNLIMITED = 1_000_000  # tokenizers without a limit report 1e30
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert"}  # begin after the padding index


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A reward model in memory.

    Attributes:
        model: In evaluation mode.
        tokenizer: The reward model's own.
        recipe: What the family needs.
        device: Where inputs go.
        labels: The outputs of the head by index, as the configuration names them.
        max_length: Tokens that the model can read, None for no known limit.
        own_pad_id: The padding id that the model was configured with, None where it has none.
    """

    model: Any
    tokenizer: Any
    recipe: Recipe
    device: torch.device
    labels: tuple[str, ...]
    max_length: int | None
    own_pad_id: int | None


def load_reward_model(options: LoadOptions) -> LoadedModel:
    """Load a reward model and its tokenizer.

    Raises:
        ModelNotFoundError: Neither a folder nor to be had from the hub.
        ConfigurationError: It is no sequence classifier, has no trained head, or needs
            ``trust_remote_code``.
        MissingExtraError: An adapter, without the package ``peft``.
        ScorerError: Its weights or its code cannot be loaded.
    """
    source, base = find_sources(options)
    with _quiet():
        if base is None:
            model, recipe = _load_plain(source, options)
        else:
            model, recipe = _load_adapter(source, base, options)
        tokenizer = _load_tokenizer(source, base, options)
    config = model.config
    device = _place(model.eval(), options)
    apply_shortcuts(model)
    return LoadedModel(
        device=device,
        model=model,
        tokenizer=tokenizer,
        recipe=recipe,
        labels=tuple(str(config.id2label[i]) for i in sorted(config.id2label)),
        max_length=_max_length(config, tokenizer),
        own_pad_id=config.get_text_config().pad_token_id,
    )


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep progress bars and reports of new weights off the terminal; what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load_plain(source: str, options: LoadOptions) -> tuple[Any, Recipe]:
    recipe = find_recipe(options.model)
    if not recipe.remote_code or options.trust_remote_code:  # else refused without a look
        config = load_config(source, options)
        recipe = find_recipe(options.model, getattr(config, "architectures", None) or ())
    else:
        config = None
    refuse_other_kinds(source, config, recipe, trusted=options.trust_remote_code)
    model, missing = _from_pretrained(source, recipe, options)
    if missing:
        raise ConfigurationError(
            f"{source!r} holds no trained reward head: the weights {sorted(missing)} are missing, "
            "so they would be random and so would the rewards. Give a model that was saved as a "
            "sequence classifier, or its adapter's folder."
        )
    return model, recipe


def _from_pretrained(source: str, recipe: Recipe, options: LoadOptions) -> tuple[Any, set[str]]:
    import transformers

    extra: dict[str, Any] = {}
    if options.device_map is not None:
        extra["device_map"] = options.device_map
    if recipe.num_labels is not None:
        extra["num_labels"] = recipe.num_labels
    try:
        model, info = getattr(transformers, recipe.model_class).from_pretrained(
            source, dtype=options.dtype, output_loading_info=True, **extra, **options.hub
        )
    except OSError as error:
        raise ModelNotFoundError(not_found(source, error)) from error
    except (ValueError, RuntimeError, ImportError, AttributeError) as error:
        raise ScorerError(
            f"cannot load the reward model {source!r} with transformers "
            f"{transformers.__version__}: {error}"
        ) from error
    return model, {str(key) for key in info["missing_keys"]}


def _load_adapter(source: str, base: str, options: LoadOptions) -> tuple[Any, Recipe]:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "local", f"the adapter {source!r}") from error
    import transformers

    _check_adapter(source)
    config = load_config(base, options)
    config.num_labels = _adapter_outputs(source)
    try:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, config=config, dtype=options.dtype, trust_remote_code=options.trust_remote_code
        )
    except OSError as error:
        raise ModelNotFoundError(not_found(base, error)) from error
    with warnings.catch_warnings():  # peft asks transformers 5 by a name that it renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted: Any = peft.PeftModel.from_pretrained(model, source)
        return adapted.merge_and_unload(), find_recipe(options.model)


def _check_adapter(source: str) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not Path(source, name).is_file():
            raise ModelNotFoundError(f"the adapter's folder {source!r} holds no {name}")


def _adapter_outputs(source: str) -> int:
    """Read from an adapter's weights how many outputs its head has."""
    from safetensors import safe_open

    heads = ("classifier.weight", "score.weight", "out_proj.weight")
    with safe_open(str(Path(source, "adapter_model.safetensors")), framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - not a mapping
            if name.endswith(heads):
                return int(weights.get_slice(name).get_shape()[0])
    raise ConfigurationError(
        f"the adapter in {source!r} holds no head (classifier.weight or score.weight): it was not "
        "trained as a sequence classifier"
    )


def _load_tokenizer(source: str, base: str | None, options: LoadOptions) -> Any:
    from transformers import AutoTokenizer

    own = base is None or Path(source, "tokenizer_config.json").is_file()
    where = source if own else str(base)
    try:
        return AutoTokenizer.from_pretrained(where, **options.hub)
    except (OSError, ValueError, ImportError) as error:
        raise ModelNotFoundError(
            f"the reward model {where!r} has no tokenizer that can be loaded: {error}"
        ) from error


def _place(model: Any, options: LoadOptions) -> torch.device:
    import torch

    if options.device_map is not None:
        return torch.device(model.device)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    return torch.device(device)


def _max_length(config: Any, tokenizer: Any) -> int | None:
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions and config.model_type in _OFFSET_POSITIONS:
        positions -= text.pad_token_id + 1
    limits = (positions, tokenizer.model_max_length)
    known = [int(limit) for limit in limits if limit and 0 < limit < _UNLIMITED]
    return min(known) if known else None
