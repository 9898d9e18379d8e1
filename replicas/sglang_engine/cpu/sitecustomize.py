"""Lets torchvision be imported beside a CPU build of torch; copied into the CPU environment.

torchvision's wheel is built for CUDA, so its own operator library does not load here and the
operators that its Python code refers to are unknown. SGLang imports torchvision but calls none of
them for a text model: declaring the two names is enough.
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _DeclareOperators(MetaPathFinder):
    """Declares the operators on the first import of torchvision; torch is not imported before."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{operator}",
                    "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                )


sys.meta_path.insert(0, _DeclareOperators())
