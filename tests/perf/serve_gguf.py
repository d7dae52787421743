"""Serve a GGUF model on a CPU for experiments, batched across requests, at full precision.

    pip install openvino-genai gguf 'dspy-tpo[serve]'
    python tests/perf/serve_gguf.py MODEL.gguf [--port 8123]
    tpo compare ... --lm openai/MODEL --api-base http://127.0.0.1:8123/v1 --max-in-flight 12

llama.cpp gains little on a CPU from computing sequences side by side, OpenVINO much. The weights are stored anew as
Q8_0, once, in ``--cache``: OpenVINO's reader changes those of finer quantizations, and greedy texts were other than
those of `transformers`; with Q8_0 and fp32 they are the same.

One route, ``/v1/chat/completions``, with ``n``, ``seed``, ``temperature``, ``top_p`` and ``max_tokens``. It is for
this machine's own clients, not for a network.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

EXACT = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "KV_CACHE_PRECISION": "f32",
    "INFERENCE_PRECISION_HINT": "f32",
}


def main() -> None:
    """Store the weights, load them and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "gguf-q8")
    parser.add_argument("--kv-cache", type=int, default=4, help="GB")
    args = parser.parse_args()
    engine = Engine(stored_as_q8(args.model, args.cache), args.kv_cache)
    print(f"serving openai/{args.model.stem} on http://127.0.0.1:{args.port}/v1", flush=True)
    uvicorn.run(make_app(engine, args.model.stem), port=args.port, log_level="warning")


def stored_as_q8(source: Path, cache: Path) -> Path:
    """Return a file with the same weights, every matrix in Q8_0."""
    target = cache / f"{source.stem}-Q8_0.gguf"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    gguf: Any = importlib.import_module("gguf")
    quants: Any = importlib.import_module("gguf.quants")
    kinds, array = gguf.GGMLQuantizationType, gguf.GGUFValueType.ARRAY
    reader, unfinished = gguf.GGUFReader(source), target.with_suffix(".tmp")
    name = "general.architecture"
    writer = gguf.GGUFWriter(unfinished, arch=reader.fields[name].contents())
    for field in reader.fields.values():
        if field.name == name or field.name.startswith("GGUF."):
            continue
        value = field.contents()
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_Q8_0)
        kind = field.types[0]
        inner = field.types[-1] if kind == array else None
        writer.add_key_value(field.name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        data, stored = tensor.data, tensor.tensor_type
        if stored not in (kinds.F32, kinds.F16, kinds.Q8_0):
            data, stored = quants.quantize(quants.dequantize(data, stored), kinds.Q8_0), kinds.Q8_0
        writer.add_tensor(tensor.name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.rename(target)


class Engine:
    """Computes all requests under way in one batch, in a thread of its own.

    Args:
        model: GGUF file.
        gigabytes: Room for keys and values.
    """

    def __init__(self, model: Path, gigabytes: int) -> None:
        self._genai: Any = importlib.import_module("openvino_genai")
        schedule = self._genai.SchedulerConfig()
        schedule.max_num_batched_tokens, schedule.max_num_seqs = 512, 96
        schedule.cache_size, schedule.enable_prefix_caching = gigabytes, True
        self._pipeline = self._genai.ContinuousBatchingPipeline(str(model), schedule, "CPU", EXACT)
        self._tokenizer = self._pipeline.get_tokenizer()
        self._inbox: list[tuple[Any, Any, Callable[[Any], None]]] = []
        self._lock, self._news = threading.Lock(), threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    async def answer(self, asked: dict[str, Any]) -> tuple[int, list[Any]]:
        """Return the number of prompt tokens, and the outputs."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        prompt = self._tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True)
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).input_ids

        def done(outputs: list[Any]) -> None:
            loop.call_soon_threadsafe(future.set_result, outputs)

        with self._lock:
            self._inbox.append((ids, self._options(asked), done))
        self._news.set()
        return ids.shape[1], await future

    def text(self, output: Any) -> str:
        """Return an output's text."""
        return self._tokenizer.decode(output.generated_ids)

    def reason(self, output: Any) -> str:
        """Say in the API's words why an output ended."""
        cut = output.finish_reason == self._genai.GenerationFinishReason.LENGTH
        return "length" if cut else "stop"

    def _options(self, asked: dict[str, Any]) -> Any:
        options = self._genai.GenerationConfig()
        end = self._tokenizer.get_eos_token_id()
        options.eos_token_id, options.stop_token_ids = end, {end}
        options.max_new_tokens = asked.get("max_tokens") or 256
        options.num_return_sequences = asked.get("n") or 1
        options.do_sample = asked.get("temperature", 1.0) > 0
        if options.do_sample:
            options.temperature = asked.get("temperature", 1.0)
            options.top_p, options.top_k = asked.get("top_p") or 1.0, 2**31
            options.rng_seed = (asked.get("seed") or 0) % 2**31
        return options

    def _work(self) -> None:
        under_way: dict[int, tuple[Any, Callable[[Any], None]]] = {}
        names = itertools.count()
        while True:
            with self._lock:
                new, self._inbox = self._inbox, []
            for ids, options, done in new:
                name = next(names)
                under_way[name] = (self._pipeline.add_request(name, ids, options), done)
            if not under_way:
                self._news.wait()
                self._news.clear()
                continue
            if self._pipeline.has_non_finished_requests():
                self._pipeline.step()
            for name, (handle, done) in [*under_way.items()]:
                if handle.get_status() != self._genai.GenerationStatus.RUNNING:
                    del under_way[name]
                    done(handle.read_all())


def make_app(engine: Engine, name: str) -> Starlette:
    """Make the web application."""

    async def models(request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"}]})

    async def complete(request: Request) -> JSONResponse:
        read, outputs = await engine.answer(await request.json())
        written = sum(len(output.generated_ids) for output in outputs)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": engine.text(output)},
                "finish_reason": engine.reason(output),
            }
            for index, output in enumerate(outputs)
        ]
        return JSONResponse(
            {
                "id": f"chatcmpl-{time.time_ns()}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": name,
                "choices": choices,
                "usage": {
                    "prompt_tokens": read,
                    "completion_tokens": written,
                    "total_tokens": read + written,
                },
            }
        )

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/chat/completions", complete, methods=["POST"]),
        ]
    )


if __name__ == "__main__":
    main()
