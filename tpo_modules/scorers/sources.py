"""Where a reward model comes from: a folder, an adapter, the hub; and what is refused, by name."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_modules.errors import ConfigurationError, ModelNotFoundError
from tpo_modules.scorers.recipes import Recipe

BUNDLED = "bundled"
"""The name of the reward model that comes with this package."""

_POINTER_BYTES = 1024  # Git LFS pointers are smaller, by their specification


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Where a reward model comes from and how it is put into memory; see `RewardModelScorer`.

    Raises:
        ConfigurationError: Both ``device`` and ``device_map`` are given.
    """

    model: str
    base_model: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: Any = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.device is not None and self.device_map is not None:
            raise ConfigurationError(
                f"expected device= or device_map=, not both; got device={self.device!r} and "
                f"device_map={self.device_map!r}. Leave one of them out."
            )

    @property
    def hub(self) -> dict[str, Any]:
        """What every ``from_pretrained`` of this model is told."""
        return {"trust_remote_code": self.trust_remote_code, "revision": self.revision}


def find_sources(options: LoadOptions) -> tuple[str, str | None]:
    """Return the model's folder or hub id and, for an adapter, its base model's.

    Raises:
        ModelNotFoundError: The folder is not there, or holds no model, or one with broken files.
        ConfigurationError: An adapter that does not name its base model.
    """
    if options.model == BUNDLED:
        from tpo_modules.scorers.bundled import bundled_path, register

        register()
        return str(bundled_path()), None
    folder = Path(options.model).expanduser()
    if folder.is_dir():
        refuse_pointers(str(folder))
        return str(folder), _base_of_adapter(folder, options)
    if _looks_like_path(options.model):
        raise ModelNotFoundError(
            f"no reward model at {options.model!r}: the folder does not exist. Give a folder that "
            "holds config.json, a Hugging Face model id, or 'bundled'."
        )
    if options.base_model is not None:
        return _download(options), options.base_model
    return options.model, None


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or Path(name).is_absolute()


def _base_of_adapter(folder: Path, options: LoadOptions) -> str | None:
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        if (folder / "config.json").is_file():
            return None
        raise ModelNotFoundError(
            f"no reward model in the folder {str(folder)!r}: it holds neither config.json (a "
            "model) nor adapter_config.json (a PEFT adapter)"
        )
    try:
        content = json.loads(adapter.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelNotFoundError(
            f"no reward model in the folder {str(folder)!r}: adapter_config.json is no valid JSON "
            f"({error}). Download the folder again, or save the adapter anew."
        ) from error
    base = options.base_model or content.get("base_model_name_or_path")
    if not base:
        raise ConfigurationError(
            f"the adapter in {str(folder)!r} does not name its base model: pass base_model="
        )
    return str(base)


def refuse_pointers(folder: str) -> None:
    """Refuse a folder where Git LFS left pointers; what is no folder is not looked at.

    Raises:
        ModelNotFoundError: A file is a pointer (the message names it).
    """
    for file in sorted(Path(folder).glob("*")):
        small = file.is_file() and file.stat().st_size < _POINTER_BYTES
        if small and file.read_bytes().startswith(b"version https://git-lfs."):
            raise ModelNotFoundError(
                f"no reward model in the folder {folder!r}: {file.name} is a Git LFS pointer, not "
                "the file itself. Run `git lfs pull` there, or download the model in another way."
            )


def _download(options: LoadOptions) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(options.model, revision=options.revision)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(not_found(options.model, error)) from error


def load_config(source: str, options: LoadOptions) -> Any:
    """Read a model's configuration.

    Raises:
        ModelNotFoundError: There is none.
        ConfigurationError: It is of a kind that ``transformers`` does not know.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, **options.hub)
    except OSError as error:
        raise ModelNotFoundError(not_found(source, error)) from error
    except ValueError as error:
        raise ConfigurationError(f"cannot read the configuration of {source!r}: {error}") from error


def not_found(source: str, error: Exception) -> str:
    """Say that a model was not to be had, or what its folder lacks, and what to do."""
    why = str(error).strip().split("\n", 1)[0]
    if Path(source).is_dir():
        return (
            f"no reward model could be loaded from the folder {source!r}: {why} Expected "
            "config.json, the weights and the tokenizer: download the folder again, or save the "
            "model anew."
        )
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}
    hint = "HF_HUB_OFFLINE is set, so only its cache was searched. " if offline else ""
    return (
        f"no reward model {source!r}: it is no local folder, and the Hugging Face hub did not give "
        f"it. {hint}Check the id, or pass a folder, or 'bundled'. ({why})"
    )


def refuse_other_kinds(source: str, config: Any, recipe: Recipe, *, trusted: bool) -> None:
    """Refuse what gives no rewards, before its weights are read.

    Raises:
        ConfigurationError: It needs code of its own that is not trusted, or is no sequence
            classifier (the message says what it is, and what to use).
    """
    if recipe.remote_code and not trusted:
        raise ConfigurationError(
            f"{source!r} ({recipe.name}) comes with Python code of its own that computes the "
            "reward. Read that code, then pass trust_remote_code=True to run it."
        )
    names = [str(name) for name in getattr(config, "architectures", None) or []]
    remote = getattr(config, "auto_map", None) or {}
    suits = (
        not names
        or recipe.remote_code
        or any(name.endswith("ForSequenceClassification") for name in names)
        or (trusted and recipe.model_class in remote)
    )
    if suits:
        return
    if any(kind in names[0] for kind in ("CausalLM", "ConditionalGeneration", "LMHead")):
        raise ConfigurationError(
            f"{source!r} is a {names[0]}: a generative model, which has no reward head. "
            f"Let it judge instead (JudgeScorer, or --reward judge:MODEL), or give a reward "
            "model: a sequence classifier trained on preferences, or 'bundled'."
        )
    raise ConfigurationError(
        f"{source!r} is a {names[0]}, not a sequence classifier: expected an architecture that "
        "ends in ForSequenceClassification, trained to give rewards. The name 'bundled' is one."
    )
