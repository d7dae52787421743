"""A run on the embedded LM beside a bare client that drives the same server flat out.

    python tests/perf/bench_embedded.py [--data QUERIES.json] [--queries 20] [--parts 4] [--max-tokens 24]

D2-N5 on real queries with the bundled reward model: the queries are answered by `arun_queries`, a part at a time,
and after each part a bare ``httpx`` client sends the same requests, as many at a time, none waiting for another and
nothing scored. Each of its queries begins with another number, so that the server has not seen it before. Printed
are generated tokens per second of both, counted in the same way, and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import dspy
import httpx

from tpo_modules import Sampling, TPOModule, embedded_lm
from tpo_modules.lm import count_tokens
from tpo_modules.runs import QueryRow, RunSettings, SavedRun, arun_queries, read_queries
from tpo_modules.scorers import RewardModelScorer

QUERIES = Path(__file__).parents[2] / "notebooks" / "queries.json"
IN_FLIGHT = 2  # as `tpo run` has it for the embedded LM
_numbers = itertools.count(1000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=QUERIES, help="repeated if it is too short")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=24)
    args = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)  # it warns of every text that is cut
    rows = itertools.islice(itertools.cycle(read_queries(args.data)), args.queries)
    queries = [QueryRow(str(at), row.inputs) for at, row in enumerate(rows)]
    limit = Sampling(max_tokens=args.max_tokens)
    scorer = RewardModelScorer("bundled")
    scorer.load()
    module = TPOModule(scorer=scorer, sampling=limit, critique_sampling=limit, seed=0)
    lm = embedded_lm(slots=IN_FLIGHT * 5)
    ours, bare = [0.0, 0.0], [0.0, 0.0]  # tokens, seconds
    size = -(-len(queries) // args.parts)
    for start in range(0, len(queries), size):
        with tempfile.TemporaryDirectory() as folder, dspy.context(lm=lm):
            tokens, seconds, requests = run(module, queries[start : start + size], Path(folder))
        ours = [ours[0] + tokens, ours[1] + seconds]
        random.Random(start).shuffle(requests)
        tokens, seconds = asyncio.run(drive(lm.kwargs["api_base"], lm.model, requests))
        bare = [bare[0] + tokens, bare[1] + seconds]
        rates = ours[0] / ours[1], bare[0] / bare[1]
        done = min(start + size, len(queries))
        print(f"{done} queries: run {rates[0]:.1f} tokens/s, bare client {rates[1]:.1f}", end="; ")
        print(f"ratio {rates[0] / rates[1]:.2f}", flush=True)


def run(
    module: TPOModule, queries: list[QueryRow], folder: Path
) -> tuple[int, float, list[dict[str, Any]]]:
    """Return generated tokens, seconds, and the bodies of the requests that were sent."""
    start = time.perf_counter()
    settings = RunSettings(max_in_flight=IN_FLIGHT)
    asyncio.run(arun_queries(module, queries, out=folder / "run", settings=settings))
    seconds = time.perf_counter() - start
    traces = [trace for _, trace in SavedRun(folder / "run").traces()]
    texts = [c.text for trace in traces for call in trace.calls for c in call.completions]
    limit = module.sampling
    requests: list[dict[str, Any]] = [
        {
            "messages": renumbered(call.messages or [], trace.query),
            "n": len(call.completions),
            "max_tokens": limit.max_tokens,
            "temperature": limit.temperature,
            "top_p": limit.top_p,
        }
        for trace in traces
        for call in trace.calls
    ]
    return sum(map(count_tokens, texts)), seconds, requests


def renumbered(messages: list[dict[str, Any]], query: str) -> list[dict[str, Any]]:
    """Put a number before the query, wherever it occurs."""
    other = f"{next(_numbers)}. {query}"
    return [
        {**message, "content": message["content"].replace(query, other)} for message in messages
    ]


async def drive(url: str, model: str, requests: list[dict[str, Any]]) -> tuple[int, float]:
    """Send requests as fast as the server takes them; return generated tokens and seconds."""
    slots, name = asyncio.Semaphore(IN_FLIGHT), model.removeprefix("openai/")

    async def send(client: httpx.AsyncClient, body: dict[str, Any]) -> int:
        async with slots:
            answer = await client.post(f"{url}/chat/completions", json={**body, "model": name})
        answer.raise_for_status()
        choices = answer.json()["choices"]
        return sum(count_tokens(choice["message"]["content"]) for choice in choices)

    async with httpx.AsyncClient(timeout=600) as client:
        start = time.perf_counter()
        tokens = await asyncio.gather(*(send(client, body) for body in requests))
        return sum(tokens), time.perf_counter() - start


if __name__ == "__main__":
    main()
