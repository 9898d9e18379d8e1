"""The speculative algorithm TRIMODE, as SGLang's registry wants it."""

from __future__ import annotations

from typing import Any

from sglang.srt.arg_groups.overrides import attention_backends_of, resolving_view
from sglang.srt.managers.overlap_utils import FutureMap
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from policies.vocabulary import BLOCK_LENGTHS
from replicas.sglang_engine.protocol import ALGORITHM, ATTENTION_BACKENDS, launch_flags


class TriModeAlgorithm(CustomSpecAlgo):  # type: ignore[misc]
    """One model, one KV pool: it drafts and verifies for itself.

    The last three methods are part of the enum's interface that SGLang calls but its base class
    for registered algorithms lacks.
    """

    def has_draft_kv(self) -> bool:
        return False

    def need_topk(self) -> bool:
        return False

    def carries_draft_hidden_states(self) -> bool:
        return False

    def create_future_map(self, device: Any, pool: Any, *rest: Any, **named: Any) -> FutureMap:
        return FutureMap(device, self, pool, *rest, **named)


def register() -> None:
    SpeculativeAlgorithm.register(
        ALGORITHM,
        supports_overlap=False,
        validate_server_args=check_server_args,
        spec_class=TriModeAlgorithm,
    )(_worker_class)


def _worker_class(server_args: Any) -> type:
    from replicas.sglang_engine.plugin.worker import TriModeWorker

    return TriModeWorker


def check_server_args(server_args: Any) -> None:
    """Raises ValueError for what the worker cannot do, naming flag, value and remedy."""
    args = resolving_view(server_args)
    wanted = {
        "speculative_eagle_topk": (1, None),
        "disable_overlap_schedule": (True,),
        "tp_size": (1,),
        "pp_size": (1,),
        "dp_size": (1,),
        "enable_mixed_chunk": (False,),
        "disable_cuda_graph": (True,),
        # Plain steps give single slots back.
        "page_size": (1, None),
    }
    for name, allowed in wanted.items():
        if (found := getattr(args, name)) not in allowed:
            raise ValueError(
                f"{ALGORITHM} needs {name}={allowed[0]}, found {found}; start with "
                f"{' '.join(launch_flags())}"
            )
    prefill, decode = attention_backends_of(args)
    if prefill != decode or decode not in ATTENTION_BACKENDS:
        raise ValueError(
            f"{ALGORITHM} needs one attention_backend, {' or '.join(ATTENTION_BACKENDS)}, for "
            f"prefill and decoding; found {prefill} and {decode}; start with --attention-backend "
            f"{ATTENTION_BACKENDS[0]} on a GPU, {ATTENTION_BACKENDS[1]} without one"
        )
    if (found := args.speculative_num_draft_tokens) not in BLOCK_LENGTHS:
        raise ValueError(
            f"{ALGORITHM} needs --speculative-num-draft-tokens, the longest block, to be one of "
            f"{BLOCK_LENGTHS}; found {found}"
        )
