"""What load `benchmarks.adaptive` puts on a replica: concurrency and kind of prompts over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

from policies.vocabulary import Band

EASY, MIXED, HARD = "easy", "mixed", "hard"
LEVELS = (1, 2, 4, 8, 16, 32)
MOST = LEVELS[-1]
SHIFT_AT = 8  # clients while the kind of prompts changes
SWING_S = 0.5  # an oscillating load stays so long on either side
ALL_TIMES = 6  # as long as other moving loads is the one that has everything in it
USUAL_CROSSOVER = 8  # where the bands know none


@dataclass(frozen=True, slots=True)
class Phase:
    """`seconds` with a number of clients that goes evenly from `begin` to `end`."""

    seconds: float
    begin: int
    end: int
    traffic: str = MIXED

    def concurrency(self, at_s: float) -> int:
        share = min(1.0, max(0.0, at_s / self.seconds))
        return round(self.begin + share * (self.end - self.begin))


@dataclass(frozen=True, slots=True)
class Scenario:
    """Phases, one after the other. A moving one belongs to the mixed load."""

    name: str
    phases: tuple[Phase, ...]
    moves: bool = True

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    def at(self, at_s: float) -> tuple[int, str]:
        """Number of clients and kind of prompts, `at_s` seconds after it began."""
        for phase in self.phases:
            if at_s < phase.seconds:
                return phase.concurrency(at_s), phase.traffic
            at_s -= phase.seconds
        last = self.phases[-1]
        return last.end, last.traffic


def fixed(level: int, seconds: float) -> Scenario:
    return Scenario(fixed_name(level), (Phase(seconds, level, level),), moves=False)


def fixed_name(level: int) -> str:
    return f"fixed {level}"


def moving(seconds: float, crossover: tuple[int, int]) -> list[Scenario]:
    """What changes, each about `seconds` long but the last; together they are the mixed load."""
    part = seconds / 3
    low, high = crossover
    swings = max(1, round(seconds / (2 * SWING_S)))
    burst = [Phase(seconds / 6, 2, 2), Phase(seconds / 12, MOST, MOST)]
    return [
        Scenario("step", (_steady(part, 1), _steady(part, MOST), _steady(part, 1))),
        Scenario("ramp", (Phase(seconds, 1, MOST),)),
        Scenario("bursts", (*(burst * 4),)),
        Scenario(OSCILLATION, (_steady(SWING_S, low), _steady(SWING_S, high)) * swings),
        Scenario(
            "shift",
            (
                _steady(part, SHIFT_AT, EASY),
                _steady(part, SHIFT_AT, HARD),
                _steady(part, SHIFT_AT, EASY),
            ),
        ),
        Scenario("everything", everything(ALL_TIMES * seconds)),
    ]


def everything(seconds: float) -> tuple[Phase, ...]:
    """Every number of clients with every kind of prompts, once, for equal times: an order that was
    drawn, and is the same each time."""
    pairs = list(product(LEVELS, (EASY, MIXED, HARD)))
    Random(1).shuffle(pairs)
    return tuple(_steady(seconds / len(pairs), level, traffic) for level, traffic in pairs)


OSCILLATION = "oscillation"


def _steady(seconds: float, level: int, traffic: str = MIXED) -> Phase:
    return Phase(seconds, level, level, traffic)


def crossover(bands: Sequence[Band]) -> tuple[int, int] | None:
    """Numbers of clients just below and just above a change of the best plan: of those within
    reach, the one nearest to the middle, where neither side is a corner. None without any."""
    bounds = [band.up_to for band in bands if band.up_to is not None and band.up_to < MOST]
    if not bounds:
        return None
    low = min(bounds, key=lambda bound: abs(bound - USUAL_CROSSOVER))
    return low, min(MOST, max(low + 1, low + low // 2))


def usual_crossover() -> tuple[int, int]:
    return USUAL_CROSSOVER, USUAL_CROSSOVER + USUAL_CROSSOVER // 2
