"""Figures derived from step times: tokens/s, crossovers, bandwidth and FLOP rate, overhead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu_cards import Peak
from benchmarks.gpu_shapes import SHAPES, forward_bytes, forward_flops, kv_bytes
from benchmarks.gpu_steps import StepTime
from benchmarks.public_sweeps import (
    AR_TOKENS_PER_S,
    CONCURRENCY,
    ROUND_MS,
    SELF_SPECULATION_32_TOKENS_PER_S,
)
from benchmarks.survival import CURVES, DIFFUSION_TOKENS_PER_FORWARD, TEST_SETS_8B, SurvivalCurve
from policies.vocabulary import AR, BLOCK_LENGTHS, Mode, Plan

_ROUNDS = 400
_MOST_DRAWS = 20000

Rates = dict[Plan, dict[int, float]]
"""tokens/s by plan and number of sequences."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """tokens/s at one model and context, with acceptance borrowed from `curve`."""

    model: str
    context: int
    curve: SurvivalCurve
    rates: Rates

    def crossing(self, plan: Plan) -> float | None:
        """Sequences up to which the plan beats AR; None if it does not where measuring began,
        infinite if it still does where measuring ended."""
        return crossing(self.rates.get(plan, {}), self.rates.get(AR, {}))

    @property
    def best_crossing(self) -> float | None:
        """The same for the best self-speculation at each level."""
        best: dict[int, float] = {}
        for plan, by_rows in self.rates.items():
            if plan.mode is Mode.SELF_SPECULATION:
                for rows, rate in by_rows.items():
                    best[rows] = max(rate, best.get(rows, 0.0))
        return crossing(best, self.rates.get(AR, {}))

    @property
    def winners(self) -> dict[int, Plan]:
        levels = sorted({rows for by_rows in self.rates.values() for rows in by_rows})
        return {
            rows: max(
                (p for p in self.rates if rows in self.rates[p]),
                key=lambda p, rows=rows: self.rates[p][rows],  # type: ignore[misc]
            )
            for rows in levels
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "context": self.context,
            "acceptance": {"curve": self.curve.name, "source": self.curve.source},
            "tokens_per_s": {str(p): by_rows for p, by_rows in self.rates.items()},
            "winners": {str(rows): str(plan) for rows, plan in self.winners.items()},
            "ar_crossover": {
                str(p): finite(self.crossing(p)) for p in self.rates if p.mode is not Mode.AR
            }
            | {"best self_speculation": finite(self.best_crossing)},
        }


def finite(value: float | None) -> float | str | None:
    """JSON has no infinity."""
    return "beyond" if value is not None and math.isinf(value) else value


def crossing(ours: Mapping[int, float], ar: Mapping[int, float]) -> float | None:
    """Where ours / ar falls through 1, between levels by interpolation in both logarithms."""
    levels = sorted(ours.keys() & ar.keys())
    ratios = [math.log(ours[level] / ar[level]) for level in levels]
    if not ratios or ratios[0] < 0:
        return None
    for i in range(1, len(levels)):
        if ratios[i] < 0:
            low, high = math.log(levels[i - 1]), math.log(levels[i])
            share = ratios[i - 1] / (ratios[i - 1] - ratios[i])
            return math.exp(low + share * (high - low))
    return math.inf


def throughputs(steps: Sequence[StepTime]) -> list[Throughput]:
    """Per model, context and published curve; graphs on where that was measured."""
    chosen: dict[tuple[str, int, str, int], StepTime] = {}
    for step in sorted(steps, key=lambda s: s.graphs):
        chosen[step.model, step.context, step.plan, step.sequences] = step
    found = []
    for model, context in dict.fromkeys((s.model, s.context) for s in steps):
        cells = [s for s in chosen.values() if (s.model, s.context) == (model, context)]
        for curve in CURVES[model]:
            rates: Rates = {}
            for cell in sorted(cells, key=lambda s: s.sequences):
                plan = Plan.parse(cell.plan)
                per_step = tokens_per_step(plan, model, curve, cell.sequences)
                if per_step is not None:
                    rate = 1e3 * cell.sequences * per_step / cell.wall_ms
                    rates.setdefault(plan, {})[cell.sequences] = rate
            found.append(Throughput(model, context, curve, rates))
    return found


def tokens_per_step(plan: Plan, model: str, curve: SurvivalCurve, rows: int) -> float | None:
    """Tokens of one sequence and step; None where nothing is published."""
    if plan.mode is Mode.AR:
        return 1.0
    if plan.mode is Mode.DIFFUSION:
        return DIFFUSION_TOKENS_PER_FORWARD.get(model) if plan.block_length == 32 else None
    drawn = curve.draw(plan.block_length, min(_ROUNDS * rows, _MOST_DRAWS), seed=rows)
    return sum(drawn) / len(drawn)


def public_crossing() -> float | None:
    """Self-speculation/32 against AR in the public B200 sweep."""
    ours = dict(zip(CONCURRENCY, SELF_SPECULATION_32_TOKENS_PER_S, strict=True))
    return crossing(ours, dict(zip(CONCURRENCY, AR_TOKENS_PER_S, strict=True)))


def public_best_lengths() -> dict[int, int]:
    """Best block length by concurrency, from the public round times and the means beside them."""
    return {
        rows: max(ROUND_MS, key=lambda n, i=i: TEST_SETS_8B.mean(n) / ROUND_MS[n][i])  # type: ignore[misc]
        for i, rows in enumerate(CONCURRENCY)
    }


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Rates of one cell's forwards, by the device's clock."""

    step: StepTime
    bandwidth: float
    flops: float

    def share_of(self, peak: Peak) -> tuple[float, float]:
        return self.bandwidth / peak.bandwidth, self.flops / peak.flops

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self.step), "gb_per_s": self.bandwidth, "tflop_per_s": self.flops}


def utilisation(step: StepTime, element: int) -> Utilisation:
    """Counts weights and cached K/V once per forward; activations and the adapter not at all."""
    config, plan = SHAPES[step.model], Plan.parse(step.plan)
    forwards = 2 if plan.mode is Mode.SELF_SPECULATION else 1
    cached = step.sequences * step.context * kv_bytes(config, element)
    read = forwards * (forward_bytes(config, element) + cached)
    work = forwards * forward_flops(config, step.sequences, plan.block_length, step.context)
    seconds = step.forward_ms / 1e3
    return Utilisation(step, read / seconds / 1e9, work / seconds / 1e12)


def telling_cells(steps: Sequence[StepTime]) -> list[StepTime]:
    """A few cells per model that say most: AR and self-speculation, fewest to most sequences."""
    found = []
    for model in dict.fromkeys(s.model for s in steps):
        of_model = [s for s in steps if s.model == model]
        context = of_model[0].context
        for plan in (AR, *(Plan(Mode.SELF_SPECULATION, n) for n in BLOCK_LENGTHS[1::2])):
            cells = [s for s in of_model if s.plan == str(plan) and s.context == context]
            rows = sorted({s.sequences for s in cells})
            wanted = {rows[0], rows[len(rows) // 2], rows[-1]} if rows else set()
            found += [s for s in cells if s.sequences in wanted]
    return found


@dataclass(frozen=True, slots=True)
class Breakdown:
    """One cell without and with graphs, in milliseconds."""

    eager: StepTime
    graphed: StepTime

    @property
    def launching(self) -> float:
        """What the forwards lose to being launched kernel by kernel."""
        return self.eager.forward_ms - self.graphed.forward_ms

    @property
    def outside(self) -> float:
        """Packing, choice of tokens and lists: the graphed step beyond its forwards."""
        return self.graphed.wall_ms - self.graphed.forward_ms

    def to_dict(self) -> dict[str, Any]:
        return {
            "eager": self.eager.to_dict(),
            "graphed": self.graphed.to_dict(),
            "launching_ms": self.launching,
            "outside_forward_ms": self.outside,
        }


def breakdowns(steps: Sequence[StepTime]) -> list[Breakdown]:
    cells = telling_cells(steps)
    eager = {(s.model, s.plan, s.sequences): s for s in cells if not s.graphs}
    return [
        Breakdown(eager[s.model, s.plan, s.sequences], s)
        for s in cells
        if s.graphs and (s.model, s.plan, s.sequences) in eager
    ]
