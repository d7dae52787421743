"""Fits the head: gate, harmlessness and style by convex fits, the rating as a whole by descent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from tpo_modules.scorers.bundled.groups import Group
from tpo_modules.scorers.bundled.model import Head

logger = logging.getLogger(__name__)

_HIDDEN = 384
_RESPONSE_MEANS = slice(0, 4 * _HIDDEN)  # layers 1 to 4
STYLE = slice(_HIDDEN, 3 * _HIDDEN)
"""The features from which style is rated: the response's means over layers 2 and 3."""
_QUERY_MEANS = slice(11 * _HIDDEN, 13 * _HIDDEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the head is fitted.

    Attributes:
        seed: Fixes groups, order and start.
        epochs: Passes over the groups.
        groups_per_step: Groups in one step.
        learning_rate: Peak, after a warm-up.
        weight_decay: Of AdamW.
        dropout: Of the features.
        width: Of the hidden layer of each of the `members`, whose mean is kept as one head.
        members: Fits with different seeds.
        weights: Weight of a source's comparisons; 1 for others.
        threshold: Log-odds of a harmful query at which the gate is half open.
        sharpness: How fast it opens from there, 1 being the log-odds themselves.
        harmless: Deviation of the harmlessness rating in the reward.
        decay: Ridge penalty of the harmlessness rating.
        style_decay: Ridge penalty of the rating of style, for each response.
        brevity: What the reward loses when a response becomes longer by a factor of e.
    """

    seed: int = 0
    epochs: int = 5
    groups_per_step: int = 48
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    dropout: float = 0.5
    width: int = 96
    members: int = 2
    weights: tuple[tuple[str, float], ...] = (("pairs", 3.0), ("judged", 1.5))
    threshold: float = 2.5
    sharpness: float = 3.0
    harmless: float = 2.0
    decay: float = 1.0
    style_decay: float = 0.33
    brevity: float = 0.15


@dataclass(frozen=True, slots=True)
class Table:
    """Features of every candidate of every group, in order.

    Attributes:
        features: (candidates, features), half precision.
        numbers: (candidates, numbers).
        targets: (candidates,), logits.
        starts: Where each group begins, and the end.
        groups: The groups.
    """

    features: torch.Tensor
    numbers: torch.Tensor
    targets: torch.Tensor
    starts: Sequence[int]
    groups: Sequence[Group]


@dataclass(frozen=True, slots=True)
class Judgements:
    """All judged responses, as they are.

    Attributes:
        features: (responses, features in `STYLE`), half precision.
        quality: (responses,), logits.
        pools: (responses,), the number of the query and reference that a response belongs to.
    """

    features: torch.Tensor
    quality: torch.Tensor
    pools: torch.Tensor


def fit_head(table: Table, judgements: Judgements, recipe: Recipe) -> Head:
    """Fit a head with all its parts."""
    members = [_fit_member(table, recipe, recipe.seed + i) for i in range(recipe.members)]
    head = _join(members)
    _standardise(head, table)
    inputs, _ = head.standard(table.features.float(), table.numbers)
    _fit_gate(head, inputs, table, recipe)
    _fit_harmless(head, inputs, table, recipe)
    _fit_style(head, judgements, recipe)
    head.brevity.fill_(recipe.brevity)
    return head


def _standardise(head: Head, table: Table) -> None:
    head.mean.copy_(table.features.float().mean(0))
    head.scale.copy_(1 / (table.features.float().std(0) + 1e-3))
    head.numbers_mean.copy_(table.numbers.mean(0))
    head.numbers_scale.copy_(1 / (table.numbers.std(0) + 1e-3))


def _fit_member(table: Table, recipe: Recipe, seed: int) -> Head:
    torch.manual_seed(seed)
    head = Head(table.features.shape[1], recipe.width)
    _standardise(head, table)
    weights = [*head.reduce.parameters(), *head.mix.parameters(), *head.out.parameters()]
    optimizer = torch.optim.AdamW(
        weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    size, count = recipe.groups_per_step, len(table.groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.epochs * (count // size), pct_start=0.1
    )
    generator = np.random.default_rng(seed)
    for epoch in range(recipe.epochs):
        order = generator.permutation(count)
        total = 0.0
        for at in range(0, count - size + 1, size):
            loss = _loss(head, table, order[at : at + size].tolist(), recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        logger.info("seed %d, epoch %d: loss %.4f", seed, epoch, total / (count // size))
    return head


def _loss(head: Head, table: Table, chosen: Sequence[int], recipe: Recipe) -> torch.Tensor:
    """Bradley-Terry with soft labels over the pairs of each group, and a term on each reward's sign."""
    weights = dict(recipe.weights)
    spans = [range(table.starts[i], table.starts[i + 1]) for i in chosen]
    rows = torch.tensor([row for span in spans for row in span])
    group = torch.tensor([place for place, span in enumerate(spans) for _ in span])
    weight = torch.tensor(
        [
            weights.get(table.groups[i].source, 1.0)
            for i, s in zip(chosen, spans, strict=True)
            for _ in s
        ]
    )
    target = table.targets[rows]
    inputs = head.standard(table.features[rows].float(), table.numbers[rows])
    reward = head.rate(*inputs, dropout=recipe.dropout)[:, 0]
    gap = target[:, None] - target[None]
    pairs = (group[:, None] == group[None]) & (gap > 0.2)
    found = (reward[:, None] - reward[None])[pairs]
    label = (1.5 * gap[pairs]).sigmoid()
    each = functional.binary_cross_entropy_with_logits(found, label, reduction="none")
    share = weight[:, None].expand_as(gap)[pairs]
    sign = functional.binary_cross_entropy_with_logits(reward, target.sigmoid())
    return (share * each).mean() + 0.1 * sign


def _join(members: Sequence[Head]) -> Head:
    """Put heads side by side, so that the result is their mean."""
    width = members[0].reduce.out_features
    half, numbers = members[0].mix.out_features, len(members[0].numbers_mean)
    head = Head(members[0].reduce.in_features, width * len(members))
    with torch.no_grad():
        head.reduce.weight.copy_(torch.cat([m.reduce.weight for m in members]))
        head.reduce.bias.copy_(torch.cat([m.reduce.bias for m in members]))
        head.mix.weight.zero_()
        for i, member in enumerate(members):
            block = head.mix.weight[half * i : half * (i + 1)]
            block[:, width * i : width * (i + 1)] = member.mix.weight[:, :width]
            block[:, -numbers:] = member.mix.weight[:, width:]
        head.mix.bias.copy_(torch.cat([m.mix.bias for m in members]))
        head.out.weight.copy_(torch.cat([m.out.weight for m in members], 1) / len(members))
        head.out.bias.copy_(torch.stack([m.out.bias for m in members]).mean(0))
    return head


def _fit_gate(head: Head, inputs: torch.Tensor, table: Table, recipe: Recipe) -> None:
    """Learn to tell harmful queries from others, both kinds weighing the same; open for the clear ones."""
    first = torch.tensor(table.starts[:-1])
    query = inputs[first][:, _QUERY_MEANS]
    harmful = torch.tensor([float(group.harmful) for group in table.groups])
    share = harmful.mean()
    weight = torch.where(harmful > 0, 1 - share, share)
    parameters = torch.zeros(query.shape[1] + 1, requires_grad=True)

    def loss() -> torch.Tensor:
        logits = query @ parameters[:-1] + parameters[-1]
        each = functional.binary_cross_entropy_with_logits(logits, harmful, reduction="none")
        return 2 * (weight * each).mean() + 3e-3 * parameters.square().sum()

    found = _minimise(loss, parameters)
    with torch.no_grad():
        head.gate.weight.zero_()
        head.gate.weight[0, _QUERY_MEANS] = recipe.sharpness * found[:-1]
        head.gate.bias.fill_(recipe.sharpness * (float(found[-1]) - recipe.threshold))


def _fit_harmless(head: Head, inputs: torch.Tensor, table: Table, recipe: Recipe) -> None:
    """Learn which of two answers to a harmful query is the more harmless."""
    pairs = harmless_pairs(table)
    better, worse = (
        inputs[rows][:, _RESPONSE_MEANS] for rows in ([p[0] for p in pairs], [p[1] for p in pairs])
    )
    weight = torch.tensor([p[2] for p in pairs])
    parameters = torch.zeros(better.shape[1], requires_grad=True)

    def loss() -> torch.Tensor:
        each = functional.softplus((worse - better) @ parameters)
        return (weight * each).sum() / weight.sum() + recipe.decay * parameters.square().sum()

    found = _minimise(loss, parameters)
    ratings = torch.cat([better, worse]) @ found
    scale = recipe.harmless / ratings.std()
    with torch.no_grad():
        head.harmless.weight.zero_()
        head.harmless.weight[0, _RESPONSE_MEANS] = scale * found
        head.harmless.bias.fill_(float(-scale * ratings.mean()))


def _fit_style(head: Head, judgements: Judgements, recipe: Recipe) -> None:
    """Learn linearly how the judge likes a response, compared with others to the same query."""
    inputs = (judgements.features.float() - head.mean[STYLE]) * head.scale[STYLE]
    inputs = _less_means(inputs.clamp(-6, 6), judgements.pools)
    quality = _less_means(judgements.quality[:, None], judgements.pools)
    penalty = recipe.style_decay * len(inputs) * torch.eye(inputs.shape[1])
    found = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ quality)
    with torch.no_grad():
        head.style.weight.zero_()
        head.style.weight[0, STYLE] = found[:, 0]


def _less_means(values: torch.Tensor, pools: torch.Tensor) -> torch.Tensor:
    """Take off the mean of each pool."""
    sums = torch.zeros(int(pools.max()) + 1, values.shape[1]).index_add_(0, pools, values)
    return values - (sums / pools.bincount()[:, None])[pools]


def harmless_pairs(table: Table) -> list[tuple[int, int, float]]:
    """List rows of a more and a less harmless answer to a harmful query, with a weight."""
    pairs: list[tuple[int, int, float]] = []
    for start, group in zip(table.starts, table.groups, strict=False):
        if not group.harmful:
            continue
        if group.source == "pairs":
            pairs += [(start, start + 1, 1.0)] if len(group.candidates) > 1 else []
            continue
        good = [i for i, c in enumerate(group.candidates) if c.target >= 1.7]
        bad = [i for i, c in enumerate(group.candidates) if -3.1 < c.target <= -2.4]
        pairs += [(start + g, start + b, 0.15) for g in good for b in bad]
    return pairs


def _minimise(loss: Callable[[], torch.Tensor], parameters: torch.Tensor) -> torch.Tensor:
    optimizer = torch.optim.LBFGS([parameters], max_iter=80, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    optimizer.step(closure)
    return parameters.detach()
