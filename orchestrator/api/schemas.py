"""Request bodies of the OpenAI surface, one field per parameter.

Each parameter is honoured, accepted and unused by the model (as OpenAI does with `user`), or
marked `Neutral`: refused by name unless its value changes nothing. An unknown field is an error, so
nothing is ever silently ignored. `docs/http.md` lists all of them; a test keeps it complete.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.api.parameters import Described, Neutral, StrictModel

MAX_TOKENS = 2**31 - 1
INT64 = 2**63
ONE_ANSWER = "one answer per prompt is generated"
NO_LOGPROBS = "the engine does not return log probabilities"
NO_PENALTY = "the engine samples without penalties"
NO_TOOLS = "the model is not given tools"

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
TokenIds = list[TokenId]
StopStrings = Annotated[
    str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)] | None,
    Described("a string or a list of at most 16 strings that are not empty"),
]
Prompt = Annotated[
    str | list[str] | TokenIds | list[TokenIds],
    Described("a string, a list of strings, a list of token ids or a list of such lists"),
]


class TrimodeOptions(StrictModel):
    """How this request may be decoded. `auto` follows the replica's schedule."""

    mode: Literal["auto", "ar", "diffusion", "self_speculation"] = "auto"
    quality: Literal["exact", "any"] | None = None
    block_length: Literal[1, 4, 8, 16, 32] | None = None
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None


class StreamOptions(StrictModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[
        Any, Neutral(False, because="chunks are not padded against traffic analysis")
    ] = None


class GenerationBody(StrictModel):
    """What chat and text completions have in common."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stop: StopStrings = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    trimode: TrimodeOptions | None = None
    # vLLM's extras
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=64)] | None = None
    # accepted, and unused by the model
    user: str | None = None
    metadata: dict[str, str] | None = None
    # refused unless neutral
    n: Annotated[Any, Neutral(1, because=ONE_ANSWER)] = None
    best_of: Annotated[Any, Neutral(1, because=ONE_ANSWER)] = None
    logit_bias: Annotated[Any, Neutral({}, because="the engine samples without biases")] = None
    presence_penalty: Annotated[Any, Neutral(0, because=NO_PENALTY)] = None
    frequency_penalty: Annotated[Any, Neutral(0, because=NO_PENALTY)] = None
    repetition_penalty: Annotated[Any, Neutral(1, because=NO_PENALTY)] = None
    length_penalty: Annotated[Any, Neutral(1, because=NO_PENALTY)] = None
    min_p: Annotated[Any, Neutral(0, because="use top_p or top_k")] = None
    use_beam_search: Annotated[Any, Neutral(False, because=ONE_ANSWER)] = None
    prompt_logprobs: Annotated[Any, Neutral(because=NO_LOGPROBS)] = None
    skip_special_tokens: Annotated[Any, Neutral(True, because="special tokens are not text")] = None
    spaces_between_special_tokens: Annotated[
        Any, Neutral(True, because="special tokens are not text")
    ] = None
    include_stop_str_in_output: Annotated[
        Any, Neutral(False, because="a stop string is never part of the text")
    ] = None
    truncate_prompt_tokens: Annotated[
        Any, Neutral(because="a prompt that is too long is refused, not cut")
    ] = None
    return_token_ids: Annotated[
        Any, Neutral(False, because="use /tokenize on the text instead")
    ] = None
    priority: Annotated[Any, Neutral(0, because="requests are served in order of arrival")] = None


class TextPart(StrictModel):
    type: Annotated[Literal["text"], Described("'text', because the model reads text only")]
    text: str


class Message(StrictModel):
    """One turn. `developer` is another name for `system`; `name` is accepted and unused."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    refusal: Annotated[Any, Neutral(because="answers never carry a refusal")] = None
    tool_calls: Annotated[Any, Neutral([], because=NO_TOOLS)] = None
    function_call: Annotated[Any, Neutral(because=NO_TOOLS)] = None
    audio: Annotated[Any, Neutral(because="the model reads text only")] = None
    annotations: Annotated[Any, Neutral([], because="the model reads text only")] = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    # accepted, and unused by the model
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # refused unless neutral
    logprobs: Annotated[Any, Neutral(False, because=NO_LOGPROBS)] = None
    top_logprobs: Annotated[Any, Neutral(0, because=NO_LOGPROBS)] = None
    tools: Annotated[Any, Neutral([], because=NO_TOOLS)] = None
    tool_choice: Annotated[Any, Neutral("none", "auto", because=NO_TOOLS)] = None
    parallel_tool_calls: Annotated[Any, Neutral(True, False, because=NO_TOOLS)] = None
    functions: Annotated[Any, Neutral([], because=NO_TOOLS)] = None
    function_call: Annotated[Any, Neutral("none", "auto", because=NO_TOOLS)] = None
    response_format: Annotated[
        Any, Neutral({"type": "text"}, because="output is not constrained to a grammar")
    ] = None
    modalities: Annotated[Any, Neutral(["text"], because="the model writes text only")] = None
    audio: Annotated[Any, Neutral(because="the model writes text only")] = None
    prediction: Annotated[Any, Neutral(because="drafts come from the model itself")] = None
    reasoning_effort: Annotated[Any, Neutral("none", because="there is no effort to set")] = None
    verbosity: Annotated[Any, Neutral(because="there is no verbosity to set")] = None
    store: Annotated[Any, Neutral(False, because="nothing is stored")] = None
    service_tier: Annotated[Any, Neutral("auto", "default", because="there is one tier")] = None
    web_search_options: Annotated[Any, Neutral(because=NO_TOOLS)] = None
    echo: Annotated[Any, Neutral(False, because="only /v1/completions can echo")] = None
    add_generation_prompt: Annotated[
        Any, Neutral(True, because="the answer is always the assistant's turn")
    ] = None
    continue_final_message: Annotated[
        Any, Neutral(False, because="use /v1/completions to continue a text")
    ] = None
    chat_template: Annotated[Any, Neutral(because="the checkpoint's template is used")] = None
    chat_template_kwargs: Annotated[
        Any, Neutral({}, because="the checkpoint's template is used as it is")
    ] = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Prompt
    echo: bool | None = None
    add_special_tokens: bool | None = None
    # refused unless neutral
    suffix: Annotated[Any, Neutral("", because="the model does not fill in the middle")] = None
    logprobs: Annotated[Any, Neutral(because=NO_LOGPROBS)] = None


class TokenizeBody(StrictModel):
    """POST /tokenize: exactly one of `prompt` and `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(StrictModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: TokenIds
