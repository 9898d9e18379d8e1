"""When requests come: as recorded (open loop), or as many in flight as recorded (closed loop).

Open loop shows latency under a given load. Closed loop shows throughput: how many requests are in
flight is given, and whoever decodes faster serves more of them. The recorded concurrency is scaled
so that it straddles the loads at which the best plan changes; elsewhere every policy is as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from policies.acceptance import Acceptance
from policies.step_time import Profile
from policies.vocabulary import Plan
from replay.trace import Floats, Ints, Trace

GRID_S = 0.1
EXTRA_S = 0.3  # of a request besides its tokens, when its concurrency is worked out
BURST = 8.0  # times the mean, at most: no fleet is loaded beyond that
KV_SHARE = 0.9  # of a replica's cache, at the trace's mean length, at most


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Arrivals as they are in the trace."""

    trace: Trace

    @property
    def duration_s(self) -> float:
        return self.trace.duration_s


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`targets[i]` requests are in flight from i * GRID_S on, lengths in the trace's order."""

    trace: Trace
    targets: Ints

    @property
    def duration_s(self) -> float:
        return len(self.targets) * GRID_S

    def middle(self, seconds: float) -> ClosedLoop:
        """At most so many seconds, from the middle."""
        cells = min(len(self.targets), round(seconds / GRID_S))
        start = (len(self.targets) - cells) // 2
        return replace(self, targets=self.targets[start : start + cells])


def closed(trace: Trace, profile: Profile, plans: Sequence[Plan], replicas: int) -> ClosedLoop:
    """The trace's concurrency, its mean moved to the middle of the crossovers, for each replica."""
    length = float(np.mean(trace.prompts + trace.outputs / 2))
    most = min(profile.max_sequences, max(1, int(KV_SHARE * profile.kv_tokens / length)))
    low, high = crossovers(profile, plans, length, most)
    middle = (low * high) ** 0.5
    concurrency = _concurrency(trace, middle)
    limit = min(most, BURST * middle)
    targets = np.clip(np.round(concurrency), 1, limit).astype(np.int64) * replicas
    return ClosedLoop(trace, targets)


def crossovers(
    profile: Profile, plans: Sequence[Plan], length: float, most: int
) -> tuple[int, int]:
    """First and last number of sequences at which the best plan changes; the ends if it never
    does."""
    yields = Acceptance().yields()

    def best(sequences: int) -> Plan:
        step_s = {p: profile.step_s(p, sequences, sequences * length) for p in plans}
        return max(plans, key=lambda plan: yields.tokens(plan) / step_s[plan])

    grid = sorted({round(1.1**i) for i in range(80) if 1.1**i <= most})
    winners = [best(sequences) for sequences in grid]
    changes = [
        n
        for n, before, after in zip(grid[1:], winners, winners[1:], strict=False)
        if before != after
    ]
    return (changes[0], changes[-1]) if changes else (1, most)


def _concurrency(trace: Trace, mean: float) -> Floats:
    """Requests in flight on the grid, if every token took so long that their mean is `mean`."""
    cells = int(trace.duration_s / GRID_S) + 1
    held_s = mean * trace.duration_s
    extra_s = min(EXTRA_S, 0.5 * held_s / len(trace))
    token_s = (held_s - extra_s * len(trace)) / float(trace.outputs.sum())
    ends = trace.arrivals_s + trace.outputs * token_s + extra_s
    steps = np.zeros(cells + 2)
    np.add.at(steps, np.minimum((trace.arrivals_s / GRID_S).astype(int), cells), 1.0)
    np.add.at(steps, np.minimum((ends / GRID_S).astype(int) + 1, cells + 1), -1.0)
    return np.asarray(np.cumsum(steps)[:cells])


def steps_of_load(trace: Trace, levels: Sequence[int], each_s: float, replicas: int) -> ClosedLoop:
    """Constant numbers in flight, one after the other."""
    cells = round(each_s / GRID_S)
    return ClosedLoop(trace, np.repeat(np.array(levels, dtype=np.int64) * replicas, cells))
