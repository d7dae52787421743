"""``tpo serve-scorer``: any scorer over HTTP, so that many runs share one model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tpo_modules.cli.arguments import Device, Dtype, MaxLength, Output, TrustRemoteCode
from tpo_modules.cli.rewards import LocalOptions, load_scorer
from tpo_modules.scorers.http_headers import checked_token
from tpo_modules.scorers.serve import serve
from tpo_modules.scorers.serve_options import ServeOptions

_DEFAULT = ServeOptions()


def serve_scorer(
    model: Annotated[
        str,
        typer.Argument(
            help="'bundled', a reward model's folder or hub id, python:module:function, "
            "python:file.py:function, judge:MODEL, or the URL of a served one."
        ),
    ] = "bundled",
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 for every address of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients. \\[default: MODEL]")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="A bearer token that clients must send.", envvar="TPO_TOKEN", show_envvar=True
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="Responses up to which requests are merged.")
    ] = _DEFAULT.max_batch,
    max_wait: Annotated[
        float, typer.Option(help="Seconds a request may wait for others.")
    ] = _DEFAULT.max_wait,
    workers: Annotated[
        int, typer.Option(help="Batches scored at once: 1 for a model, more for a judge.")
    ] = _DEFAULT.workers,
    max_responses: Annotated[
        int, typer.Option(help="The most responses in one request.")
    ] = _DEFAULT.max_responses,
    max_body_mb: Annotated[
        float, typer.Option(help="The largest body of a request, in MiB.")
    ] = _DEFAULT.max_body_bytes / 2**20,
    max_pending: Annotated[
        int, typer.Option(help="Responses that may wait in all.")
    ] = _DEFAULT.max_pending,
    trust_remote_code: TrustRemoteCode = False,
    output: Output = None,
    dtype: Dtype = None,
    device: Device = None,
    max_length: MaxLength = None,
) -> None:
    """Serve a scorer over HTTP, in the shape of vLLM's /classify.

    Requests that arrive together are scored in one batch. Use it from another process with the
    server's address as --reward, or with ServerScorer(url). Endpoints: /classify, /v1/models,
    /health, /metrics.
    """
    options = ServeOptions(
        max_batch=max_batch,
        max_wait=max_wait,
        workers=workers,
        max_responses=max_responses,
        max_body_bytes=int(max_body_mb * 2**20),
        max_pending=max_pending,
    )
    console = Console(stderr=True)
    token = None if token is None else checked_token(token)
    local = LocalOptions(
        trust_remote_code=trust_remote_code,
        output=output,
        dtype=dtype,
        device=device,
        max_length=max_length,
    )
    scorer = load_scorer(model, local=local)
    _load_now(scorer)
    label = name or model

    def announce(url: str) -> None:
        access = "without a token" if token is None else "to those with the token"
        console.print(
            f"serving {label} {access} at {url}", markup=False, highlight=False, soft_wrap=True
        )

    try:
        serve(
            scorer,
            name=label,
            host=host,
            port=port,
            token=token,
            options=options,
            on_ready=announce,
        )
    except KeyboardInterrupt:
        console.print("stopped")


def _load_now(scorer: object) -> None:
    """Load a model before the first request, so that a wrong name is found at the start."""
    from tpo_modules.scorers.reward_model import RewardModelScorer

    if isinstance(scorer, RewardModelScorer):
        scorer.load()
