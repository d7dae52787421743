"""The embedded default LM: a small model served by llama.cpp inside this process, on loopback.

It is the same code path as a large run. ``embedded_lm()`` returns an ordinary ``dspy.LM`` whose
endpoint happens to live in this process::

    lm = embedded_lm()                      # SmolLM2-135M-Instruct, from its weight package
    lm = embedded_lm("model.gguf")          # any instruct model in a GGUF file
    lm = embedded_lm("org/repo:file.gguf")  # the hub

The server is a set of native threads of this process, so nothing can outlive it, not even after
``kill -9``. It listens on 127.0.0.1 at a free port, is started once per process for equal weights
and settings, and is closed at exit. A forked child can still reach its parent's server through an
LM made before the fork; one made after the fork gets a server of the child's own.

Requests without a system message get the one in the model's chat template, if it has one:
SmolLM2's says that it is a helpful assistant named SmolLM.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dspy
import httpx

from tpo_modules.errors import ConfigurationError
from tpo_modules.lms.llama import (
    ServerSettings,
    cut_connections,
    keep_alive,
    skip_native_cleanup,
    start_llama,
)
from tpo_modules.lms.weights import WEIGHT_PACKAGE, find_weights

__all__ = ["DEFAULT_SLOTS", "EmbeddedServer", "close_servers", "embedded_lm", "embedded_server"]

DEFAULT_CONTEXT = 4096
DEFAULT_SLOTS = 5
_STOP_SECONDS = 15
_MAX_THREADS = 8  # beyond that a model of this size gains nothing


class EmbeddedServer:
    """A llama.cpp server in this process, OpenAI-compatible, on 127.0.0.1.

    Obtained from `embedded_server`, which shares one between all callers with equal settings.

    Attributes:
        url: Base address of the OpenAI-compatible API, ends in ``/v1``.
        model: Name of the weights, for ``dspy.LM("openai/" + server.model)``: the file's, and for a file that is
            not the weight package's a digest of its content, since files of equal names may differ.
        path: The GGUF file that is served.
        context: Tokens that one sequence may hold, prompt and response together.
        slots: Sequences generated at once; the largest ``n`` of a single request.
    """

    def __init__(self, native: Any, settings: ServerSettings, model: str) -> None:
        self._native = native
        self._settings = settings
        self._root: str = native.listening_address
        # No proxy and no certificates: it is this very process.
        self._client = httpx.Client(base_url=self._root, trust_env=False, verify=False)
        self.url = f"{self._root}/v1"
        self.model = model
        self.path = settings.path
        self.context = settings.context
        self.slots = settings.slots

    @property
    def closed(self) -> bool:
        """Whether the server has been stopped."""
        return self._native is None

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, chat template not included."""
        reply = self._client.post("/tokenize", json={"content": text}, timeout=60)
        reply.raise_for_status()
        return len(reply.json()["tokens"])

    def close(self) -> None:
        """Stop the server and free its memory; safe to call twice.

        Requests under way are cut off. LMs that point here fail from now on.
        """
        with _lock:
            if _servers.get(self._settings) is self:
                del _servers[self._settings]
            if self.closed:
                return
            if not self._stop_requests() or _after_fork:
                self.abandon()  # releasing it would block this process, or end it
            self._client.close()
            self._native = None  # the binding stops the native server when it is released

    def _stop_requests(self) -> bool:
        """Cut off the requests under way; return whether that worked in time.

        The native server waits for them when it is released, and holds the interpreter meanwhile. It gives
        up on a request whose connection is gone, which it notices after a second in which nobody asks.
        """
        deadline = time.monotonic() + _STOP_SECONDS
        while self._busy():
            if time.monotonic() > deadline:
                return False
            cut_connections(int(self._root.rpartition(":")[2]))
            time.sleep(1.1)
        return True

    def _busy(self) -> bool:
        try:
            slots = self._client.get("/slots", timeout=2).json()
        except httpx.HTTPError:
            return True
        return any(slot["is_processing"] for slot in slots)

    def abandon(self) -> None:
        """Keep the native server from ever being released, so that nothing waits for its threads.

        For a forked child, whose parent kept the threads, and for a server that does not stop.
        """
        keep_alive(self._native)


_lock = threading.RLock()
_servers: dict[ServerSettings, EmbeddedServer] = {}
_after_fork = (
    False  # whether llama.cpp's threads stayed with a parent that this process was forked from
)


def embedded_server(
    model: str | os.PathLike[str] | None = None,
    *,
    context: int = DEFAULT_CONTEXT,
    slots: int = DEFAULT_SLOTS,
    threads: int | None = None,
    verbose: bool = False,
) -> EmbeddedServer:
    """Start a server for the given weights, or return the one that already runs.

    Args:
        model: None for SmolLM2-135M-Instruct from its weight package; a GGUF file or the folder
            of one; or ``org/repo:file.gguf`` on the hub. See `tpo_modules.lms.weights.find_weights`.
        context: Tokens that one sequence may hold, prompt and response together. Memory grows
            with ``context * min(slots, 8)``: about 470 MB for SmolLM2 at the defaults. More
            than eight slots share that of eight, and a prompt is kept once for all its samples.
        slots: Sequences generated at once. A request with a larger ``n`` is refused.
        threads: CPU threads; None takes what this process may use, at most eight.
        verbose: Let llama.cpp log to standard error.

    Raises:
        ConfigurationError: A number below 1.
        MissingExtraError: llama.cpp or the weight package is not installed.
        EmbeddedModelError: The weights were not found, or cannot be loaded.
    """
    for name, value in (("context", context), ("slots", slots), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{name} must be at least 1, got {value}")
    settings = ServerSettings(
        find_weights(model), context, slots, threads or _usable_cpus(), verbose
    )
    with _lock:
        if settings not in _servers:
            name = _model_name(settings.path)
            _servers[settings] = EmbeddedServer(start_llama(settings, name), settings, name)
        return _servers[settings]


def embedded_lm(
    model: str | os.PathLike[str] | None = None,
    *,
    context: int = DEFAULT_CONTEXT,
    slots: int = DEFAULT_SLOTS,
    threads: int | None = None,
    verbose: bool = False,
    **lm_kwargs: Any,
) -> dspy.LM:
    """Return a ``dspy.LM`` on a model that runs in this process, on the CPU, offline.

    Args:
        model: See `embedded_server`.
        context: See `embedded_server`.
        slots: See `embedded_server`. With native ``n``, at least the width of the run.
        threads: See `embedded_server`.
        verbose: See `embedded_server`.
        **lm_kwargs: Passed on to ``dspy.LM``: ``temperature``, ``max_tokens``, ``cache``, ...

    Raises:
        ConfigurationError: A number below 1.
        MissingExtraError: llama.cpp or the weight package is not installed.
        EmbeddedModelError: The weights were not found, or cannot be loaded.
    """
    server = embedded_server(model, context=context, slots=slots, threads=threads, verbose=verbose)
    # DSPy's own engine would send n requests one after another; LiteLLM sends one with n.
    options: dict[str, Any] = {"engine": "litellm", "max_tokens": 512, **lm_kwargs}
    return dspy.LM(f"openai/{server.model}", api_base=server.url, api_key="local", **options)


def _model_name(path: Path) -> str:
    # DSPy's cache knows an LM by this name, not by its address: it has to tell weights apart. All of the file is
    # read: checkpoints of one model are equal in size and in their first megabytes.
    if path.parent.name == WEIGHT_PACKAGE:
        return path.stem
    digest = hashlib.blake2b(digest_size=4)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return f"{path.stem}-{digest.hexdigest()}"


def _usable_cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count()
    return max(1, min(count or 1, _MAX_THREADS))


def close_servers() -> None:
    """Stop every embedded server of this process; done at exit anyway.

    Call it where requests of other threads should not be waited for, as on Ctrl-C.
    """
    for server in list(_servers.values()):
        server.close()


def _forget_parents_servers() -> None:
    global _lock, _after_fork  # another thread may have held the lock during the fork
    _lock = threading.RLock()
    for server in _servers.values():
        server.abandon()
    if "xllamacpp" in sys.modules:
        _after_fork = True
        skip_native_cleanup()
    _servers.clear()


atexit.register(close_servers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_servers)
