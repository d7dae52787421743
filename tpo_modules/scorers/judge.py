"""An LM as a scorer: `JudgeScorer` rates responses, `PairwiseJudge` compares two."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import dspy

from signatures import CompareResponses, RateResponse
from tpo_modules.drawing import Draw, Drawn, run_threads
from tpo_modules.errors import ConfigurationError, ScorerError
from tpo_modules.lm import Sampling, parameters
from tpo_modules.scorers.base import Reward
from tpo_modules.scorers.judgements import expected_rating, has_reason, read_rating, read_verdict
from tpo_modules.step import Program, Step, check_offered

_TOP_LOGPROBS = 20


class JudgeScorer:
    """Reward a response by the rating that an LM gives it.

    The judge's signature is shown ``query`` and ``response`` and is swappable like the loop's prompts. Where
    the endpoint gives log-probabilities, the reward is the expected value of the rating over the tokens that
    could have stood in its place, which tells apart responses that get the same number (`expected_rating`
    says when it cannot); else it is the mean over ``samples`` ratings. Words around the rating become the
    reward's feedback, which reaches a loss step that asks for it. Ratings of different responses are asked
    for at the same time.

    Cost: ``samples`` sequences per response; one with log-probabilities.

    Args:
        lm: The judge's LM; the one that DSPy is configured with by default.
        signature: A signature or program with inputs among ``query`` and ``response``.
        scale: Lowest and highest rating; a number outside is no rating.
        samples: Ratings per response; 1 asks at temperature 0, more at 0.7.
        logprobs: Whether to ask for log-probabilities: True, False, or None where ``samples`` is 1 and the
            LM is known to give them. An answer without them is read as text.
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
        scale: tuple[float, float] = (1.0, 9.0),
        samples: int = 1,
        logprobs: bool | None = None,
        seed: int | None = None,
    ) -> None:
        if samples < 1 or scale[0] >= scale[1]:
            raise ConfigurationError(
                f"expected samples >= 1 and a scale (lowest, highest), got {samples} and {scale}"
            )
        self.step = _judge_step(signature, ("query", "response"), lm)
        self.scale = scale
        self.samples = samples
        self.logprobs = logprobs
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
        return self._rewards(_draw_all([self._draw(query, response) for response in responses]))

    async def ascore(self, query: str, responses: Sequence[str]) -> list[float]:
        """Do what `score` does, in the running event loop."""
        draws = (self._draw(query, response).arun() for response in responses)
        return self._rewards(await asyncio.gather(*draws))

    def _draw(self, query: str, response: str) -> Draw:
        values = {"query": str(query), "response": str(response)}
        wanted = self.logprobs
        if wanted is None:
            lm = self.step.predict.lm if isinstance(self.step.predict, dspy.Predict) else None
            wanted = self.samples == 1 and "logprobs" in parameters(
                lm or dspy.settings.lm, native=False
            )
        extra = {"logprobs": True, "top_logprobs": _TOP_LOGPROBS} if wanted else {}
        return _ask(self.step, values, self.samples, self.seed, extra)

    def _rewards(self, drawn: Sequence[Drawn]) -> list[float]:
        _check_alive(drawn)
        return [self._reward(one) for one in drawn]

    def _reward(self, drawn: Drawn) -> Reward:
        texts = [completion.text for completion in drawn.call.completions]
        expected = [expected_rating(_logprobs(drawn, i), self.scale) for i in range(len(texts))]
        ratings = [
            read_rating(text, self.scale) if value is None else value
            for text, value in zip(texts, expected, strict=True)
        ]
        notes = _unread("rating", drawn, ratings)
        read = [(r, t) for t, r in zip(texts, ratings, strict=True) if r is not None]
        if not read:
            return Reward(math.nan, notes=notes)
        feedback = read[0][1] if has_reason(read[0][1]) else None
        return Reward(sum(rating for rating, _ in read) / len(read), feedback, notes)


class PairwiseJudge:
    """An LM that compares two responses: the `PairwiseModel` for `PairwiseScorer`.

    Each pair is judged in both orders, so that a preference for a place cancels out. A margin is the log-odds
    of the first response's share of the verdicts, with half a verdict added to each side so that it is
    finite: one judgement in each order gives 1.6 for two wins and 0 for a split or two ties. Both orders
    weigh alike, and without a readable verdict in one of them there is no margin.

    Cost: ``2 * samples`` sequences per pair; a pair that is asked for twice, or in both directions, is
    judged once.

    Args:
        lm: The judge's LM; the one that DSPy is configured with by default.
        signature: A signature or program with inputs among ``query``, ``first_response``,
            ``second_response``, which answers A, B or T.
        samples: Verdicts per order; 1 asks at temperature 0, more at 0.7.
        seed: Base of the seeds sent with each request.

    Raises:
        SignatureError: The signature asks for something that a judge is not shown.
    """

    def __init__(
        self,
        lm: Any = None,
        *,
        signature: Program = CompareResponses,
        samples: int = 1,
        seed: int | None = None,
    ) -> None:
        self.step = _judge_step(signature, ("query", "first_response", "second_response"), lm)
        self.samples = samples
        self.seed = seed

    def margins(self, query: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Compare pairs of responses: see `PairwiseModel.margins`.

        Returns:
            One `Reward` per pair: the margin, or NaN where one of the orders has no readable verdict. Its
            notes tell each verdict that was not read and each request that failed.

        Raises:
            ScorerError: Every request failed.
        """
        drawn = self._compare(query, pairs)
        return [_log_odds(drawn[a, b], drawn[b, a]) for a, b in pairs]

    def shares(self, query: str, first: str, second: str) -> tuple[float | None, float | None]:
        """Ask for verdicts on two responses in both orders.

        Returns:
            The first response's share of the readable verdicts (a tie counts half): where it was shown first,
            and where it was shown second. None for an order without a readable verdict.

        Raises:
            ScorerError: Every request failed.
        """
        drawn = self._compare(query, [(first, second)])
        own, other = (_share(_verdicts(drawn[o])) for o in ((first, second), (second, first)))
        return own, None if other is None else 1 - other

    def _compare(
        self, query: str, pairs: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], Drawn]:
        """Show the pairs in both orders, each order once."""
        shown = list(dict.fromkeys(order for a, b in pairs for order in ((a, b), (b, a))))
        drawn = _draw_all([self._draw(query, *order) for order in shown])
        _check_alive(drawn)
        return dict(zip(shown, drawn, strict=True))

    def _draw(self, query: str, first: str, second: str) -> Draw:
        values = {
            "query": str(query),
            "first_response": str(first),
            "second_response": str(second),
        }
        return _ask(self.step, values, self.samples, self.seed, {})


def _judge_step(program: Program, shown: Sequence[str], lm: Any) -> Step:
    step = Step(program, name="judge")
    check_offered(step, shown)
    if lm is not None:
        step.set_lm(lm)
    return step


def _ask(
    step: Step, values: dict[str, str], n: int, seed: int | None, extra: Mapping[str, Any]
) -> Draw:
    sampling = Sampling(temperature=0.0 if n == 1 else 0.7, top_p=None)
    return Draw(step=step, number=0, values=values, n=n, sampling=sampling, seed=seed, extra=extra)


def _draw_all(draws: Sequence[Draw]) -> list[Drawn]:
    return run_threads([partial(draw.run) for draw in draws])


def _check_alive(drawn: Sequence[Drawn]) -> None:
    failures = [failure for one in drawn for failure in one.call.failures]
    if failures and len(failures) == sum(len(one.call.completions) for one in drawn):
        raise ScorerError(f"the judge's LM failed: {failures[0].type}: {failures[0].message}")


def _logprobs(drawn: Drawn, index: int) -> Any:
    lines = drawn.lines[index] if index < len(drawn.lines) else []
    return lines[-1][2].get("logprobs") if lines else None


def _unread(what: str, drawn: Drawn, values: Sequence[float | None]) -> list[str]:
    """Say of each completion without a value what it says instead, or how its request failed."""
    failed = {failure.index or 0: failure for failure in drawn.call.failures}
    return [
        f"no {what}: {failed[i].type}: {failed[i].message:.80}"
        if i in failed
        else f"no {what} in {drawn.call.completions[i].text!r:.80}"
        for i, value in enumerate(values)
        if value is None
    ]


def _verdicts(drawn: Drawn) -> list[float | None]:
    """Read the share that each verdict gives the response shown first: 1, 0, or one half for a tie."""
    shares = {"A": 1.0, "B": 0.0, "T": 0.5}
    letters = [read_verdict(completion.text) for completion in drawn.call.completions]
    return [shares[letter] if letter else None for letter in letters]


def _share(verdicts: Sequence[float | None]) -> float | None:
    read = [verdict for verdict in verdicts if verdict is not None]
    return fmean(read) if read else None


def _log_odds(shown_first: Drawn, shown_second: Drawn) -> Reward:
    verdicts = _verdicts(shown_first), _verdicts(shown_second)
    notes = [
        *_unread("verdict", shown_first, verdicts[0]),
        *_unread("verdict", shown_second, verdicts[1]),
    ]
    own, other = map(_share, verdicts)
    if own is None or other is None:
        return Reward(math.nan, notes=notes)
    count = sum(map(len, verdicts)) - len(notes)
    won, lost = count * (own + 1 - other) / 2, count * (other + 1 - own) / 2
    return Reward(math.log((won + 0.5) / (lost + 0.5)), notes=notes)
