"""The baselines as modules of their own: best-of-N, and Revision."""

from __future__ import annotations

from typing import Any

from signatures import RevisionLoss
from tpo_modules.drive import Work
from tpo_modules.policy import PolicyModule
from tpo_modules.run import Run
from tpo_modules.step import Program
from tpo_modules.tpo import TPOModule

_NEVER_SHOWN = (
    "rejected_response",
    "rejected_reward",
    "rejected_feedback",
    "reward_gap",
    "ranked_responses",
)


class BestOfNModule(PolicyModule):
    """Best-of-N: sample ``width`` responses and return the one of the highest reward.

    Equal to `TPOModule` of depth 0, request for request, so that with DSPy's cache both start from the same
    samples. Cost: one round of ``width`` samples and as many rewards. The arguments are those of `PolicyModule`.

    Against TPO at equal samples, ``width`` is N(D+1): 15 for D2-N5.
    """

    method = "bon"

    def _fill(self, run: Run) -> Work[None]:
        yield from run.sample(self.policy, 0, run.query.inputs)


class RevisionModule(TPOModule):
    """The Revision baseline: TPO whose critique never sees a rejected response.

    The chosen response is reviewed and revised on its own; the reward model still decides which response
    that is. (The paper's "Revision"; the reference's mode ``revision``.) A step that asks for anything about
    a rejected response, or for the ranked pool, is refused. The arguments are those of `TPOModule`.
    """

    method = "revision"

    def __init__(
        self,
        policy: Program = "query -> response",
        *,
        scorer: Any,
        loss: Program | None = RevisionLoss,
        **options: Any,
    ) -> None:
        super().__init__(policy, scorer=scorer, loss=loss, **options)

    @property
    def offered(self) -> tuple[str, ...]:
        """Names that the loop offers: nothing about any response but the chosen one."""
        return tuple(name for name in super().offered if name not in _NEVER_SHOWN)
