"""What a card can do: from its data sheet where it is known, and measured either way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Peak:
    """GB/s of memory and dense bf16 TFLOP/s."""

    bandwidth: float
    flops: float
    source: str


_SHEET = "NVIDIA data sheet, dense bf16"

_CARDS: tuple[tuple[str, float, float], ...] = (
    # The first whose name is contained in the device's name; longer names before shorter ones.
    ("GB200", 8000, 2500),
    ("B200", 8000, 2250),
    ("GH200 480GB", 4000, 989),
    ("H200", 4800, 989),
    ("H100 PCIe", 2000, 756),
    ("H100 NVL", 3900, 835),
    ("H100", 3350, 989),
    ("A100-SXM4-80GB", 2039, 312),
    ("A100-SXM4-40GB", 1555, 312),
    ("A100 80GB PCIe", 1935, 312),
    ("A100-PCIE-40GB", 1555, 312),
    ("L40S", 864, 362),
    ("L4", 300, 121),
    ("A10G", 600, 70),
)


def sheet_peak(name: str) -> Peak | None:
    """By device name; None for a card that is not listed."""
    for card, bandwidth, flops in _CARDS:
        if card in name:
            return Peak(bandwidth, flops, f"{_SHEET}, {card}")
    return None


def measured_peak(device: torch.device, dtype: torch.dtype, *, side: int, megabytes: int) -> Peak:
    """The best of a few large copies and square matrix products."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device)
    left = torch.randn(side, side, dtype=dtype, device=device)
    right = torch.randn(side, side, dtype=dtype, device=device)
    product = _best(lambda: torch.mm(left, right), device)
    # A copy reads and writes every byte.
    return Peak(2 * source.numel() / copy / 1e9, 2 * side**3 / product / 1e12, "measured here")


def _best(run: Callable[[], object], device: torch.device, repeats: int = 8) -> float:
    taken = []
    for _ in range(repeats + 2):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return min(taken[2:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
