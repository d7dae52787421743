"""Trains the bundled reward model's head on public data, and measures it on queries not trained on.

    python -m tpo_modules.scorers.bundled.train --data DIR --out OUT --seed 0
    python -m tpo_modules.scorers.bundled.train --data DIR --evaluate-only

The encoder stays as it is, so every text goes through it once; the head is fitted on what comes out. About 60,000
texts take half an hour on two idle CPU cores, the fit two minutes.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from tpo_modules.scorers.bundled import base_model_path, bundled_path
from tpo_modules.scorers.bundled.data import Corpus, Split, read_corpus
from tpo_modules.scorers.bundled.evaluate import HEADER, Figure, attacked, by_writer, measure
from tpo_modules.scorers.bundled.fit import STYLE, Judgements, Recipe, Table, fit_head
from tpo_modules.scorers.bundled.groups import Graded, Group, GroupMaker
from tpo_modules.scorers.bundled.model import (
    BundledConfig,
    BundledForSequenceClassification,
    Encoded,
    Head,
    encode_texts,
    features_of,
)

logger = logging.getLogger(__name__)

_OFF_TOPIC = -3.5
_EXTRA = 2  # answers to other queries that each group gets, at no cost: they are encoded already


def make_groups(corpus: Corpus, seed: int) -> list[Group]:
    """Draw the groups to train on, each with two more answers to other queries."""
    groups = GroupMaker(corpus, seed).epoch(judged=4, pairs=1, labelled=3)
    best = [max(group.candidates, key=lambda c: c.target).text for group in groups]
    rng = Random(seed + 1)
    widened: list[Group] = []
    for group in groups:
        others = [rng.randrange(len(groups)) for _ in range(_EXTRA)]
        extra = [
            Graded(best[other], _OFF_TOPIC)
            for other in others
            if groups[other].query != group.query and groups[other].source != "facts"
        ]
        candidates = (*group.candidates, *extra)
        widened.append(Group(group.query, candidates, group.source, group.harmful))
    return widened


def encode(texts: Sequence[str]) -> Iterator[tuple[str, Encoded]]:
    """Encode texts, in parts."""
    tokenizer = AutoTokenizer.from_pretrained(base_model_path())
    encoder = AutoModel.from_pretrained(base_model_path()).eval()
    for start in range(0, len(texts), 1024):
        part = texts[start : start + 1024]
        ids = tokenizer(list(part), add_special_tokens=False, truncation=False)["input_ids"]
        yield from zip(part, encode_texts(encoder, ids), strict=True)
        logger.info("%d of %d texts encoded", start + len(part), len(texts))


def tabulate(groups: Sequence[Group]) -> Table:
    """Encode every text once and put the features of every candidate together."""
    texts = dict.fromkeys(t for g in groups for t in (g.query, *(c.text for c in g.candidates)))
    encoded = dict(encode([*texts]))
    rows = [features_of(encoded[g.query], encoded[c.text]) for g in groups for c in g.candidates]
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + len(group.candidates))
    return Table(
        features=torch.stack([features.half() for features, _ in rows]),
        numbers=torch.stack([numbers for _, numbers in rows]),
        targets=torch.tensor([c.target for g in groups for c in g.candidates]),
        starts=starts,
        groups=groups,
    )


def judgements(corpus: Corpus) -> Judgements:
    """Encode every judged response once and put what its style shows in together."""
    rows = corpus.judged
    encoded = encode([*dict.fromkeys(row.response for row in rows)])
    features = {text: found.means.flatten()[STYLE].half() for text, found in encoded}
    pools: dict[tuple[str, str], int] = {}
    return Judgements(
        features=torch.stack([features[row.response] for row in rows]),
        quality=torch.tensor([row.quality for row in rows], dtype=torch.float32),
        pools=torch.tensor([pools.setdefault((r.query, r.reference), len(pools)) for r in rows]),
    )


def save(head: Head, folder: Path) -> None:
    """Save the head in half precision, its configuration, and the encoder's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in head.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = BundledConfig(width=head.reduce.out_features)
    config.architectures = [BundledForSequenceClassification.__name__]
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_model_path()).save_pretrained(folder)


def evaluate(data: Path, folder: Path, split: str) -> list[Figure]:
    """Measure saved weights on a split, through the scorer that users have."""
    from tpo_modules.scorers.reward_model import RewardModelScorer

    scorer = RewardModelScorer(folder, format="pair")

    def reward(pairs: Sequence[tuple[str, str]]) -> list[float]:
        unique = list(dict.fromkeys(pairs))
        found = dict(zip(unique, scorer.score_pairs(unique), strict=True))
        return [float(found[pair]) for pair in pairs]

    name: Split = "dev" if split == "dev" else "test"
    corpus = read_corpus(data)
    return [
        *measure(reward, corpus[name]),
        attacked(reward, read_corpus(data, attacks=True)[name]),
        by_writer(corpus["train"], corpus[name]),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data")
    parser.add_argument("--out", type=Path, default=bundled_path(), help="folder of the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--evaluate-only", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not options.evaluate_only:
        corpus = read_corpus(options.data)["train"]
        table = tabulate(make_groups(corpus, options.seed))
        save(fit_head(table, judgements(corpus), Recipe(seed=options.seed)), options.out)
    figures = evaluate(options.data, options.out, options.split)
    print("\n".join([HEADER, *(figure.row() for figure in figures)]))  # noqa: T201


if __name__ == "__main__":
    main()
