"""Matrix products of the forward pass: `x @ weight.T` for weights [out, in] as stored.

On a CPU the weight is packed once into oneDNN's blocked layout (the kernel that TorchInductor
generates calls to). Plain `mm` repacks the whole matrix at every call, which at 2 to 32 rows costs
as much as the product itself; the packed kernel also computes each row the same way, bit for bit,
however many rows there are. A single float32 row is the exception: there `mm` streams a transposed
copy in order and is a sixth faster for the whole step, so small matrices keep one for it.
"""

from __future__ import annotations

import torch

_PACKED_FOR_ROWS = 16
"""Hint for the layout; measured best or equal from 1 to 512 rows."""
_LARGEST_STREAMED = 1 << 22
"""Elements of the largest matrix that is kept twice: the gain is in the caches, memory is not."""


class Linear:
    """One (possibly fused) projection. Callable: [N, in] -> [N, out]."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed: torch.Tensor | None = None
        self._streamed: torch.Tensor | None = None
        if weight.device.type != "cpu" or not _can_pack(weight.dtype):
            self._streamed = weight.t()
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        if weight.dtype is torch.float32 and weight.numel() <= _LARGEST_STREAMED:
            self._streamed = weight.t().contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._streamed is not None and (self._packed is None or x.shape[0] == 1):
            return x @ self._streamed
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, None, "none", [], ""
        )
        return product


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    # Without the processor's bfloat16 instructions oneDNN refuses the type.
    return dtype is torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
