"""Loads a reward model and its tokenizer into memory."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from tpo_modules.errors import (
    ConfigurationError,
    MissingExtraError,
    ModelNotFoundError,
    ScorerError,
    TPOError,
)
from tpo_modules.scorers.recipes import DEFAULT_RECIPE, Recipe, find_recipe
from tpo_modules.scorers.shortcuts import apply_shortcuts, needs_mask
from tpo_modules.scorers.sources import (
    LoadOptions,
    find_sources,
    load_config,
    not_found,
    refuse_other_kinds,
    refuse_pointers,
)

if TYPE_CHECKING:
    import torch

_UNLIMITED = 1_000_000  # tokenizers without a limit report 1e30
_POSITION_TABLES = {"position_embeddings", "wpe", "embed_positions", "positions_embed"}


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
        positions: Tokens for which it has learned positions: more cannot be read at all. None where
            positions are computed (rotary, relative).
        max_text_tokens: Tokens of the query, and of the response, that the model reads, where its
            configuration says so; None for no limit but `max_length`.
        own_pad_id: The padding id that the model was configured with, None where it has none.
    """

    model: Any
    tokenizer: Any
    recipe: Recipe
    device: torch.device
    labels: tuple[str, ...]
    max_length: int | None
    positions: int | None
    max_text_tokens: int | None
    own_pad_id: int | None
    needs_mask: bool = True


def load_reward_model(options: LoadOptions) -> LoadedModel:
    """Load a reward model and its tokenizer.

    Raises:
        ModelNotFoundError: Neither a folder nor to be had from the hub, or the folder lacks a file.
        ConfigurationError: It is no sequence classifier, has no trained head, or needs
            ``trust_remote_code``; or its own code does not honour an option; or there is no such
            device or dtype.
        MissingExtraError: An adapter, without the package ``peft``.
        ScorerError: Its weights or its code cannot be loaded.
    """
    _check_options(options)
    source, base = find_sources(options)
    with _quiet():
        if base is None:
            model, recipe = _load_plain(source, options)
        else:
            model, recipe = _load_adapter(source, base, options)
        tokenizer = _load_tokenizer(source, base, options)
    config = model.config
    device = _place(model.eval(), options)
    positions = _learned_positions(model)
    apply_shortcuts(model)
    return LoadedModel(
        device=device,
        model=model,
        tokenizer=tokenizer,
        recipe=recipe,
        labels=tuple(str(config.id2label[i]) for i in sorted(config.id2label)),
        max_length=_max_length(config, tokenizer, positions),
        positions=positions,
        max_text_tokens=getattr(config, "max_text_tokens", None),
        own_pad_id=config.get_text_config().pad_token_id,
        needs_mask=needs_mask(model),
    )


def _check_options(options: LoadOptions) -> None:
    import torch

    dtype, device = options.dtype, options.device
    if dtype != "auto" and not isinstance(getattr(torch, str(dtype), dtype), torch.dtype):
        raise ConfigurationError(
            f"expected dtype to be 'auto', 'float32', 'bfloat16' or 'float16'; got {dtype!r}"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        why = str(error).split("\n", 1)[0]
        raise ConfigurationError(
            f"expected device to be 'cpu', 'cuda', 'cuda:1' or another that this torch has; got "
            f"{device!r}. ({why})"
        ) from error


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


@contextmanager
def _reading(source: str) -> Generator[None, None, None]:
    """Name the model, and what to do, in what goes wrong while its files are read."""
    import transformers
    from safetensors import SafetensorError

    try:
        yield
    except TPOError:
        raise
    except OSError as error:
        raise ModelNotFoundError(not_found(source, error)) from error
    except (SafetensorError, UnpicklingError, EOFError) as error:
        why = str(error).split("\n", 1)[0] or type(error).__name__
        raise ScorerError(
            f"cannot read the weights of {source!r}: a file is damaged, or its download broke off. "
            f"Download it again. ({why})"
        ) from error
    except (ValueError, RuntimeError, ImportError, AttributeError) as error:
        raise ScorerError(
            f"cannot load the reward model {source!r} with transformers "
            f"{transformers.__version__}: {error}"
        ) from error


def _from_pretrained(
    source: str, recipe: Recipe, options: LoadOptions, **extra: Any
) -> tuple[Any, set[str]]:
    import transformers

    if options.device_map is not None:
        extra["device_map"] = options.device_map
    if recipe.num_labels is not None:
        extra["num_labels"] = recipe.num_labels
    with _reading(source):
        model, info = getattr(transformers, recipe.model_class).from_pretrained(
            source, dtype=options.dtype, output_loading_info=True, **extra, **options.hub
        )
    return model, {str(key) for key in info["missing_keys"]}


def _load_adapter(source: str, base: str, options: LoadOptions) -> tuple[Any, Recipe]:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "local", f"the adapter {source!r}") from error

    _check_adapter(source)
    refuse_pointers(base)
    of_base = replace(options, revision=None)  # the revision is the adapter's
    config = load_config(base, of_base)
    with _reading(source):
        config.num_labels = _adapter_outputs(source)
    model, _ = _from_pretrained(base, DEFAULT_RECIPE, of_base, config=config)
    with warnings.catch_warnings(), _reading(source):
        # peft asks transformers 5 by a name that it renamed
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


def _learned_positions(model: Any) -> int | None:
    """Count the tokens that a model's table of positions serves, None where it has no table."""
    import torch

    most: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, table in model.named_modules():
        named = name.rsplit(".", 1)[-1] in _POSITION_TABLES
        if named and isinstance(table, torch.nn.Embedding) and most:
            # RoBERTa's kind counts from behind the padding index; OPT's has two more than it says
            unused = 0 if table.padding_idx is None else table.padding_idx + 1
            return min(most, table.num_embeddings - unused)
    return None


def _max_length(config: Any, tokenizer: Any, positions: int | None) -> int | None:
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = (positions or known, tokenizer.model_max_length)
    known = [int(limit) for limit in limits if limit and 0 < limit < _UNLIMITED]
    return min(known) if known else None
