"""Matrix products of the forward pass: `x @ weight.T` for weights [out, in] as stored.

On a CPU the weight is packed once into oneDNN's blocked layout (the kernel that TorchInductor
generates calls to). Plain `mm` repacks the whole matrix at every call, which at 2 to 32 rows costs
as much as the product itself. The packed kernel also computes each row the same way, bit for bit,
however many rows there are; `mm` has another kernel for one row than for many. So what a sequence
gets does not depend on its batch, nor on whether its token is decoded or verified.
"""

from __future__ import annotations

import torch

_PACKED_FOR_ROWS = 16
"""Hint for the layout; measured best or equal from 1 to 512 rows."""


class Linear:
    """One (possibly fused) projection. Callable: [N, in] -> [N, out]."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.shape = tuple(weight.shape)
        self._packed: torch.Tensor | None = None
        if weight.device.type == "cpu" and _can_pack(weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        else:
            self._transposed = weight.t()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is None:
            return x @ self._transposed
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
