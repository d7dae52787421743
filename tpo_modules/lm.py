"""One request's view of an LM: what is overridden for it, and what is learned from it."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dspy
import tiktoken

from tpo_modules.adapter import split_thinking
from tpo_modules.characters import whole_characters
from tpo_modules.errors import ConfigurationError
from tpo_modules.lms.openai_lm import OpenAIServerLM
from tpo_modules.lms.openai_wire import PARAMETERS
from tpo_modules.trace import Completion, add_usage

# An endpoint that counts fewer tokens than this share of what its texts must hold has not counted all of them
# (llama.cpp counts one of n sequences).
_PLAUSIBLE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an LM is sampled; None leaves what the LM itself is set to.

    Attributes:
        temperature: The paper uses 0.7 for every call.
        top_p: The paper uses 0.95 for responses and 0.99 for critiques.
        max_tokens: Length limit of one sequence. The reference uses 2048 for responses and 8192 for
            critiques; here the LM's own limit stands unless one is given.

    Raises:
        ConfigurationError: The temperature is negative, top_p is not above 0 and at most 1, or max_tokens is
            below 1.
    """

    temperature: float | None = 0.7
    top_p: float | None = 0.95
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no endpoint can sample by."""
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ConfigurationError(
                f"expected the temperature to be 0 or more, got {self.temperature}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigurationError(f"expected top_p above 0 and at most 1, got {self.top_p}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigurationError(f"expected max_tokens of at least 1, got {self.max_tokens}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What one request changes of the LM's own settings.

    Attributes:
        sampling: Temperature, top-p, length limit; None leaves the LM's own.
        n: Sequences asked for in this request.
        seed: Base of the seed sent; None sends none.
        key: What tells this request from the others of the run: step number, step name, sample.
        extra: More request parameters, sent as they are.
    """

    sampling: Sampling
    n: int
    seed: int | None
    key: tuple[int, str, int]
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def for_lm(self, lm: Any) -> dict[str, Any]:
        """Spell the overrides out as keyword arguments of ``lm.copy``.

        The rollout id tells equal prompts apart in DSPy's cache, so that the same run comes from the cache
        again while its samples differ. It and the seed derive from the LM's own rollout id, which an outer
        ``dspy.BestOfN`` or ``dspy.Refine`` sets, so that their attempts differ too.
        """
        own: Mapping[str, Any] = getattr(lm, "kwargs", {})
        source = (self.seed, own.get("rollout_id"), *self.key)
        temperature = self.sampling.temperature
        hot = (own.get("temperature") if temperature is None else temperature) != 0
        limit = "max_completion_tokens" if "max_completion_tokens" in own else "max_tokens"
        wanted: dict[str, Any] = {
            "temperature": temperature,
            "top_p": self.sampling.top_p,
            limit: self.sampling.max_tokens,
            "rollout_id": stable_id(*source) if hot else None,
            "seed": stable_id("seed", *source) if self.seed is not None else None,
            "n": self.n if self.n > 1 else None,
        }
        known = parameters(lm, native=self.n > 1)
        keep = {name: value for name, value in wanted.items() if value is not None}
        ours = {"rollout_id", "n", limit}
        kept = {k: v for k, v in keep.items() if not known or k in known or k in ours}
        return {**kept, **self.extra}


@dataclass(slots=True)
class CallLog:
    """What the LM said beside its text in the requests of one program call."""

    entries: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def requests(self) -> int:
        """Requests made, those answered from the cache included."""
        return len(self.entries)

    @property
    def cached(self) -> int:
        """Requests that DSPy's cache answered: they report no usage, though the stored answer has one."""
        return sum(not e["usage"] and _from_cache(e["response"]) for e in self.entries)

    @property
    def models(self) -> set[str]:
        """Names of the LMs that answered."""
        return {entry["model"] for entry in self.entries}

    @property
    def usage(self) -> dict[str, int]:
        """Tokens billed over all requests."""
        return add_usage(*(_counts(entry["usage"]) for entry in self.entries))

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        """The messages of the first request."""
        return self.entries[0]["messages"] if self.entries else None

    def complete(
        self, *, text: str, fields: dict[str, Any], index: int = 0, of: int = 1
    ) -> Completion:
        """Put the output ``index`` of the ``of`` that a program gave together with what the LM said beside it.

        The finish reason and the thinking are those of its sequence in the last request. Its tokens are those of
        every sequence that was generated for it: in each request, every ``of``-th one from ``index`` on.
        """
        text = whole_characters(text)
        if not self.entries:
            return Completion(text=text, fields=fields)
        entry = self.entries[-1]
        reasons = _finish_reasons(entry["response"])
        raw = entry["outputs"][index] if index < len(entry["outputs"]) else None
        tokens = [count for each in self.entries for count in _tokens(each)[index::of]]
        return Completion(
            text=text,
            fields=fields,
            finish_reason=reasons[index] if index < len(reasons) else None,
            tokens=sum(tokens) if tokens else None,
            thinking=_thinking(raw),
        )


def watch_lm(lm: Any, overrides: Overrides, log: CallLog) -> Any:
    """Copy an LM for one request: with the overrides, and reporting to ``log``.

    A copy shares the original's connections and cache. What DSPy records of the call goes to the original's
    history too, unless history is switched off.
    """
    changes = overrides.for_lm(lm)
    if overrides.n > 1 and getattr(lm, "engine", None) == "auto":
        changes["engine"] = (
            "litellm"  # DSPy's own engine sends n sequences as n sequential requests
        )
    if overrides.n == 1 and "n" in getattr(lm, "kwargs", {}):
        changes["n"] = (
            None  # an LM that was made for several sequences would be asked for them in every request
        )
    view = lm.copy(**changes)
    silent = dspy.settings.disable_history

    def record(entry: dict[str, Any]) -> None:
        log.entries.append({**entry, "stated": _stated_tokens(view, entry)})
        if not silent:
            lm.update_history(entry)

    view.update_history = record
    return view


def supports_native_n(lm: Any) -> bool:
    """Tell whether one request can ask this LM for several sequences.

    True for an `OpenAIServerLM`, and for a chat ``dspy.LM`` on one of DSPy's own engines whose provider is known
    to take ``n`` (OpenAI and every server that speaks its protocol: vLLM, SGLang, llama.cpp).
    """
    if isinstance(lm, OpenAIServerLM):
        return True
    engine = getattr(lm, "engine", None)
    if not isinstance(lm, dspy.LM) or engine not in ("auto", "litellm") or lm.model_type != "chat":
        return False
    return "n" in parameters(lm, native=True)


def parameters(lm: Any, *, native: bool) -> frozenset[str]:
    """Return the request parameters that an LM is known to take; empty where nothing is known."""
    if isinstance(lm, OpenAIServerLM):
        return PARAMETERS
    if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return frozenset()
    engine = "litellm" if native else lm.engine
    return _parameters(lm.model, lm.model_type, engine)


@functools.lru_cache(maxsize=256)
def _parameters(model: str, model_type: Any, engine: str) -> frozenset[str]:
    return frozenset(dspy.LM(model, model_type=model_type, engine=engine).supported_params)


def stable_id(*parts: object) -> int:
    """Hash parts to a number below 2**31 that is the same in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _counts(usage: Mapping[str, Any]) -> dict[str, int]:
    names = ("prompt_tokens", "completion_tokens")
    return {name: int(usage[name]) for name in names if usage.get(name)}


def _get(obj: Any, name: str) -> Any:
    return obj.get(name) if isinstance(obj, Mapping) else getattr(obj, name, None)


def _raw_usage(response: Any) -> int:
    """Completion tokens that a response states, from whichever of DSPy's engines it comes."""
    if isinstance(response, (tuple, list)):
        return sum(_raw_usage(part) for part in response)
    usage = _get(response, "usage")
    return int(_get(usage, "completion_tokens") or _get(usage, "output_tokens") or 0)


def _from_cache(response: Any) -> bool:
    return bool(getattr(response, "cache_hit", False)) or bool(_raw_usage(response))


def _stated_tokens(view: Any, entry: Mapping[str, Any]) -> int:
    """Completion tokens that a request's answer states, or stated when it was first given.

    DSPy's cache wipes the usage of an answer that came over LiteLLM, so it is kept beside it in the same cache:
    a replay counts, and stops, where the first run did.
    """
    stated = _raw_usage(entry["response"])
    keeps = isinstance(view, OpenAIServerLM) or _get(entry["response"], "choices") is None
    if keeps or not getattr(view, "cache", False):
        return stated
    settings = {k: v for k, v in view.kwargs.items() if not k.startswith("api_")}
    key = {"tpo": "tokens", "of": [view.model, entry["messages"], settings]}
    if stated:
        dspy.cache.put(key, {"completion_tokens": stated})
        return stated
    return int((dspy.cache.get(key) or {}).get("completion_tokens", 0))


def _finish_reasons(response: Any) -> list[str | None]:
    if isinstance(response, (tuple, list)):
        return [reason for part in response for reason in _finish_reasons(part)]
    choices = _get(response, "choices")
    if choices is None:
        return [_get(response, "finish_reason")]
    return [_get(choice, "finish_reason") for choice in choices]


def _text(output: Any) -> str:
    if isinstance(output, Mapping):
        parts = (output.get("reasoning_content"), output.get("text"))
        return "\n".join(part for part in parts if part)
    return output or ""


def _thinking(output: Any) -> str | None:
    if isinstance(output, Mapping) and output.get("reasoning_content"):
        return whole_characters(str(output["reasoning_content"]))
    thinking, _ = split_thinking(_text(output))
    return None if thinking is None else whole_characters(thinking)


def _tokens(entry: dict[str, Any]) -> list[int]:
    """Tokens of each sequence of a request: what is stated, by their lengths, or else an estimate."""
    outputs, stated = entry["outputs"], entry["stated"]
    if len(outputs) == 1 and stated:
        return [stated]
    guesses: list[int] = entry.get("guesses") or [count_tokens(_text(out)) for out in outputs]
    entry["guesses"] = guesses
    total = sum(guesses)
    if total and stated >= _PLAUSIBLE * total:
        return [round(stated * guess / total) for guess in guesses]
    return guesses


def count_tokens(text: str) -> int:
    """Estimate the tokens of a text (OpenAI's cl100k vocabulary, which comes with LiteLLM)."""
    return len(_encoding().encode(text, disallowed_special=())) if text else 0


@functools.lru_cache(maxsize=1)
def _encoding() -> Any:
    spec = find_spec("litellm")
    files = Path(spec.origin if spec and spec.origin else "").with_name("litellm_core_utils")
    if not (files / "tokenizers").is_dir():
        from litellm.litellm_core_utils.default_encoding import encoding

        return encoding
    # Importing LiteLLM for its copy of the vocabulary would take seconds.
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(files / "tokenizers"))
    return tiktoken.get_encoding("cl100k_base")
