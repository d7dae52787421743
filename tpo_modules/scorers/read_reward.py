"""From what a server said about a response to its reward, or to a clear error."""

from __future__ import annotations

import math

from tpo_modules.errors import RewardError
from tpo_modules.scorers.base import Reward
from tpo_modules.scorers.transport import RequestRefusedError
from tpo_modules.scorers.wire import Item, Output, shown


def read_reward(
    item: Item, outcome: Output | RequestRefusedError, output: int | str | None, url: str
) -> Reward:
    """Take the reward of one response.

    Args:
        item: What was sent.
        outcome: What came back.
        output: Which output of a model with several, by index or by label.
        url: The server, for messages.

    Returns:
        The reward; NaN with a note where the response was refused, or its score is not finite.

    Raises:
        RewardError: What came back is no number, or one too large for a float; or there are
            several and none is asked for.
    """
    if isinstance(outcome, RequestRefusedError):
        return Reward(math.nan, notes=(*item.notes, f"not scored: {outcome}"))
    notes = (*item.notes, *outcome.notes)
    value = _picked(outcome, output, url)
    if value is None:
        return Reward(math.nan, outcome.feedback, (*notes, "the server scored it with null"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RewardError(f"{url} gave {shown(value)} as a reward; expected a number.")
    try:
        finite = math.isfinite(value)
    except OverflowError as error:  # JSON's integers have no limit
        raise RewardError(
            f"{url} gave {shown(value)} as a reward; expected a number that a float can hold."
        ) from error
    if not finite:
        return Reward(math.nan, outcome.feedback, (*notes, f"the server scored it with {value}"))
    return Reward(value, outcome.feedback, notes)


def _picked(outcome: Output, output: int | str | None, url: str) -> object:
    """Take the one output that is the reward."""
    values, labels = outcome.values, outcome.labels
    if output is None:
        if len(values) == 1:
            return values[0]
        names = f" ({', '.join(labels)})" if labels else ""
        raise RewardError(
            f"{url} gave {len(values)} numbers per response{names}; expected one. "
            "Say which one is the reward with output=, by index or label."
        )
    if labels:
        wanted = output if isinstance(output, str) else f"LABEL_{output}"
        if wanted in labels:
            return values[labels.index(wanted)]
    elif isinstance(output, int) and 0 <= output < len(values):
        return values[output]
    have = ", ".join(labels) or f"{len(values)} numbers"
    raise RewardError(f"{url} gave no output {output!r}; it gave {have}.")
