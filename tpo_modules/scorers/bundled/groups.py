"""Groups to train on: one query with good, middling and spoilt responses, each with a target.

A target is a logit: about 3 for a very good response, 0 where good and bad are even, -4 for one
that is of no use. The difference of two targets is the log-odds that the first is preferred, so a
group holds graded pairs, and the sign makes rewards of different queries comparable.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log
from random import Random

from tpo_modules.scorers.bundled import corruptions
from tpo_modules.scorers.bundled.data import Corpus, Judged, Labelled, Pair, normalise

LENGTH_TOLERANCE = 0.10
"""Two responses are of equal length if the longer has at most this share more characters."""

MIN_GAP = 0.3
"""Least difference in win rate that makes a length-matched pair."""

_TOP, _BOTTOM = 3.5, -4.0


@dataclass(frozen=True, slots=True)
class Graded:
    """A response and its target as a logit."""

    text: str
    target: float


@dataclass(frozen=True, slots=True)
class Group:
    """Responses to one query, to be ranked by their targets."""

    query: str
    candidates: tuple[Graded, ...]
    source: str
    harmful: bool = False


class Library:
    """Good answers of one split, to be drawn from as off-topic responses."""

    def __init__(self, corpus: Corpus) -> None:
        """Index the good answers by query and the queries by their words."""
        self.by_query: dict[str, list[str]] = defaultdict(list)
        for row in corpus.judged:
            if row.quality > 0 and corruptions.ends_cleanly(row.response):
                self.by_query[row.query].append(row.response)
        for query, response in corpus.answers:
            self.by_query[query].append(response)
        for row in corpus.labelled:
            if row.label == ("refuse" if row.harmful else "comply"):
                self.by_query[row.query].append(row.response)
        self.queries = list(self.by_query)
        self.turns = [(pair.query, pair.chosen) for pair in corpus.pairs]
        self._words = {query: set(normalise(query).split()) for query in self.queries}
        counts = Counter(word for words in self._words.values() for word in words)
        self._weight = {w: log(len(self.queries) / n) for w, n in counts.items()}
        self._near: dict[str, list[str]] = {}

    def far(self, rng: Random, query: str) -> str:
        """Draw a good answer to any other query."""
        if self.turns and rng.random() < 0.08:
            other, response = rng.choice(self.turns)
        else:
            other = rng.choice(self.queries)
            response = rng.choice(self.by_query[other])
        return self.far(rng, query) if other == query else response

    def near(self, rng: Random, query: str) -> str:
        """Draw a good answer to a query that shares words with this one but asks other things."""
        if query not in self._near:
            self._near[query] = self._neighbours(query)
        return rng.choice(self.by_query[rng.choice(self._near[query])])

    def _neighbours(self, query: str, most: int = 12) -> list[str]:
        mine = set(normalise(query).split())

        def overlap(other: str) -> float:
            shared = sum(self._weight.get(word, 0.0) for word in mine & self._words[other])
            union = sum(self._weight.get(word, 5.0) for word in mine | self._words[other])
            return shared / max(union, 1e-9)

        scored = sorted(((overlap(other), other) for other in self.queries), reverse=True)
        return [other for score, other in scored if score < 0.5 and other != query][:most]


def length_matched(first: Judged, second: Judged) -> bool:
    """Tell whether two verdicts make a pair: equal length, same reference, clear difference."""
    shorter, longer = sorted((len(first.response), len(second.response)))
    return (
        first.reference == second.reference
        and longer <= shorter * (1 + LENGTH_TOLERANCE)
        and abs(first.win_rate - second.win_rate) >= MIN_GAP
    )


class GroupMaker:
    """Draws groups from one split; the same seed gives the same groups."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        """Prepare the sources.

        Args:
            corpus: One split's data.
            seed: Fixes every draw.
        """
        self.rng = Random(seed)
        self.corpus = corpus
        self.library = Library(corpus)
        pools: dict[str, dict[str, list[Judged]]] = defaultdict(lambda: defaultdict(list))
        for row in corpus.judged:
            pools[row.query][row.reference].append(row)
        self._pools = {query: list(by.values()) for query, by in pools.items()}
        self._labelled: dict[str, list[Labelled]] = defaultdict(list)
        for row in corpus.labelled:
            self._labelled[row.query].append(row)
        self._spoilers: list[tuple[float, Callable[[str, Graded], Graded]]] = [
            (5.0, self._off_topic),
            (5.0, self._repeated),
            (5.0, self._truncated),
            (1.5, self._stopped),
            (1.6, self._refused),
            (0.7, self._echoed),
            (0.8, self._empty),
            (0.6, self._scrambled),
            (1.0, self._drifted),
            (0.8, self._filled),
            (0.7, self._critique),
            (0.3, self._foreign),
            (0.6, self._flattered),
        ]

    def epoch(self, *, judged: int = 3, pairs: int = 1, labelled: int = 1) -> list[Group]:
        """Draw one epoch in random order.

        Args:
            judged: Groups for each AlpacaEval query.
            pairs: Passes over the HH-RLHF pairs.
            labelled: Passes over the XSTest prompts.
        """
        groups = [self.judged(query) for query in self._pools for _ in range(judged)]
        half = self.rng.sample(self.corpus.answers, len(self.corpus.answers) // 2)
        groups += [self.answered(*row) for row in half]
        groups += [self.paired(pair) for pair in self.corpus.pairs for _ in range(pairs)]
        groups += [self.safety(query) for query in self._labelled for _ in range(labelled)]
        groups += list(self.facts())
        self.rng.shuffle(groups)
        return groups

    def judged(self, query: str) -> Group:
        """Make a group of two length-matched pairs and spoilt versions of the best response."""
        pool = self.rng.choice(self._pools[query])
        natural = [_graded(row) for _ in range(2) for row in self._matched(pool)]
        clean = [g for g in natural if corruptions.ends_cleanly(g.text)]
        best = max(clean or natural, key=lambda g: g.target)
        extra: list[Graded] = []
        if self.rng.random() < 0.35 and (short := corruptions.first_part(self.rng, best.text)):
            best = Graded(short, best.target - 0.7)
            extra = [best]
        spoilt = self._spoil(query, best, 3 - len(extra))
        return Group(query, (*natural, *extra, *spoilt), "judged")

    def _matched(self, pool: Sequence[Judged]) -> list[Judged]:
        for _ in range(60):
            first = self.rng.choice(pool)
            fits = [row for row in pool if length_matched(first, row)]
            if fits:
                return [first, self.rng.choice(fits)]
        return self.rng.sample(list(pool), 2)

    def answered(self, query: str, response: str) -> Group:
        """Make a group of one good answer and spoilt versions of it."""
        best = Graded(response, 2.0)
        extra: list[Graded] = []
        if self.rng.random() < 0.3 and (short := corruptions.first_part(self.rng, response)):
            extra = [Graded(short, 1.0)]
        spoilt = self._spoil(query, self.rng.choice([best, *extra]), 3)
        return Group(query, (best, *extra, *spoilt), "answers")

    def paired(self, pair: Pair) -> Group:
        """Make a group of a chosen and a rejected answer and a spoilt version."""
        chosen, rejected = Graded(pair.chosen, 1.6), Graded(pair.rejected, 0.0)
        good = [g for g in (chosen, rejected) if g.text]
        spoilt = self._spoil(pair.query, good[0], 1)
        return Group(pair.query, (*good, *spoilt), "pairs", harmful=True)

    def safety(self, query: str) -> Group:
        """Make a group of labelled answers to a prompt that is harmful or only looks so."""
        rows = self._labelled[query]
        targets = {"comply": 2.0, "partial": 0.0, "refuse": -2.0}
        if rows[0].harmful:
            targets = {"comply": -2.5, "partial": 0.0, "refuse": 2.0}
        rows = self.rng.sample(rows, min(4, len(rows)))
        found = [Graded(row.response, targets[row.label]) for row in rows if row.response]
        kind = "good_refusals" if rows[0].harmful else "refusals"
        text = corruptions.phrase(self.rng, kind, query)
        found.append(Graded(text, targets["refuse"] + 0.3 * (1 if rows[0].harmful else -3)))
        if rows[0].harmful:
            text = corruptions.phrase(self.rng, "compliances", query)
            found.append(Graded(text, targets["comply"] - 0.5))
        best = max(found, key=lambda g: g.target)
        spoilt = self._spoil(query, best, 1)
        return Group(query, (*found, *spoilt), "labelled", harmful=rows[0].harmful)

    def facts(self) -> Iterator[Group]:
        """Make groups of short questions with short answers, and of hand-written requests."""
        phrases = corruptions.PHRASES
        answers = [(str(q), str(a)) for q, a in phrases["short_facts"]]
        for country, city in phrases["capitals"]:
            answer = self.rng.choice([f"The capital of {country} is {city}.", f"{city}.", city])
            answers.append((f"What is the capital of {country}?", answer))
        for _ in range(20):
            a, b = self.rng.randint(2, 99), self.rng.randint(2, 99)
            answers.append((f"What is {a} + {b}?", self.rng.choice([f"{a + b}", f"{a + b}."])))
        for query, answer in answers:
            wrong = [Graded(text, -3.0) for q, text in self.rng.sample(answers, 2) if q != query]
            best = Graded(answer, 2.0)
            yield Group(query, (best, *wrong, *self._spoil(query, best, 2)), "facts")
        for query, answer in [*phrases["benign_lookalikes"], *phrases["everyday"]]:
            best = Graded(str(answer), 2.0)
            refusal = Graded(corruptions.phrase(self.rng, "refusals", query), -2.5)
            yield Group(query, (best, refusal, *self._spoil(query, best, 2)), "facts")
        for query in phrases["harmful_requests"]:
            yield self._harmful(query)

    def _harmful(self, query: str) -> Group:
        kinds = {"good_refusals": 2.3, "refusals": 1.7, "compliances": -3.0}
        found = [
            Graded(corruptions.phrase(self.rng, kind, query), target)
            for kind, target in kinds.items()
        ]
        spoilt = self._spoil(query, found[0], 1)
        return Group(query, (*found, *spoilt), "facts", harmful=True)

    def _spoil(self, query: str, good: Graded, count: int) -> list[Graded]:
        weights = [weight for weight, _ in self._spoilers]
        makers = [maker for _, maker in self._spoilers]
        chosen = [self.rng.choices(makers, weights)[0] for _ in range(count)]
        spoilt = [make(query, good) for make in chosen]
        return [g for g in spoilt if g.text.strip() and g.text != good.text]

    def _below(self, good: Graded, text: str, loss: float) -> Graded:
        return Graded(text, max(_BOTTOM, good.target - loss))

    def _off_topic(self, query: str, good: Graded) -> Graded:
        draw = self.library.near if self.rng.random() < 0.35 else self.library.far
        text = draw(self.rng, query)
        if self.rng.random() < 0.3 or len(good.text) < 200:
            text = corruptions.first_part(self.rng, text) or text
        return Graded(text, -3.5)

    def _repeated(self, query: str, good: Graded) -> Graded:
        return self._below(good, corruptions.repeat(self.rng, good.text), 4.5)

    def _truncated(self, query: str, good: Graded) -> Graded:
        return self._below(good, corruptions.truncate(self.rng, good.text), 3.5)

    def _stopped(self, query: str, good: Graded) -> Graded:
        text = corruptions.stop_early(self.rng, good.text)
        return self._below(good, text, 0.9 if corruptions.ends_cleanly(text) else 3.5)

    def _refused(self, query: str, good: Graded) -> Graded:
        return Graded(corruptions.phrase(self.rng, "refusals", query), -3.0)

    def _echoed(self, query: str, good: Graded) -> Graded:
        return Graded(corruptions.echo(self.rng, query), _BOTTOM)

    def _empty(self, query: str, good: Graded) -> Graded:
        return Graded(corruptions.phrase(self.rng, "empty_answers", query), -3.5)

    def _scrambled(self, query: str, good: Graded) -> Graded:
        return self._below(good, corruptions.scramble(self.rng, good.text), 6.0)

    def _drifted(self, query: str, good: Graded) -> Graded:
        start = corruptions.first_part(self.rng, good.text) or corruptions.truncate(
            self.rng, good.text, 0.4
        )
        joint = self.rng.choice([" ", "\n\n"])
        return self._below(good, start + joint + self.library.far(self.rng, query), 3.5)

    def _filled(self, query: str, good: Graded) -> Graded:
        return Graded(corruptions.phrase(self.rng, "fillers", query), -2.5)

    def _critique(self, query: str, good: Graded) -> Graded:
        return Graded(corruptions.phrase(self.rng, "critiques", query), -3.0)

    def _foreign(self, query: str, good: Graded) -> Graded:
        return Graded(corruptions.phrase(self.rng, "foreign", query), -3.5)

    def _flattered(self, query: str, good: Graded) -> Graded:
        words = corruptions.phrase(self.rng, "praise", query)
        joint = self.rng.choice([" ", "\n\n"])
        text = words + joint + good.text if self.rng.random() < 0.3 else good.text + joint + words
        return self._below(good, text, 1.2)


def _graded(row: Judged) -> Graded:
    target = 1.5 + row.quality - (1.0 if re.search(r"\w$", row.response) else 0.0)
    return Graded(row.response, min(_TOP, max(-1.5, target)))
