"""Which kernels a step spends its time in: torch.profiler over a few steps without graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_STEPS = 3
_MOST = 8


@dataclass(frozen=True, slots=True)
class KernelShare:
    """One kernel (one operator, on a CPU) in one kind of step."""

    model: str
    plan: str
    sequences: int
    kernel: str
    ms_per_step: float
    calls_per_step: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def kernel_shares(
    model: str, plan: str, sequences: int, step: Callable[[], None], device: torch.device
) -> list[KernelShare]:
    """The longest few; `share` is of all time in kernels."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    step()
    with profile(activities=activities) as profiler:
        for _ in range(_STEPS):
            step()
    spent = {}
    for event in profiler.key_averages():
        # Operators carry the device time of what they launch too: counting both would double it.
        if on_cuda and event.device_type.name != "CUDA":
            continue
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        spent[event.key] = (microseconds / 1e3 / _STEPS, event.count / _STEPS)
    total = sum(ms for ms, _ in spent.values()) or 1.0
    longest = sorted(spent.items(), key=lambda item: -item[1][0])[:_MOST]
    return [
        KernelShare(model, plan, sequences, name, ms, calls, ms / total)
        for name, (ms, calls) in longest
    ]
