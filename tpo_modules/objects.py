"""Python objects by their import path, as command lines name them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import cloudpickle

from tpo_modules.errors import ConfigurationError


def load_object(spec: str) -> Any:
    """Import ``module:Name`` or ``file.py:Name``.

    Raises:
        ConfigurationError: There is no such module, file or name.
    """
    source, _, name = spec.rpartition(":")
    try:
        module = _module_of_file(Path(source)) if source.endswith(".py") else _import(source)
    except (ImportError, OSError, SyntaxError) as error:
        raise ConfigurationError(f"cannot import {source!r} of {spec!r}: {error}") from error
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        public = [word for word in vars(module) if not word.startswith("_")]
        raise ConfigurationError(
            f"expected {name!r} in {source!r}, which has {', '.join(public) or 'nothing public'}"
        )
    return found


def _import(source: str) -> Any:
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(
            0, ""
        )  # as `python -m` does: modules beside the working folder can be named
    return importlib.import_module(source)


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    cloudpickle.register_pickle_by_value(module)  # other processes do not find it by its name
    spec.loader.exec_module(module)
    return module
