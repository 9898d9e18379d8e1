"""From a request body to what the engine is asked: plan, quality and sampling."""

from __future__ import annotations

from orchestrator.api.schemas import ChatBody, GenerationBody, TrimodeOptions
from orchestrator.api.settings import ApiSettings
from orchestrator.errors import ApiError
from policies.vocabulary import AR, DEFAULT_THRESHOLD, Mode, Plan, Quality
from replicas.engine import SamplingParams

# vLLM's bound: dividing logits by less overflows, and nothing but the best token has a chance.
GREEDY_BELOW = 1e-5
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions."""


def choose_plan(
    options: TrimodeOptions | None, settings: ApiSettings
) -> tuple[Plan | None, Quality]:
    """The plan that the request pins (None: the schedule's) and the quality it accepts."""
    options = options or TrimodeOptions()
    if options.mode == "auto":
        _refuse_without_mode(options)
        return None, Quality(options.quality or settings.default_quality)
    plan = _pinned(options, Mode(options.mode), settings)
    if plan.mode is Mode.DIFFUSION and options.quality == Quality.EXACT.value:
        message = "quality 'exact' excludes mode 'diffusion'; ask for quality 'any' or another mode"
        raise ApiError(message, param="trimode.quality", code="invalid_value")
    implied = Quality.EXACT if plan.is_exact else Quality.ANY
    return plan, Quality(options.quality or implied)


def _refuse_without_mode(options: TrimodeOptions) -> None:
    for name in ("block_length", "threshold"):
        if getattr(options, name) is not None:
            message = f"{name} needs a mode: set trimode.mode to one that has it, or leave it out"
            raise ApiError(message, param=f"trimode.{name}", code="invalid_value")


def _pinned(options: TrimodeOptions, mode: Mode, settings: ApiSettings) -> Plan:
    if options.threshold is not None and mode is not Mode.DIFFUSION:
        message = f"only mode 'diffusion' has a threshold, not {mode.value!r}; leave it out"
        raise ApiError(message, param="trimode.threshold", code="invalid_value")
    if mode is Mode.AR and options.block_length in (None, 1):
        return AR
    length = options.block_length or settings.default_block_length
    threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
    try:
        return Plan(mode, length, threshold)
    except ValueError as error:
        raise ApiError(str(error), param="trimode.block_length", code="invalid_value") from None


def sampling_params(
    body: GenerationBody, prompt_tokens: int, settings: ApiSettings
) -> SamplingParams:
    """Raises ApiError 400 where the engine cannot honour a parameter."""
    temperature = settings.default_temperature if body.temperature is None else body.temperature
    params = SamplingParams(
        max_tokens=_max_tokens(body, prompt_tokens, settings),
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        # Folded into 63 bits, because not every generator takes a negative seed.
        seed=None if body.seed is None else body.seed & (2**63 - 1),
        stop=_stop_strings(body),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
    )
    _check_min_tokens(body.min_tokens or 0, params)
    return params


def _stop_strings(body: GenerationBody) -> tuple[str, ...]:
    if isinstance(body.stop, str):
        return (body.stop,) if body.stop else ()
    return tuple(body.stop or ())


def _max_tokens(body: GenerationBody, prompt_tokens: int, settings: ApiSettings) -> int:
    room = settings.max_model_len - prompt_tokens
    name, asked = _asked(body)
    if room < 1 or (asked or 0) > room:
        message = (
            f"This model's context is {settings.max_model_len} tokens, but the prompt has "
            f"{prompt_tokens} and {asked or 1} more are asked for; shorten the prompt or {name}."
        )
        param = name if 0 < room < (asked or 0) else _prompt_name(body)
        raise ApiError(message, param=param, code="context_length_exceeded")
    limit = min(room, settings.max_output_tokens or room)
    if asked is not None and asked > limit:
        message = f"{name} {asked} is above this server's limit {limit}; ask for at most {limit}."
        raise ApiError(message, param=name, code="invalid_value")
    if asked is None:
        return limit if isinstance(body, ChatBody) else min(limit, COMPLETION_MAX_TOKENS)
    return asked


def _asked(body: GenerationBody) -> tuple[str, int | None]:
    """The parameter that limits the output, by the name the client used, and its value."""
    newer = body.max_completion_tokens if isinstance(body, ChatBody) else None
    if newer is None:
        return "max_tokens", body.max_tokens
    if body.max_tokens not in (None, newer):
        message = f"max_tokens {body.max_tokens} contradicts max_completion_tokens {newer}"
        raise ApiError(message, param="max_tokens", code="invalid_value")
    return "max_completion_tokens", newer


def _prompt_name(body: GenerationBody) -> str:
    return "messages" if isinstance(body, ChatBody) else "prompt"


def _check_min_tokens(min_tokens: int, params: SamplingParams) -> None:
    if min_tokens > params.max_tokens:
        message = f"min_tokens {min_tokens} is above max_tokens {params.max_tokens}"
        raise ApiError(message, param="min_tokens", code="invalid_value")
    # The engine cannot forbid a token, but a sequence that nothing ends early reaches any minimum.
    runs_to_the_end = params.ignore_eos and not params.stop and not params.stop_token_ids
    if min_tokens > 0 and not runs_to_the_end:
        message = "min_tokens needs ignore_eos: true and no stop strings or stop_token_ids"
        raise ApiError(message, param="min_tokens", code="unsupported_parameter")
