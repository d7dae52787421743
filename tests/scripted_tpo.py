"""A scripted world in which better wording pays: what a prompt says decides what its step's answer earns."""

from __future__ import annotations

import itertools
import json
import re
import threading
from typing import Any

import dspy

from tpo_modules import TPOModule
from tpo_modules.testing import ScriptedLM

BETTER = "Mention the sources."
"""The words that, in any step's prompt, make the rewrite earn 5 instead of 2, and up to 0.4 by luck."""

_WANTED = re.compile(r"Respond with the corresponding output fields.*", re.DOTALL)
_FIELD = re.compile(r"\[\[ ## (\w+) ## \]\]")


def last_number(query: str, response: str) -> float:
    return float(response.split()[-1])


class Named(ScriptedLM):
    """A scripted LM that modules can be saved with: by its name, without its script."""

    def dump_state(self) -> dict[str, Any]:
        return {"model": self.model}


def answering() -> ScriptedLM:
    """Answer as a policy does: any prompt that speaks of the sources leads to a better rewrite."""
    serial, lock = itertools.count(), threading.Lock()

    def reply(prompt: str) -> str:
        with lock:
            number = next(serial)
        told = BETTER if BETTER in prompt else "Be kind."
        if "Textual Gradient" in prompt:
            luck = number * 7 % 5 / 10  # rollouts differ, as SIMBA needs them to
            return f"rewrite {number} {(5 if told == BETTER else 2) + luck}"
        if "Textual Loss" in prompt:
            return f"advice {number}: {told}"
        if "Rejected Response" in prompt:
            return f"review {number}: {told}"
        return f"answer {number} {number % 2}"

    return Named(reply)


def proposing(text: str = BETTER) -> ScriptedLM:
    """Answer what optimizers ask: every field they want says the same, in the form they want it."""

    def reply(prompt: str) -> str:
        wanted = _WANTED.search(prompt)
        if wanted is None:
            return json.dumps({"new_instruction": text})  # GEPA asks through a JSON adapter
        names = [name for name in _FIELD.findall(wanted.group()) if name != "completed"]
        modules = dict.fromkeys(
            re.findall(r"(?:module\.)?(?:loss|gradient|update)\.predict", prompt), text
        )
        values = {name: json.dumps(modules) if name == "module_advice" else text for name in names}
        return "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in values.items())

    return ScriptedLM(reply)


def tpo(**options: Any) -> Any:
    given: dict[str, Any] = {
        "scorer": last_number,
        "width": 2,
        "depth": 1,
        "native_n": True,
        **options,
    }
    return TPOModule("query -> response", **given)


def examples(count: int = 6) -> list[dspy.Example]:
    return [dspy.Example(query=f"Why {i}?").with_inputs("query") for i in range(count)]
