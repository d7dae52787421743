"""Doubles for tests and notebooks: an LM that follows a script, and a scorer that reads a table.

Both raise when they are asked for something that was not scripted; a test that passes has met what it expected.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy import lm15

from tpo_modules.errors import ScorerError


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted completion.

    Attributes:
        text: What the LM says.
        finish_reason: ``"stop"``, or ``"length"`` for a completion cut at the token limit.
        tokens: Completion tokens that the usage reports; the number of words by default.
    """

    text: str
    finish_reason: str = "stop"
    tokens: int | None = None


Script = Sequence["str | Reply | Exception"] | Callable[[str], "str | Reply | Exception"]
"""Replies in order, or a function from the last user message to a reply; an exception is raised."""


class ScriptedLM(dspy.LM):
    """An LM that says what a script says, and remembers what it was sent.

    It is a real ``dspy.LM`` on an engine of its own, so usage, history, callbacks and ``n`` work as they do
    anywhere; copies share the script and the memory. Threads may share it.

    Args:
        script: Replies in order, or a function from the last user message to a reply.
        **kwargs: As for ``dspy.LM``; ``cache`` is off by default.

    Attributes:
        prompts: The last user message of every request, in order.
        requests: Every ``dspy.lm15.Request``, in order.
    """

    def __init__(self, script: Script, **kwargs: Any) -> None:
        engine = _ScriptEngine(script)
        kwargs = {"model": "scripted/lm", "cache": False, "num_retries": 0, **kwargs}
        super().__init__(engine=engine, async_engine=_AsyncScriptEngine(engine), **kwargs)
        self._script_engine = engine

    @property
    def requests(self) -> list[Any]:
        """Every request so far, one per sequence, in order."""
        return self._script_engine.requests

    @property
    def prompts(self) -> list[str]:
        """The last user message of every request, in order."""
        return [request.messages[-1].text or "" for request in self.requests]


class _ScriptEngine:
    def __init__(self, script: Script) -> None:
        self.requests: list[Any] = []
        self._script = script
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> _ScriptEngine:
        return self

    def complete(self, request: Any) -> Any:
        with self._lock:
            index = len(self.requests)
            self.requests.append(request)
        prompt = request.messages[-1].text or ""
        reply = self._script(prompt) if callable(self._script) else self._next(index, prompt)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, str):
            reply = Reply(reply)
        finish_reason: Any = reply.finish_reason
        tokens = len(reply.text.split()) if reply.tokens is None else reply.tokens
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant([lm15.TextPart(reply.text)]),
            finish_reason=finish_reason,
            usage=lm15.Usage(input_tokens=len(prompt.split()), output_tokens=tokens),
        )

    def _next(self, index: int, prompt: str) -> Any:
        assert not callable(self._script)  # noqa: S101  tells the type checker what complete() knows
        if index >= len(self._script):
            raise AssertionError(
                f"the script has {len(self._script)} replies, and request {index + 1} came: {prompt!r:.200}"
            )
        return self._script[index]


class _AsyncScriptEngine:
    def __init__(self, engine: _ScriptEngine) -> None:
        self._engine = engine

    async def complete(self, request: Any) -> Any:
        return self._engine.complete(request)


class TableScorer:
    """A scorer that looks rewards up by response.

    Args:
        rewards: Reward by response text; a value may be NaN, a `Reward`, or whatever a broken scorer returns.

    Attributes:
        asked: The responses of every call, in order.
    """

    def __init__(self, rewards: Mapping[str, Any]) -> None:
        self.rewards = rewards
        self.asked: list[list[str]] = []

    def __repr__(self) -> str:
        """Name it without its table, as traces do."""
        return "TableScorer()"

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Look the responses up.

        Raises:
            ScorerError: A response is not in the table.
        """
        self.asked.append([str(response) for response in responses])
        missing = [str(response) for response in responses if response not in self.rewards]
        if missing:
            raise ScorerError(f"expected responses that are in the table, got {missing!r}")
        return [self.rewards[response] for response in responses]
