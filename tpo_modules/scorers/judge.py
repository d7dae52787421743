"""`JudgeScorer`: an LM rates responses by a signature of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from signatures import RateResponse
from tpo_modules.drawing import Draw, Drawn
from tpo_modules.errors import ConfigurationError, ScorerError
from tpo_modules.lm import Sampling
from tpo_modules.scorers.base import Reward
from tpo_modules.step import Program, Step, check_offered

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")


class JudgeScorer:
    """Reward a response by the rating that an LM gives it.

    The judge's signature is shown ``query`` and ``response``; it is swappable like the prompts. The reward is
    the mean over ``samples`` ratings; text before the rating becomes the reward's feedback, which reaches a
    loss step that asks for it. Ratings of different responses are asked for concurrently.

    Cost: ``samples`` sequences per response.

    Args:
        lm: The judge's LM; the one that DSPy is configured with by default.
        signature: A signature or program with inputs among ``query`` and ``response``.
        scale: Lowest and highest rating; a number outside is no rating.
        samples: Ratings per response; 1 asks at temperature 0, more at 0.7.
        seed: Base of the seeds sent with each request.

    Raises:
        ConfigurationError: An argument cannot work.
        SignatureError: The signature asks for something that a judge is not shown.
    """

    def __init__(
        self,
        lm: Any = None,
        *,
        signature: Program = RateResponse,
        scale: tuple[float, float] = (1.0, 10.0),
        samples: int = 1,
        seed: int | None = None,
    ) -> None:
        if samples < 1 or scale[0] >= scale[1]:
            raise ConfigurationError(
                f"expected samples >= 1 and a scale (lowest, highest), got {samples} and {scale}"
            )
        self.step = Step(signature, name="judge")
        check_offered(self.step, ("query", "response"))
        if lm is not None:
            self.step.set_lm(lm)
        self.scale = scale
        self.samples = samples
        self.seed = seed

    def __repr__(self) -> str:
        """Name the judge's LM, as traces do."""
        lm = getattr(self.step.predict, "lm", None)
        return f"JudgeScorer({getattr(lm, 'model', None)}, samples={self.samples})"

    def __deepcopy__(self, memo: dict[int, Any]) -> JudgeScorer:
        return self

    def score(self, query: str, responses: Sequence[str]) -> list[float]:
        """Rate each response: see `Scorer.score`. A response without one readable rating scores NaN.

        Raises:
            ScorerError: Every request failed.
        """
        return self._rewards([self._draw(query, response).run() for response in responses])

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Do what `score` does, all responses at once."""
        draws = (self._draw(query, response).arun() for response in responses)
        return self._rewards(await asyncio.gather(*draws))

    def _draw(self, query: str, response: str) -> Draw:
        return Draw(
            step=self.step,
            number=0,
            values={"query": str(query), "response": str(response)},
            n=self.samples,
            sampling=Sampling(temperature=0.0 if self.samples == 1 else 0.7, top_p=None),
            seed=self.seed,
        )

    def _rewards(self, drawn: Sequence[Drawn]) -> list[float]:
        failures = [failure for one in drawn for failure in one.call.failures]
        if failures and len(failures) == self.samples * len(drawn):
            raise ScorerError(f"the judge's LM failed: {failures[0].type}: {failures[0].message}")
        return [self._reward([c.text for c in one.call.completions]) for one in drawn]

    def _reward(self, texts: Sequence[str]) -> Reward:
        ratings = [(read_rating(text, self.scale), text) for text in texts]
        read = [(rating, text) for rating, text in ratings if rating is not None]
        notes = [f"no rating in {text!r:.80}" for rating, text in ratings if rating is None]
        if not read:
            return Reward(float("nan"), notes=notes)
        reason = _NUMBER.sub("", read[0][1]).strip()
        feedback = read[0][1] if len(reason.split()) > 3 else None
        return Reward(sum(rating for rating, _ in read) / len(read), feedback, notes)


def read_rating(text: str, scale: tuple[float, float]) -> float | None:
    """Read the last number on the scale from a judge's answer; ``8/10`` counts as 8; None where there is none."""
    top = f"{scale[1]:g}"
    cleaned = re.sub(rf"(?:/|\bout of)\s*{re.escape(top)}\b", " ", text)
    numbers = [float(found) for found in _NUMBER.findall(cleaned)]
    on_scale = [number for number in numbers if scale[0] <= number <= scale[1]]
    return on_scale[-1] if on_scale else None


