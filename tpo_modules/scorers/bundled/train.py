"""Trains the bundled reward model, or measures it again.

    python -m tpo_modules.scorers.bundled.train --data DIR --out DIR --seed 0
    python -m tpo_modules.scorers.bundled.train --data DIR --evaluate-only

A LoRA adapter and a head on all-MiniLM-L6-v2, on CPU; `MODEL_CARD.md` has the time and the figures.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tpo_modules.scorers.bundled import BASE_MODEL_ID, base_model_path, bundled_path
from tpo_modules.scorers.bundled.data import read_corpus
from tpo_modules.scorers.bundled.evaluate import HEADER, Figure, measure
from tpo_modules.scorers.bundled.groups import Group, GroupMaker
from tpo_modules.scorers.bundled.tokens import forward, read_first_position_only, rewards
from tpo_modules.scorers.encoding import Encoded, encode_pair

logger = logging.getLogger(__name__)

_WORKERS = 2
_REPORT = 20
# LoRA adapts all linear maps of the upper layers but the last one's queries: those are trained whole.
_LAST_QUERY = "layer.5.attention.self.query"
_TARGETS = (
    r".*layer\.([234]\.attention\.self\.query|[2345]\.attention\.self\.(key|value)"
    r"|[2345]\.(attention\.output|intermediate|output)\.dense)"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training run is made of; the defaults made the shipped weights."""

    seed: int = 0
    rank: int = 32
    learning_rate: float = 4e-4
    groups_per_step: int = 5
    judged: int = 3
    pairs: int = 1
    labelled: int = 1
    lengths: tuple[int, ...] = (96, 96, 112, 128, 192)
    absolute: float = 0.25
    limit: int | None = 2200
    warmup: float = 0.06


def build(recipe: Recipe, start: Path | None = None) -> Any:
    """Make the base model with an adapter and head, untrained or those of the folder `start`."""
    torch.manual_seed(recipe.seed)
    model = AutoModelForSequenceClassification.from_pretrained(base_model_path(), num_labels=1)
    read_first_position_only(model)
    if start is not None:
        return PeftModel.from_pretrained(model, str(start), is_trainable=True)
    query = model.bert.encoder.layer[-1].attention.self.query
    torch.nn.init.zeros_(query.weight)  # so at first the head sees the mean over all tokens
    torch.nn.init.zeros_(query.bias)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=_TARGETS,
        modules_to_save=[_LAST_QUERY, "pooler", "classifier"],
        base_model_name_or_path=BASE_MODEL_ID,
    )
    return get_peft_model(model, config)


def load(folder: Path) -> Any:
    """Load base and adapter and merge them."""
    base = AutoModelForSequenceClassification.from_pretrained(base_model_path(), num_labels=1)
    model = PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval()
    read_first_position_only(model)
    return model


def save(model: Any, folder: Path) -> None:
    """Save the adapter and head in half precision."""
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL_ID
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_model.safetensors"
    weights = {name: value.half() for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def encode(tokenizer: Any, groups: Sequence[Group], recipe: Recipe) -> list[list[Encoded]]:
    """Tokenise groups; each step's groups share one of the recipe's maximum lengths."""
    rng = Random(recipe.seed)
    encoded: list[list[Encoded]] = []
    length = 0
    for at, group in enumerate(groups):
        if at % recipe.groups_per_step == 0:
            length = rng.choice(recipe.lengths)
        encoded.append(
            [
                encode_pair(tokenizer, group.query, candidate.text, max_length=length)
                for candidate in group.candidates
            ]
        )
    return encoded


def loss_of(scores: torch.Tensor, groups: Sequence[Group], absolute: float) -> torch.Tensor:
    """Sum a Bradley-Terry loss with soft labels over each group's pairs and a term on each sign."""
    losses: list[torch.Tensor] = []
    start = 0
    for group in groups:
        targets = torch.tensor([g.target for g in group.candidates])
        mine = scores[start : start + len(targets)]
        start += len(targets)
        rows, columns = torch.triu_indices(len(targets), len(targets), offset=1)
        gaps = targets[rows] - targets[columns]
        clear = gaps.abs() >= 0.25
        if clear.any():
            found = (mine[rows] - mine[columns])[clear]
            losses.append(functional.binary_cross_entropy_with_logits(found, gaps[clear].sigmoid()))
        losses.append(
            absolute * functional.binary_cross_entropy_with_logits(mine, targets.sigmoid())
        )
    return torch.stack(losses).sum()


def parameter_groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Give the head twice the learning rate, and the maps that are trained whole a fifth."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in named if ".classifier." in name]
    low_rank = [p for name, p in named if ".lora_" in name]
    whole = [p for name, p in named if ".classifier." not in name and ".lora_" not in name]
    rate = recipe.learning_rate
    return [
        {"params": low_rank, "lr": rate},
        {"params": head, "lr": 2 * rate},
        {"params": whole, "lr": rate / 5},
    ]


def gradients(
    model: Any,
    weights: Sequence[torch.Tensor],
    work: Sequence[tuple[Group, list[Encoded]]],
    absolute: float,
    pool: ThreadPoolExecutor,
) -> float:
    """Set the gradient of one step's loss and return the loss.

    Each worker takes a part of the groups, on one core: on a shared machine that is several times
    as fast as all cores working on each operation together, and the sum has a fixed order.
    """
    count = min(_WORKERS, len(work))

    def part(at: int) -> tuple[float, tuple[torch.Tensor, ...]]:
        mine = work[at::count]
        scores = forward(model, [item for _, items in mine for item in items])
        loss = loss_of(scores, [group for group, _ in mine], absolute) / len(work)
        return loss.item(), torch.autograd.grad(loss, weights)

    losses, parts = zip(*pool.map(part, range(count)), strict=True)
    for weight, *found in zip(weights, *parts, strict=True):
        weight.grad = torch.stack(found).sum(dim=0)
    return sum(losses)


def fit(model: Any, work: Sequence[tuple[Group, list[Encoded]]], recipe: Recipe, out: Path) -> None:
    """Train the adapter for one pass over the groups, saving it now and then."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), weight_decay=0.01)
    size = recipe.groups_per_step
    starts = range(0, len(work), size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=len(starts) + 1,
        pct_start=recipe.warmup,
    )
    model.eval()  # no dropout: one pass over varied data, and half again as fast on a CPU
    began, recent = time.monotonic(), 0.0
    with ThreadPoolExecutor(_WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for step, start in enumerate(starts, 1):
            loss = gradients(model, weights, work[start : start + size], recipe.absolute, pool)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            recent += loss / _REPORT
            if step % _REPORT == 0:
                save(model, out)
                spent = time.monotonic() - began
                logger.info("step %d/%d loss %.4f %.0f s", step, len(starts), recent, spent)
                recent = 0.0


def train(data: Path, out: Path, recipe: Recipe, start: Path | None = None) -> None:
    """Train on the train split, from `start` if given, and save adapter and head to a folder."""
    tokenizer = AutoTokenizer.from_pretrained(base_model_path())
    maker = GroupMaker(read_corpus(data)["train"], recipe.seed)
    groups = maker.epoch(judged=recipe.judged, pairs=recipe.pairs, labelled=recipe.labelled)[
        : recipe.limit
    ]
    encoded = encode(tokenizer, groups, recipe)
    tokens = sum(len(item.ids) for group in encoded for item in group)
    logger.info("%d groups, %d sequences, %d tokens", len(groups), sum(map(len, encoded)), tokens)
    model = build(recipe, start)
    fit(model, list(zip(groups, encoded, strict=True)), recipe, out)
    save(model, out)


def evaluate(data: Path, folder: Path, split: Any, max_length: int) -> list[Figure]:
    """Measure saved weights on a split."""
    tokenizer = AutoTokenizer.from_pretrained(base_model_path())
    model = load(folder)

    def reward(pairs: Sequence[tuple[str, str]]) -> list[float]:
        return rewards(model, tokenizer, pairs, max_length)

    return measure(reward, read_corpus(data)[split])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data")
    parser.add_argument("--out", type=Path, default=bundled_path(), help="folder of the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    for name in ("judged", "pairs", "labelled"):
        shown = f"groups for each of the {name} data's queries"
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe(), name), help=shown)
    parser.add_argument("--learning-rate", type=float, default=Recipe().learning_rate)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--limit", type=int, default=Recipe().limit, help="groups to train on")
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--max-length", type=int, default=512, help="tokens, in the evaluation")
    parser.add_argument("--evaluate-only", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.evaluate_only:
        sizes = {name: getattr(options, name) for name in ("judged", "pairs", "labelled")}
        rate = options.learning_rate
        recipe = Recipe(seed=options.seed, limit=options.limit, learning_rate=rate, **sizes)
        train(options.data, options.out, recipe, options.start)
    figures = evaluate(options.data, options.out, options.split, options.max_length)
    print("\n".join([HEADER, *(figure.row() for figure in figures)]))  # noqa: T201


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
