"""The options that several commands share, each with its help, once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

# Options under the headings of a command's help.
query_option = partial(typer.Option, rich_help_panel="Queries")
model_option = partial(typer.Option, rich_help_panel="Models")
method_option = partial(typer.Option, rich_help_panel="Method")
sampling_option = partial(typer.Option, rich_help_panel="Sampling")
run_option = partial(typer.Option, rich_help_panel="Run")
local_option = partial(typer.Option, rich_help_panel="A reward model in this process")
cluster_option = partial(typer.Option, rich_help_panel="Past one machine")

Data = Annotated[
    Path | None,
    query_option(help="A file of queries: a JSON list of strings, or JSON lines with ids."),
]
Limit = Annotated[int | None, query_option(help="Only the first so many queries.")]
Lm = Annotated[
    str,
    model_option(help="The policy: 'embedded', a .gguf file, or a model as LiteLLM names it."),
]
ApiBase = Annotated[
    str | None,
    model_option(
        help="URL of the LM's endpoint. For a model openai/NAME or hosted_vllm/NAME it may be several, "
        "separated by commas, which share the load; requests then go straight to them, past LiteLLM "
        "and DSPy's cache."
    ),
]
ApiKey = Annotated[
    str | None,
    model_option(help="Key for the LM's endpoint.", envvar="TPO_API_KEY", show_envvar=True),
]
CriticApiBase = Annotated[
    str | None,
    model_option(
        help="URL of the critic's endpoint. \\[default: --api-base, where --critic-lm is no embedded one]"
    ),
]
CriticApiKey = Annotated[
    str | None,
    model_option(
        help="Key for --critic-api-base; --api-key is not sent there.",
        envvar="TPO_CRITIC_API_KEY",
        show_envvar=True,
    ),
]
CriticLm = Annotated[str | None, model_option(help="Another LM for the loss and the gradient.")]
Reward = Annotated[
    str,
    model_option(
        help="'bundled', a reward model's folder or hub id, python:module:function, "
        "python:file.py:function, judge:MODEL, the URL of a served one, or API+URL (see docs/serving.md)."
    ),
]
TrustRemoteCode = Annotated[
    bool,
    local_option(
        "--trust-remote-code", help="Run Python code that comes with the model; read it first."
    ),
]
Output = Annotated[
    str | None,
    local_option(help="Which output is the reward, by index or label, where there are several."),
]
Dtype = Annotated[
    str | None,
    local_option(help="float32, bfloat16 or float16. \\[default: as the weights are saved]"),
]
Device = Annotated[
    str | None, local_option(help="cpu, cuda, cuda:1, ... \\[default: CUDA where there is one]")
]
MaxLength = Annotated[
    int | None,
    local_option(help="Tokens beyond which an input is cut. \\[default: the model's limit]"),
]
Width = Annotated[int, method_option(help="Samples per round (N).")]
Depth = Annotated[int, method_option(help="Iterations (D); 0 is best-of-N.")]
Temperature = Annotated[float, sampling_option(help="Of every call.")]
TopP = Annotated[float, sampling_option(help="Of the responses; critiques use 0.99.")]
MaxTokens = Annotated[
    int | None,
    sampling_option(help="Limit of a response. \\[default: 256 if embedded, else 2048]"),
]
CritiqueMaxTokens = Annotated[
    int | None,
    sampling_option(help="Limit of a critique. \\[default: 256 if embedded, else the LM's own]"),
]
Seed = Annotated[int | None, sampling_option(help="Base of the seeds sent with requests.")]
NativeN = Annotated[
    bool | None,
    sampling_option(
        "--native-n/--no-native-n",
        help="Ask for all samples in one request. \\[default: if the LM can and the policy gives one text]",
    ),
]
MaxInFlight = Annotated[
    int | None,
    run_option(help="Requests at a time, over all queries. \\[default: 2 if embedded, else 32]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
