"""Stands in for SGLang's compiled CPU kernels; copied into the CPU environment.

SGLang 0.5.23 imports `sgl_kernel` unconditionally and publishes no CPU build of it. The functions
below are the ones that decoding on a CPU calls; every other name raises when it is called.
"""

from collections.abc import Callable
from typing import Any

import torch

__version__ = "0.4.10"


def copy_all_layer_kv_cache_cpu(*args: Any) -> None:
    """Called once, by a warm-up that copies slot 0 onto itself: nothing to do."""


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Writes each request's new KV slots into its row of the request-to-token table."""
    taken = 0
    rows = zip(req_pool_indices.tolist(), start.tolist(), end.tolist(), strict=False)
    for row, first, last in rows:
        slots = out_cache_loc[taken : taken + last - first]
        req_to_token[row, first:last] = slots.to(req_to_token.dtype)
        taken += last - first


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """The reverse: reads each request's KV slots of [start, end) into one flat tensor."""
    taken = 0
    rows = zip(req_pool_indices.tolist(), start.tolist(), end.tolist(), strict=False)
    for row, first, last in rows:
        slots = req_to_token[row, first:last]
        out_cache_loc[taken : taken + last - first] = slots.to(out_cache_loc.dtype)
        taken += last - first


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} has no stand-in for the CPU")

    return missing
