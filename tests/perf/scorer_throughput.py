"""Throughput of `RewardModelScorer` against a `transformers` pipeline at batch size 1.

    python tests/perf/scorer_throughput.py [--model tiny bundled FOLDER ...] [--rounds 5]

Scores 200 candidates of mixed length, a fifth of them duplicates, both ways by turns, checks that
both give the same rewards, and prints candidates per second and their ratio (medians over the
rounds), then the curve over batch size. The pipeline is used as the TPO reference uses it: a list
of texts, one forward pass each. Two mixes: short (median 25 words, as small policies answer) and
long (median 70 words).
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[up]) for up in (1, 2)]

from tiny_models import save_tiny  # noqa: E402

from tpo_modules.scorers.loading import LoadedModel, load_reward_model  # noqa: E402
from tpo_modules.scorers.reward_model import RewardModelScorer  # noqa: E402
from tpo_modules.scorers.sources import LoadOptions  # noqa: E402

QUERY = "How do I bake a loaf of bread that stays fresh for several days?"
WORDS = ["mix", "flour", "with", "water", "and", "salt", "then", "wait", "for", "dough", "(x", "+"]
MIXES = {"short": (3.2, 0.9, 150), "long": (4.2, 0.9, 300)}  # log-normal: mean, spread, most words
LONG: dict[str, Any] = {"max_position_embeddings": 4096}  # so that nothing is cut
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
NO_LIMIT = 1_000_000


def make_candidates(count: int, mix: str, seed: int = 0) -> list[str]:
    """Make texts of mixed length, a fifth of them duplicates."""
    rng = random.Random(seed)
    unique = count - count // 5
    mean, spread, most = MIXES[mix]
    lengths = [min(most, max(3, round(rng.lognormvariate(mean, spread)))) for _ in range(unique)]
    texts = [" ".join(rng.choices(WORDS, k=length)) for length in lengths]
    texts += rng.choices(texts, k=count - unique)
    rng.shuffle(texts)
    return texts


def make_pipeline(loaded: LoadedModel) -> Callable[[list[str]], list[float]]:
    """Score by a pipeline at batch size 1, on the same weights."""
    from transformers import pipeline

    pipe: Any = pipeline(
        "text-classification",
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        device=loaded.device,
        function_to_apply="none",
        batch_size=1,
    )
    tokenizer = loaded.tokenizer
    cut = {"truncation": True, "max_length": loaded.max_length}

    def prepare(text: str) -> Any:
        if getattr(tokenizer, "chat_template", None) is None:
            return {"text": QUERY, "text_pair": text}
        turns = [{"role": "user", "content": QUERY}, {"role": "assistant", "content": text}]
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
        return rendered.removeprefix(tokenizer.bos_token or "")

    def score(texts: list[str]) -> list[float]:
        return [result["score"] for result in pipe([prepare(text) for text in texts], **cut)]

    return score


def timed(score: Callable[[list[str]], list[float]], texts: list[str]) -> tuple[float, list[float]]:
    """Return the seconds that scoring took, and the rewards."""
    began = time.perf_counter()
    rewards = list(score(texts))
    return time.perf_counter() - began, rewards


def compare(name: str, model: str, texts: list[str], options: argparse.Namespace) -> None:
    """Print one model's table."""
    device: str | None = options.device
    loaded = load_reward_model(LoadOptions(model=model, dtype="float32", device=device))
    for part in loaded.model.modules():
        vars(part).pop("forward", None)  # the pipeline's copy without our shortcuts
    reference = make_pipeline(loaded)
    scorers = {
        size: RewardModelScorer(
            model, dtype="float32", device=device, batch_size=size, max_batch_tokens=NO_LIMIT
        ).load()
        for size in (BATCH_SIZES if options.curve else ())
    }
    default = RewardModelScorer(model, dtype="float32", device=device).load()

    def ours(scorer: RewardModelScorer) -> Callable[[list[str]], list[float]]:
        return lambda batch: scorer.score(QUERY, batch)

    for warm_up in (reference, ours(default)):
        warm_up(texts[:20])
    times: dict[int | str, list[float]] = {key: [] for key in ("pipeline", "default", *scorers)}
    for _ in range(options.rounds):
        seconds, expected = timed(reference, texts)
        times["pipeline"].append(seconds)
        for key, scorer in {"default": default, **scorers}.items():
            seconds, rewards = timed(ours(scorer), texts)
            times[key].append(seconds)
            pairs = zip(rewards, expected, strict=True)
            worst = max(abs(a - b) for a, b in pairs if not getattr(a, "notes", ()))
            if worst > 1e-4:
                raise SystemExit(f"{name}: rewards differ by {worst}")
    report(name, loaded, len(texts), times)


def report(name: str, loaded: LoadedModel, count: int, times: dict[int | str, list[float]]) -> None:
    """Print candidates per second and the ratio to the pipeline, by batch size."""
    parameters = sum(weights.numel() for weights in loaded.model.parameters())
    out = sys.stdout.write
    out(f"\n{name}: {type(loaded.model).__name__}, {parameters / 1e6:.1f}M, {loaded.device}\n")
    out(f"{'way':>24} {'candidates/s':>13} {'ratio':>7}\n")
    for key, seconds in times.items():
        pairs = zip(times["pipeline"], seconds, strict=True)
        ratio = statistics.median(before / after for before, after in pairs)
        label = f"batch size {key}" if isinstance(key, int) else str(key)
        out(f"{label:>24} {count / statistics.median(seconds):>13.0f} {ratio:>6.1f}x\n")
    sys.stdout.flush()


def main() -> None:
    """Read the arguments and compare each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", default=["tiny", "bundled"])
    parser.add_argument("--mix", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--device")
    parser.add_argument("--curve", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for mix, name in itertools.product(options.mix, options.model):
            texts = make_candidates(options.candidates, mix)
            words = [len(text.split()) for text in texts]
            sys.stdout.write(
                f"\n{mix} mix: {len(texts)} candidates, {len(set(texts))} different, {min(words)} to "
                f"{max(words)} words, median {statistics.median(words):.0f}; {options.rounds} rounds"
            )
            made = Path(folder, mix)
            model = str(save_tiny(made, "llama", **LONG)) if name == "tiny" else name
            compare(name, model, texts, options)


if __name__ == "__main__":
    main()
