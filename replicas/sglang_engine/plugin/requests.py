"""SGLang's requests as sequences of our own engine, so that one set of modes serves both.

A `Sequence` is kept on its request and dies with it. SGLang owns the truth: tokens, KV slots, how
many are committed. The sequence is brought up to date from it before every step.
"""

from __future__ import annotations

import secrets
from typing import Any

from replicas.engine import Request, SamplingParams
from replicas.sglang_engine.protocol import (
    PLAN_KEY,
    ProtocolError,
    RequestOptions,
)
from replicas.torch_engine.sequence import Sequence

_WHOLE_VOCABULARY = 1 << 30  # SGLang's top_k for "no limit"
_UNTOUCHED = {
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "logit_bias": None,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
}


def refusal(req: Any, max_block_length: int) -> str | None:
    """Why this request cannot be decoded as it asks; None if it can."""
    try:
        options = RequestOptions.from_custom_params(req.sampling_params.custom_params)
    except ProtocolError as error:
        return str(error)
    if options.plan is not None and options.plan.block_length > max_block_length:
        return (
            f"plan {options.plan}: this server was started for blocks of at most "
            f"{max_block_length} tokens; ask for a shorter block"
        )
    for name, neutral in _UNTOUCHED.items():
        if (value := getattr(req.sampling_params, name)) != neutral and value is not None:
            return f"{name} {value!r} is not supported in three modes; leave it out"
    for name in ("return_logprob", "return_hidden_states", "custom_logit_processor"):
        if getattr(req, name):
            return f"{name} is not supported in three modes; leave it out"
    return None


def sequence_of(req: Any) -> Sequence:
    """The request's sequence, made at the first call; its tokens are those SGLang has now."""
    sequence: Sequence | None = getattr(req, "trimode_sequence", None)
    if sequence is None:
        sequence = req.trimode_sequence = _sequence(req)
    length = len(req.origin_input_ids) + len(req.output_ids)
    if len(sequence.tokens) != length:
        # Chosen by prefill or in plain steps. A block begun at another length has lost its place.
        sequence.tokens.extend(req.output_ids[sequence.generated :])
        sequence.block, sequence.block_plan = None, None
    sequence.cached = length - 1
    sequence.row = req.kv.req_pool_idx
    return sequence


def record_plans(req: Any, plan: str | None, count: int) -> None:
    """Notes what yielded the next `count` tokens, for those who asked through custom_params."""
    if not req.sampling_params.custom_params:
        return
    if req.customized_info is None:
        req.customized_info = {}
    req.customized_info.setdefault(PLAN_KEY, []).extend([plan] * count)


def _sequence(req: Any) -> Sequence:
    params = req.sampling_params
    options = RequestOptions.from_custom_params(params.custom_params)
    seed = options.seed if options.seed is not None else params.sampling_seed
    # SGLang takes `ignore_eos` for every token that ends a sequence, stop tokens included.
    stops = () if params.ignore_eos else tuple(params.stop_token_ids or ())
    sampling = SamplingParams(
        max_tokens=params.max_new_tokens,
        # Temperature 0 arrives as top_k 1; either way one token is left to choose.
        temperature=0.0 if params.top_k == 1 else params.temperature,
        top_p=params.top_p,
        top_k=0 if params.top_k >= _WHOLE_VOCABULARY else params.top_k,
        seed=seed,
        stop_token_ids=stops,
        ignore_eos=params.ignore_eos,
    )
    return Sequence(
        request=Request(
            req.rid, tuple(req.origin_input_ids), sampling, options.quality, options.plan
        ),
        arrival=0,
        seed=secrets.randbits(64) if seed is None else seed,
        eos_token_ids=_eos_token_ids(req),
    )


def _eos_token_ids(req: Any) -> frozenset[int]:
    """Those `Req.update_finish_state` ends at: both must cut a block at the same token."""
    ids = set(req.eos_token_ids or ())
    if req.tokenizer is not None:
        ids.add(req.tokenizer.eos_token_id)
        ids |= set(req.tokenizer.additional_stop_token_ids or ())
    return frozenset(ids - {None})
