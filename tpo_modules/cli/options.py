"""From the words of a command line to a module: LM, scorer, prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy

from tpo_modules.baselines import BestOfNModule, RevisionModule
from tpo_modules.cli.rewards import load_scorer
from tpo_modules.errors import ConfigurationError
from tpo_modules.lm import Sampling
from tpo_modules.policy import PolicyModule
from tpo_modules.step import Program
from tpo_modules.templates import load_program
from tpo_modules.tpo import StopRule, TPOModule

METHODS: dict[str, type[PolicyModule]] = {
    "tpo": TPOModule,
    "revision": RevisionModule,
    "bon": BestOfNModule,
}
EMBEDDED = "embedded"
_EMBEDDED_TOKENS = 256
_PAPER_TOKENS = 2048
_EMBEDDED_AT_ONCE = 2
_AT_ONCE = 32
_OPENAI_SERVERS = ("openai/", "hosted_vllm/")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of ``tpo run`` that decide what is computed; see its help for each."""

    lm: str = EMBEDDED
    api_base: str | None = None
    api_key: str | None = None
    critic_lm: str | None = None
    critic_api_base: str | None = None
    critic_api_key: str | None = None
    reward: str = "bundled"
    method: str = "tpo"
    width: int = 5
    depth: int = 2
    loss: str | None = None
    gradient: str | None = None
    update: str | None = None
    selection: str = "extreme"
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int | None = None
    critique_max_tokens: int | None = None
    seed: int | None = None
    native_n: bool | None = None
    patience: int | None = None
    min_gap: float | None = None
    token_budget: int | None = None

    @property
    def embedded(self) -> bool:
        """Whether the policy runs in this process."""
        return self.lm == EMBEDDED or self.lm.endswith(".gguf")

    @property
    def requests_at_once(self) -> int:
        """Requests in flight that suit the policy, for runs of many queries."""
        return _EMBEDDED_AT_ONCE if self.embedded else _AT_ONCE


def make_lm(model: str, options: RunOptions) -> Any:
    """Make the LM that a text names: ``embedded``, a GGUF file, or a LiteLLM model string.

    Raises:
        ConfigurationError: It names none, or an address cannot work.
    """
    if model == EMBEDDED or model.endswith(".gguf"):
        from tpo_modules.lms.local import embedded_lm

        weights = None if model == EMBEDDED else Path(model)
        return embedded_lm(weights, slots=options.requests_at_once * max(options.width, 1))
    if options.api_base and model.startswith(_OPENAI_SERVERS):
        return _server_lm(model, options.api_base, options.api_key)
    import litellm

    litellm.suppress_debug_info = True  # it would print advice over the progress
    settings: dict[str, Any] = {}
    if options.api_base:
        # A server of one's own usually wants no key, but the client insists on one.
        settings = {"api_base": options.api_base, "api_key": options.api_key or "none"}
    elif options.api_key:
        settings = {"api_key": options.api_key}
    try:
        return dspy.LM(model, **settings)
    except ValueError as error:
        raise ConfigurationError(
            f"expected an LM as LiteLLM names it, such as openai/gpt-4o-mini or "
            f"hosted_vllm/NAME with --api-base, got {model!r}: {error}"
        ) from error


def make_critic(options: RunOptions) -> Any:
    """Make the LM of loss and gradient, or None where the policy says them.

    Raises:
        ConfigurationError: As `make_lm`; or there is an address and no ``--critic-lm``.
    """
    critic, address = options.critic_lm, options.critic_api_base
    if critic is None:
        if address is not None:
            raise ConfigurationError("expected --critic-lm with --critic-api-base, got none")
        return None
    if address is not None:
        options = replace(options, api_base=address, api_key=options.critic_api_key)
    return make_lm(critic, options)


def _server_lm(model: str, addresses: str, api_key: str | None) -> Any:
    from tpo_modules.lms.openai_lm import OpenAIServerLM

    urls = [url for part in addresses.split(",") if (url := part.strip())] or [addresses]
    # No key must not mean OPENAI_API_KEY: that is OpenAI's, and not for a server of one's own.
    return OpenAIServerLM(model, api_base=urls, api_key=api_key or "none", cache=False)


def make_module(
    options: RunOptions, *, scorer: Any = None, policy: Program = "query -> response"
) -> PolicyModule:
    """Build the module that the options describe; DSPy must be configured with its LM.

    Args:
        options: What the command line says.
        scorer: The scorer; the one that ``options.reward`` names if not given.
        policy: What answers a query.

    Raises:
        ConfigurationError: An option cannot work; found before any LM call.
    """
    if options.method not in METHODS:
        raise ConfigurationError(
            f"expected --method to be one of {', '.join(METHODS)}, got {options.method!r}"
        )
    for model in (options.lm, options.critic_lm or ""):
        if model.endswith(".gguf") and not Path(model).is_file():
            raise ConfigurationError(f"expected a GGUF file, there is none at {model!r}")
    common: dict[str, Any] = {"policy": policy, **shared_arguments(options, scorer=scorer)}
    if options.method == "bon":
        return BestOfNModule(**common)
    rule = StopRule(
        patience=options.patience, min_gap=options.min_gap, token_budget=options.token_budget
    )
    extra = {
        "depth": options.depth,
        "selection": options.selection,
        "stop": rule,
        "critic_lm": make_critic(options),
    }
    return METHODS[options.method](**common, **extra, **_programs(options))


def shared_arguments(options: RunOptions, *, scorer: Any = None) -> dict[str, Any]:
    """Return the keyword arguments that every module of these options is made with.

    Raises:
        ConfigurationError: The reward model cannot be named so.
    """
    limit = options.max_tokens or (_EMBEDDED_TOKENS if options.embedded else _PAPER_TOKENS)
    critique = options.critique_max_tokens or (_EMBEDDED_TOKENS if options.embedded else None)
    return {
        "scorer": scorer or load_scorer(options.reward),
        "width": options.width,
        "sampling": Sampling(
            temperature=options.temperature, top_p=options.top_p, max_tokens=limit
        ),
        "critique_sampling": Sampling(
            temperature=options.temperature, top_p=0.99, max_tokens=critique
        ),
        "seed": options.seed,
        "native_n": options.native_n,
    }


def _programs(options: RunOptions) -> dict[str, Any]:
    given = {"loss": options.loss, "gradient": options.gradient, "update": options.update}
    revision = options.method == "revision"
    return {
        name: load_program(spec, name, revision=revision)
        for name, spec in given.items()
        if spec is not None
    }


def plan_text(module: PolicyModule, queries: int) -> str:
    """Say what a run would send: requests, sequences, rewards, and tokens at most."""
    depth = module.depth if isinstance(module, TPOModule) else 0
    width = module.width
    critiques = sum(name in ("loss", "gradient") for name in module.steps()) * depth
    rounds = 1 + depth
    native = "" if width == 1 else f" (without native n: {queries * (width * rounds + critiques)})"
    responses = width * rounds * (module.sampling.max_tokens or 0)
    limits = (module.sampling.max_tokens, module.critique_sampling.max_tokens or not critiques)
    tokens = responses + critiques * (module.critique_sampling.max_tokens or 0)
    most = f"at most {queries * tokens}" if all(limits) else "no limit: set --critique-max-tokens"
    return (
        f"{module.method} {module.label}, {queries} {'query' if queries == 1 else 'queries'}, "
        "without early stops:\n"
        f"requests   {queries * (rounds + critiques)}{native}\n"
        f"sequences  {queries * (width * rounds + critiques)}\n"
        f"rewards    {queries * width * rounds}\n"
        f"tokens generated  {most}"
    )
