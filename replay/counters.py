"""What a replica has counted since it started: as its metrics page, and read back as signals."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from policies.decisions import PlanSignals, Reading
from policies.step_time import forwards_per_step
from policies.vocabulary import BLOCK_LENGTHS, Mode, Plan, all_plans

PLANS = all_plans()
INDEX = {plan: index for index, plan in enumerate(PLANS)}
SECONDS, STEPS, SEQUENCE_STEPS, TOKENS, ROUNDS = range(5)
KEPT = 5  # first of the columns that count rounds by tokens kept, 0 to the longest block
COLUMNS = KEPT + BLOCK_LENGTHS[-1] + 1

Table = npt.NDArray[np.float64]


class Counters:
    """One row a plan. `requests` are (finished at, TTFT, TPOT) of late."""

    def __init__(self) -> None:
        self.table: Table = np.zeros((len(PLANS), COLUMNS))
        self.requests: deque[tuple[float, float, float]] = deque()

    def count(
        self,
        plan: Plan,
        steps: int,
        sequences: int,
        seconds: float,
        tokens: int,
        kept: Sequence[int],
    ) -> None:
        """Adds steps of one plan; `kept[g]` of its rows kept g tokens."""
        row, is_drafted = self.table[INDEX[plan]], plan.mode is Mode.SELF_SPECULATION
        sequence_steps = steps * sequences
        rounds = sequence_steps if is_drafted else 0
        row[:KEPT] += (seconds, steps, sequence_steps, tokens, rounds)
        if is_drafted:
            row[KEPT : KEPT + len(kept)] += kept


def plan_signals(grown: Table, age_s: float) -> dict[Plan, PlanSignals]:
    """Signals of the plans that were used, from how far the counters grew over the window."""
    return dict(_used(grown, age_s))


def _used(grown: Table, age_s: float) -> Iterator[tuple[Plan, PlanSignals]]:
    for index in np.flatnonzero(grown[:, STEPS]):
        plan, row = PLANS[index], grown[index]
        seconds, steps, sequence_steps, tokens, rounds = row[:KEPT].tolist()
        forwards = sequence_steps * forwards_per_step(plan)
        shares: tuple[float, ...] = ()
        accepted = Reading(None, None)
        if rounds > 0:
            shares = _shares(row[KEPT:], rounds, plan.block_length)
            accepted = Reading(sum(shares), age_s)
        yield (
            plan,
            PlanSignals(
                tokens_per_forward=Reading(tokens / forwards, age_s),
                accepted_length=accepted,
                step_s=Reading(seconds / steps, age_s),
                sequences=Reading(sequence_steps / steps, age_s),
                acceptance=shares,
            ),
        )


def _shares(kept: Table, rounds: float, block_length: int) -> tuple[float, ...]:
    """Share of rounds in which each draft position was accepted: those that yielded more tokens
    than the position's number, the bonus token being one."""
    at_least = kept[::-1].cumsum()[::-1]
    shares: list[float] = (at_least[2 : block_length + 1] / rounds).tolist()
    return tuple(shares)


def quantile(values: Sequence[float], q: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
