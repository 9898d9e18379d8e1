"""What no engine can serve, refused in one wording before anything is decoded."""

from __future__ import annotations

from policies.vocabulary import Quality
from replicas.engine import Request, RequestRejected


def check_request(request: Request, vocab_size: int, context_limit: int) -> None:
    """Raises RequestRejected for a request that can never be served as it stands."""
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not prompt:
        raise RequestRejected("the prompt is empty; send at least one token")
    if outside := next((t for t in (min(prompt), max(prompt)) if not 0 <= t < vocab_size), None):
        raise RequestRejected(
            f"prompt token id {outside} is not in this model's vocabulary, 0 .. {vocab_size - 1}"
        )
    if len(prompt) + sampling.max_tokens > context_limit:
        raise RequestRejected(
            f"prompt of {len(prompt)} tokens plus max_tokens {sampling.max_tokens} exceeds the "
            f"context limit of {context_limit} tokens; shorten the prompt or lower max_tokens"
        )
    if request.plan is not None and not request.plan.serves(request.quality):
        raise RequestRejected(
            f"plan {request.plan} does not keep to quality {request.quality.value}; ask for "
            f"quality {Quality.ANY.value}, or for another plan"
        )
