"""Step time of a plan at a fixed batch and context, through the engine's own parts.

Sequences are placed in the KV pool by hand, at lengths spread a sixteenth to either side of the
wanted context (in service no two rows are equally long, and equal rows would need no mask), and
their K/V is noise. A step is what the engine does: mode, packing, forward, choice of tokens, lists
on the host. Its results are dropped, so the next step finds the same state. For diffusion it is a
denoising pass; its commit pass has the shape of self-speculation's verification.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import torch

from benchmarks.gpu_kernels import KernelShare, kernel_shares
from policies.vocabulary import Plan
from replicas.engine import Request
from replicas.torch_engine.batch import Packer
from replicas.torch_engine.cuda_graphs import Capture, GraphedForward
from replicas.torch_engine.kv_cache import SCRATCH_TOKENS, KVPool
from replicas.torch_engine.model import Batch, Model
from replicas.torch_engine.modes import MODES, Group
from replicas.torch_engine.sequence import Sequence

Forward = Callable[[Batch, list[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class StepTime:
    """Medians in milliseconds. `forward_ms` is the model's part, on the device's own clock."""

    model: str
    context: int
    plan: str
    sequences: int
    graphs: bool
    wall_ms: float
    forward_ms: float
    steps: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long one figure is measured."""

    warm_up: int = 2
    least_steps: int = 5
    most_steps: int = 20
    seconds: float = 0.12


class _Clocked:
    """A forward that times itself: by events on CUDA, so that nothing waits for it."""

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward, self._cuda = forward, device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    def __call__(self, batch: Batch, kv: list[torch.Tensor]) -> torch.Tensor:
        if not self._cuda:
            started = time.perf_counter()
            logits = self._forward(batch, kv)
            self._seconds += time.perf_counter() - started
            return logits
        start, end = _event(), _event()
        start.record()
        logits = self._forward(batch, kv)
        end.record()
        self._events.append((start, end))
        return logits

    def take_ms(self) -> float:
        """Milliseconds since the last call; the device must be idle."""
        passed = 1e3 * self._seconds
        for start, end in self._events:
            passed += start.elapsed_time(end)
        self._events, self._seconds = [], 0.0
        return passed


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class StepTimer:
    """Rows of synthetic sequences at one context length, for one model."""

    def __init__(self, name: str, model: Model, context: int, rows: int) -> None:
        self.name, self.model, self.context = name, model, context
        config = model.config
        longest = context + context // 16
        self.pool = KVPool(
            num_layers=config.num_layers,
            kv_width=config.kv_width,
            tokens=rows * row_length(context),
            max_context=longest,
            dtype=model.dtype,
            device=model.device,
            spare_row=True,
        )
        self.pool.recut(self.pool.row_lengths[-1], [])
        for layer in self.pool.layers:
            layer.normal_()
        groups = config.num_heads // config.num_kv_heads
        self._packer = Packer(self.pool, groups, model.dtype, model.device)
        self._rng = Random(context)

    def time(self, plan: Plan, sequences: int, capture: Capture | None, effort: Effort) -> StepTime:
        """Median over a few steps; with `capture`, graphs are made in the warm-up."""
        # Made anew each time: what the graphs of all cells hold together would not fit.
        graphed = capture and GraphedForward(self.model, self.pool, capture=capture)
        clocked = _Clocked(graphed or self.model.forward, self.model.device)
        rows = self._sequences(sequences)
        walls: list[float] = []
        forwards: list[float] = []
        for step in range(-effort.warm_up, effort.most_steps):
            started = time.perf_counter()
            self._step(plan, rows, clocked)
            wall = time.perf_counter() - started
            forward_ms = clocked.take_ms()
            if step < 0:
                continue
            walls.append(1e3 * wall)
            forwards.append(forward_ms)
            if len(walls) >= effort.least_steps and sum(walls) > 1e3 * effort.seconds:
                break
        if graphed is not None and graphed.eager:
            raise RuntimeError("the step fell back to an eager forward")
        return StepTime(
            model=self.name,
            context=self.context,
            plan=str(plan),
            sequences=sequences,
            graphs=capture is not None,
            wall_ms=statistics.median(walls),
            forward_ms=statistics.median(forwards),
            steps=len(walls),
        )

    def kernels(self, plan: Plan, sequences: int) -> list[KernelShare]:
        """What a step without graphs runs on the device."""
        rows = self._sequences(sequences)

        def step() -> None:
            self._step(plan, rows, self.model.forward)

        return kernel_shares(self.name, str(plan), sequences, step, self.model.device)

    def _step(self, plan: Plan, sequences: list[Sequence], forward: Forward) -> None:
        config = self.model.config
        mode = MODES[plan.mode](Group(plan, sequences), config.mask_token_id, self.model.device)
        drafting = mode.draft_rows()
        if drafting is not None:
            batch = self._packer.pack([drafting], draft=True)
            mode.take_draft(forward(batch, self.pool.layers))
        logits = forward(self._packer.pack([mode.rows()]), self.pool.layers)
        mode.commit(logits)  # ends in a copy to the host, so the device is idle behind it
        for sequence in sequences:
            sequence.block, sequence.block_plan = None, None

    def _sequences(self, count: int) -> list[Sequence]:
        spread = self.context // 16
        sequences = []
        for row in range(count):
            offset = 0 if count == 1 else round(spread * (2 * row / (count - 1) - 1))
            length = self.context + offset
            config = self.model.config
            # Only the last token is ever fed; the others count.
            token = self._rng.randrange(config.mask_token_id + 1, config.vocab_size)
            sequence = Sequence(Request(str(row), (token,) * length), row, row, frozenset())
            sequence.row, sequence.cached = row, length - 1
            sequences.append(sequence)
        return sequences


def row_length(context: int) -> int:
    """Pool tokens that one sequence takes at this context."""
    return -(-(context + context // 16 + SCRATCH_TOKENS) // 64) * 64
