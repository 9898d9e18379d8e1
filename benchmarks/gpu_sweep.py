"""Step times of one model shape over plans, batches and contexts, within a time budget."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.gpu_kernels import KernelShare
from benchmarks.gpu_shapes import RandomWeights, kv_bytes
from benchmarks.gpu_steps import Effort, StepTime, StepTimer, row_length
from policies.vocabulary import AR, Mode, Plan
from replicas.torch_engine.cuda_graphs import Capture, capture_cuda_graph, replay_eagerly
from replicas.torch_engine.kv_cache import SCRATCH_TOKENS
from replicas.torch_engine.model import Model
from replicas.torch_engine.model_config import ModelConfig

_SHORT_BLOCK = Plan(Mode.SELF_SPECULATION, 8)
_LOGIT_COPIES = 6
"""Room kept free, in copies of the widest step's logits (diffusion takes its softmax in float)."""
_USABLE = 0.95
"""Share of free memory that a context's KV cache and logits may take."""
_REPORT_S = 5.0
"""Kept back for the report at the end."""


class Budget:
    """Seconds left of a time allowance."""

    def __init__(self, seconds: float) -> None:
        self._started = time.monotonic()
        self._seconds = seconds

    def spent(self) -> float:
        return time.monotonic() - self._started

    def left(self) -> float:
        return self._seconds - self.spent()

    def share_of_rest(self, claimants: int) -> Budget:
        """An equal part of what is left, less what the report needs; unused time is not lost."""
        return Budget(max(self.left() - _REPORT_S, 0.0) / claimants)


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What to measure; contexts in order of importance."""

    plans: tuple[Plan, ...]
    sequences: tuple[int, ...]
    contexts: tuple[int, ...]
    effort: Effort


@dataclass(slots=True)
class Sweep:
    """Measures as much of the plan as memory and budget allow, and lists the rest."""

    name: str
    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    budget: Budget
    what: SweepPlan
    log: Callable[[str], None]
    steps: list[StepTime] = field(default_factory=list)
    kernels: list[KernelShare] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def run(self) -> None:
        self._release()
        if not self._weights_fit():
            self.skipped.append(f"{self.name}: its weights do not fit in the device's memory")
            return
        model = self._model()
        for context in self.what.contexts:
            self._release()
            batches = self._batches(context)
            if not batches:
                continue
            timer = StepTimer(self.name, model, context, batches[-1])
            for graphs in (True, False):
                self._block(timer, batches, graphs)
            if context == self.what.contexts[0]:
                self._profile(timer, batches)
            del timer
            self.log(f"{self.name}, context {context}: {self.budget.left():.0f} s left for it")

    def _model(self) -> Model:
        started = time.monotonic()
        longest = max(self.what.contexts)
        model = Model(
            self.config,
            RandomWeights(self.config, self.dtype, self.device),
            max_positions=longest + longest // 16 + SCRATCH_TOKENS,
            dtype=self.dtype,
            device=self.device,
        )
        self.log(f"{self.name}: random weights made in {time.monotonic() - started:.1f} s")
        return model

    def _batches(self, context: int) -> list[int]:
        """The batches whose KV cache fits, if there is time for any."""
        free = self._free()
        batches = [n for n in self.what.sequences if self._needs(n, context) <= _USABLE * free]
        if left_out := [n for n in self.what.sequences if n not in batches]:
            numbers = ", ".join(map(str, left_out))
            self.skipped.append(
                f"{self.name}, context {context}: {numbers} sequences: KV cache and logits need "
                f"{self._needs(left_out[0], context) / 1e9:.1f} GB and more, {free / 1e9:.1f} GB "
                "are free"
            )
        if batches and self.budget.left() <= 0:
            self.skipped.append(f"{self.name}, context {context}: out of time")
            return []
        return batches

    def _block(self, timer: StepTimer, batches: list[int], graphs: bool) -> None:
        """All plans and batches at one context. A plan whose next batch might outlast the budget is
        left out; twice the batch takes at most about twice the time."""
        where = f"{self.name}, context {timer.context}, graphs {'on' if graphs else 'off'}"
        took: dict[Plan, float] = {}
        late: dict[Plan, list[int]] = {}
        for sequences in batches:
            for plan in self.what.plans:
                if self.budget.left() <= 2 * took.get(plan, 0.0):
                    late.setdefault(plan, []).append(sequences)
                    continue
                started = time.monotonic()
                self._cell(
                    timer, plan, sequences, graphs, f"{where}, {sequences} sequences, {plan}"
                )
                took[plan] = time.monotonic() - started
        if late:
            cells = "; ".join(f"{p} at {', '.join(map(str, n))}" for p, n in late.items())
            self.skipped.append(f"{where}: out of time for {cells}")

    def _cell(self, timer: StepTimer, plan: Plan, sequences: int, graphs: bool, where: str) -> None:
        try:
            step = timer.time(plan, sequences, self._capture if graphs else None, self.what.effort)
        except torch.OutOfMemoryError:
            self.skipped.append(f"{where}: out of memory")
        except RuntimeError as error:
            # One shape that the device refuses must not cost the run its other figures.
            self.failed.append(f"{where}: {str(error).splitlines()[0]}")
        else:
            self.steps.append(step)
        if graphs and self.device.type == "cuda":
            torch.cuda.empty_cache()  # a graph's memory returns to the pool only so

    def _profile(self, timer: StepTimer, batches: list[int]) -> None:
        middle = batches[-1] if len(batches) < 3 else batches[-3]
        for plan, sequences in ((AR, 1), (AR, middle), (_SHORT_BLOCK, middle)):
            where = f"{self.name}, kernels of {plan} at {sequences}"
            if self.budget.left() <= 0:
                self.skipped.append(f"{where}: out of time")
                continue
            try:
                self.kernels += timer.kernels(plan, sequences)
            except RuntimeError as error:  # the profiler may not be permitted on this machine
                self.skipped.append(f"{where}: {str(error).splitlines()[0]}")

    @property
    def _capture(self) -> Capture:
        return capture_cuda_graph if self.device.type == "cuda" else replay_eagerly

    def _weights_fit(self) -> bool:
        return self.config.num_parameters * self._element < 0.9 * self._free()

    def _needs(self, sequences: int, context: int) -> int:
        """Bytes of KV cache and the widest plan's logits."""
        widest = sequences * max(plan.block_length for plan in self.what.plans)
        logits = _LOGIT_COPIES * widest * self.config.vocab_size * self._element
        # One row more than sequences: the pool's spare row.
        cache = (sequences + 1) * row_length(context) * kv_bytes(self.config, self._element)
        return cache + logits

    @property
    def _element(self) -> int:
        return torch.finfo(self.dtype).bits // 8

    def _free(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.mem_get_info(self.device)[0])
        return 4e9

    def _release(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
