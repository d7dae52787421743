"""Loads a reward model and its tokenizer, and refuses what is none, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from tpo_modules.scorers.recipes import Recipe

if TYPE_CHECKING:
    import torch

BUNDLED = "bundled"
_UNLIMITED = 1_000_000  # tokenizers without a limit report 1e30


@dataclass(frozen=True)
class LoadOptions:
    """Where a reward model comes from and how it is put into memory; see `RewardModelScorer`."""

    model: str
    recipe: Recipe
    base_model: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: Any = None
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A reward model in memory.

    Attributes:
        model: In evaluation mode.
        tokenizer: The reward model's own.
        device: Where inputs go.
        labels: The outputs of the head by index, as the configuration names them.
        max_length: Tokens that the model can read, None for no known limit.
        own_pad_id: The padding id that the model was configured with, None where it has none.
    """

    model: Any
    tokenizer: Any
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
    """
    if options.recipe.remote_code and not options.trust_remote_code:
        raise ConfigurationError(
            f"{options.model!r} ({options.recipe.name}) comes with Python code of its own that "
            "computes the reward. Read that code, then pass trust_remote_code=True to run it."
        )
    source, base = _sources(options)
    with _quiet():
        if base is None:
            model, config = _load_plain(source, options)
        else:
            model, config = _load_adapter(source, base, options)
        tokenizer = _load_tokenizer(source, base, options)
    device = _place(model, options)
    labels = tuple(str(config.id2label[i]) for i in sorted(config.id2label))
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        device=device,
        labels=labels,
        max_length=_max_length(config, tokenizer),
        own_pad_id=config.get_text_config().pad_token_id,
    )


@contextmanager
def _quiet() -> Iterator[None]:
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


def _sources(options: LoadOptions) -> tuple[str, str | None]:
    """Return the model's folder or hub id and, for an adapter, its base model's."""
    if options.model == BUNDLED:
        from tpo_modules.scorers.bundled import base_model_path, bundled_path

        return str(bundled_path()), str(base_model_path())
    folder = Path(options.model).expanduser()
    if folder.is_dir():
        return str(folder), _base_of_adapter(folder, options)
    if _looks_like_path(options.model):
        raise ModelNotFoundError(
            f"no reward model at {options.model!r}: the folder does not exist. Give a folder that "
            "holds config.json, a Hugging Face model id, or 'bundled'."
        )
    return options.model, options.base_model


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or Path(name).is_absolute()


def _base_of_adapter(folder: Path, options: LoadOptions) -> str | None:
    import json

    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        if (folder / "config.json").is_file():
            return None
        raise ModelNotFoundError(
            f"no reward model in the folder {str(folder)!r}: it holds neither config.json (a "
            "model) nor adapter_config.json (a PEFT adapter)"
        )
    named = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    base = options.base_model or named
    if not base:
        raise ConfigurationError(
            f"the adapter in {str(folder)!r} does not name its base model: pass base_model="
        )
    return str(base)


def _hub_options(options: LoadOptions) -> dict[str, Any]:
    return {"trust_remote_code": options.trust_remote_code, "revision": options.revision}


def _load_config(source: str, options: LoadOptions) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, **_hub_options(options))
    except OSError as error:
        raise ModelNotFoundError(_not_found(source, error)) from error
    except ValueError as error:
        raise ConfigurationError(f"cannot read the configuration of {source!r}: {error}") from error


def _not_found(source: str, error: Exception) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}
    hint = "HF_HUB_OFFLINE is set, so only its cache was searched. " if offline else ""
    return (
        f"no reward model {source!r}: it is no local folder, and the Hugging Face hub did not give "
        f"it. {hint}Check the id, or pass a folder, or 'bundled'. ({_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _load_plain(source: str, options: LoadOptions) -> tuple[Any, Any]:
    config = _load_config(source, options)
    _refuse_other_kinds(source, config, options)
    model, missing = _from_pretrained(source, options)
    if missing:
        raise ConfigurationError(
            f"{source!r} holds no trained reward head: the weights {sorted(missing)} are missing, "
            "so they would be random and so would the rewards. Give a model that was saved as a "
            "sequence classifier, or its adapter's folder."
        )
    return model, model.config


def _refuse_other_kinds(source: str, config: Any, options: LoadOptions) -> None:
    names = list(getattr(config, "architectures", None) or [])
    classifier = [n for n in names if n.endswith("ForSequenceClassification")]
    if (
        classifier
        or not names
        or options.recipe.model_class != "AutoModelForSequenceClassification"
    ):
        return
    remote = getattr(config, "auto_map", None) or {}
    if options.trust_remote_code and "AutoModelForSequenceClassification" in remote:
        return
    if any("CausalLM" in n or "ConditionalGeneration" in n or "LMHead" in n for n in names):
        raise ConfigurationError(
            f"{source!r} is a {names[0]}: a generative model, which has no reward head. "
            f"Let it judge instead (JudgeScorer, or --reward judge:{source}), or give a reward "
            "model: a sequence classifier trained on preferences, or 'bundled'."
        )
    raise ConfigurationError(
        f"{source!r} is a {names[0]}, not a sequence classifier: expected an architecture that "
        "ends in ForSequenceClassification, trained to give rewards. The name 'bundled' is one."
    )


def _from_pretrained(source: str, options: LoadOptions) -> tuple[Any, set[str]]:
    import transformers

    auto = getattr(transformers, options.recipe.model_class)
    placed = {} if options.device_map is None else {"device_map": options.device_map}
    try:
        model, info = auto.from_pretrained(
            source,
            dtype=options.dtype,
            output_loading_info=True,
            **placed,
            **_hub_options(options),
        )
    except OSError as error:
        raise ModelNotFoundError(_not_found(source, error)) from error
    except (ValueError, RuntimeError) as error:
        raise ScorerError(f"cannot load the reward model {source!r}: {error}") from error
    return model, {str(key) for key in info["missing_keys"]}


def _load_adapter(source: str, base: str, options: LoadOptions) -> tuple[Any, Any]:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "local", f"the adapter {source!r}") from error
    import transformers

    if not Path(source, "adapter_config.json").is_file() and Path(source).is_dir():
        raise ModelNotFoundError(f"no adapter_config.json in {source!r}")
    config = _load_config(base, options)
    adapter_config = peft.PeftConfig.from_pretrained(source)
    config.num_labels = _adapter_outputs(source)
    try:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, config=config, dtype=options.dtype, trust_remote_code=options.trust_remote_code
        )
        adapted = peft.PeftModel.from_pretrained(model, source, config=adapter_config)
    except OSError as error:
        raise ModelNotFoundError(_not_found(base, error)) from error
    return adapted.merge_and_unload(), config


def _adapter_outputs(source: str) -> int:
    """Read how many outputs an adapter's head has from its weights."""
    from safetensors import safe_open

    with safe_open(str(Path(source, "adapter_model.safetensors")), framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - not a mapping
            if name.endswith(("classifier.weight", "score.weight", "out_proj.weight")):
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
        return AutoTokenizer.from_pretrained(where, **_hub_options(options))
    except (OSError, ValueError) as error:
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
    limits = [getattr(text, "max_position_embeddings", None), tokenizer.model_max_length]
    if config.model_type in {"roberta", "xlm-roberta", "camembert"} and limits[0]:
        limits[0] -= text.pad_token_id + 1  # their positions begin after the padding index
    known = [int(limit) for limit in limits if limit and 0 < limit < _UNLIMITED]
    return min(known) if known else None
