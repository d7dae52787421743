"""Matching: how many plain samples best-of-N gets on a query, to cost what another method cost there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tpo_modules.experiments.methods import Method
from tpo_modules.experiments.outcomes import Outcome, drawn_responses, outcome_of_first
from tpo_modules.trace import TPOTrace

Match = Literal["samples", "tokens"]

MOST_ROUNDS = 60  # of best-of-N, where samples are so short that tokens would buy more


@dataclass(frozen=True, slots=True)
class Matcher:
    """Tells how far best-of-N samples, query by query.

    Attributes:
        match: Whether it gets as many samples as the other method drew, or as its generated tokens buy.
        other: The other method's runs by query; None leaves best-of-N at its first round.
    """

    match: Match
    other: Mapping[str, TPOTrace] | None

    def enough(self, method: Method, identity: str, trace: TPOTrace) -> bool:
        """Tell whether a run of samples is long enough for a method."""
        if trace.status == "failed":
            return True  # a round failed for good: what there is must do
        samples, tokens = self._limits(method, identity)
        drawn = len(drawn_responses(trace))
        return drawn >= (samples or 0) and (tokens is None or trace.generated_tokens > tokens)

    def rounds(self, methods: Sequence[Method], identity: str, trace: TPOTrace) -> int | None:
        """Tell up to which round samples are to be drawn next; None if the run is long enough for all methods.

        Where the number of samples is known that is the last round of them; where tokens decide, one more.
        """
        short = [method for method in methods if not self.enough(method, identity, trace)]
        if not short or len(trace.calls) >= MOST_ROUNDS:
            return None
        last = max(
            math.ceil((self._limits(method, identity)[0] or 0) / method.module.width)
            for method in short
        )
        return min(max(last, len(trace.calls) + 1), MOST_ROUNDS)

    def outcome(self, method: Method, identity: str, trace: TPOTrace) -> Outcome | None:
        """Sum up the part of a run of samples that a method gets; None if it has no response."""
        if method.matched and self.other is not None and identity not in self.other:
            return None
        samples, tokens = self._limits(method, identity)
        return outcome_of_first(identity, trace, samples=samples, tokens=tokens)

    def _limits(self, method: Method, identity: str) -> tuple[int | None, int | None]:
        """Samples and tokens that a method may use on a query; None for no limit of that kind."""
        if not method.matched:
            return method.samples, None
        if self.other is None or identity not in self.other:
            return method.module.width, None
        other = self.other[identity]
        if self.match == "tokens":
            return None, other.generated_tokens
        return len(drawn_responses(other)), None
