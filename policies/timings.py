"""What steps took against the profile, by plan and load: step time, learned as it goes.

A load is the size of the batch, or the number of clients where prefill shares steps
(`shared_steps.py`). A correction is a factor on the profiled step time: what recent steps took
together over what they should have, shrunk towards the plan's mean over all loads, times what is
the machine's and not the plan's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from policies.isotonic import isotonic
from policies.machine_speed import MOST, MachineSpeed, clipped
from policies.profiled_steps import ProfiledSteps, batch_bucket
from policies.vocabulary import Plan

SAMPLES = 256  # steps that a step time is the mean of, per plan and bucket of loads
HALF_LIFE_S = 30.0
OUTLIER = 4.0  # usual step times that one counts for at most
TRUSTED_SAMPLES = 4.0  # what the mean of all loads weighs against the samples of one
LEAST_SAMPLES = 1e-3  # what is left of the oldest: halved often enough, it would be zero
LARGEST_CORRECTION = 8.0  # further off than this is a hiccup, not a property of the plan


class Timing(NamedTuple):
    """What a plan's steps took, against the profile and the machine's speed, in one bucket of
    loads. `steps` are those it rests on: at most `SAMPLES`, and fewer the longer ago they were.
    `mean` is what they took together over what they should have, `expected_s` the mean of that.
    `usual`: the logarithm of what a step takes if nothing comes in between."""

    steps: float = 0.0
    mean: float = 1.0
    expected_s: float = 0.0
    usual: float | None = None
    last_at: float = -math.inf

    def at(self, now: float) -> float:
        """Steps that it still rests on."""
        half_lives = max(0.0, now - self.last_at) / HALF_LIFE_S
        return self.steps * math.pow(0.5, half_lives)

    def after(self, ratio: float, expected_s: float, steps: int, now: float) -> Timing:
        """With `steps` more, each of which took `ratio` times `expected_s`."""
        known = min(float(SAMPLES), self.at(now) + steps)
        share, seen = min(1.0, steps / known), math.log(ratio)
        usual = seen if self.usual is None else self.usual
        # Tokens per second are made of what steps take on average, hiccups included; only what no
        # other step comes near is cut off.
        ratio = min(ratio, OUTLIER * math.exp(usual))
        # Long steps count more: the sum of what steps took is what tokens per second are made of.
        expected = self.expected_s + share * (expected_s - self.expected_s)
        mean = self.mean + share * expected_s / expected * (ratio - self.mean)
        return Timing(known, mean, expected, usual + share * clipped(seen - usual), now)


class _Learned(NamedTuple):
    """A plan's corrections from its own timings: their means, one for all batches, by bucket."""

    means: tuple[float, ...]
    general: float
    by_bucket: dict[int, float]


class Correction(NamedTuple):
    """Factor on a plan's profiled step times: by bucket of loads, `general` where there is
    none for it; and `machine`, which either is to be multiplied by. Apart, since the machine's
    speed changes with every step, and the rest only with the plan's own."""

    by_bucket: Mapping[int, float]
    general: float
    machine: float

    def at(self, bucket: int) -> float:
        """For batches in this bucket."""
        return self.by_bucket.get(bucket, self.general) * self.machine


NO_BUCKETS: Mapping[int, float] = {}


class Timings:
    """Step times of one replica. `now` may be any monotonic clock, always the same one."""

    def __init__(self) -> None:
        self._speed = MachineSpeed()
        self._by_plan: dict[Plan, dict[int, Timing]] = {}
        self._calm: dict[tuple[Plan, int], Timing] = {}
        """As they were before the machine's speed seemed to change."""
        self._new: set[Plan] = set()
        """Plans with timings since their corrections were learned."""
        self._learned: dict[Plan, _Learned] = {}

    @property
    def machine(self) -> float:
        """What all plans take, against the profile."""
        return self._speed.factor

    def add(
        self, plan: Plan, load: int, seconds: float, expected_s: float, steps: int, now: float
    ) -> None:
        """`steps` equal steps took `seconds` each, `expected_s` by the profile. What cannot be is
        ignored. `load`: sequences of the batch, or clients."""
        ratio = seconds / expected_s
        if not 1.0 / MOST <= ratio <= MOST:
            return
        case = plan, batch_bucket(load)
        by_bucket = self._by_plan.setdefault(plan, {})
        timing, jumps = by_bucket.get(case[1]) or Timing(), self._speed.jumps
        ratio = self._speed.relative(case, ratio, timing.usual, steps)
        if not 1.0 / LARGEST_CORRECTION <= ratio <= LARGEST_CORRECTION:
            return
        if self._speed.jumps > jumps:  # what was charged to the plan meanwhile was the machine's
            timing = self._calm.get(case, timing)
        by_bucket[case[1]] = timing = timing.after(ratio, expected_s, steps, now)
        if self._speed.is_calm:
            self._calm[case] = timing
        self._new.add(plan)

    def known(self, plan: Plan, sequences: float) -> tuple[float, float]:
        """Steps that the plan's correction at about this batch size rested on when the last of them
        ran, and when that was."""
        timing = self._by_plan.get(plan, {}).get(batch_bucket(sequences))
        return (0.0, -math.inf) if timing is None else (timing.steps, timing.last_at)

    def learn(self, profiled: ProfiledSteps, now: float) -> None:
        """Brings the corrections of plans up to date that ran since."""
        for plan in self._new:
            self._learned[plan] = self._learn(plan, profiled, now)
        self._new.clear()

    def corrections(
        self, plans: Sequence[Plan], prior: Mapping[Plan, float]
    ) -> dict[Plan, Correction]:
        """Of every plan.

        `prior`: of plans that never ran here; without one a plan is thought to be as far off as
        the others are on average.
        """
        learned, factor = self._learned, self._speed.factor
        found: dict[Plan, Correction] = {}
        elsewhere: Correction | None = None
        for plan in plans:
            own = learned.get(plan)
            if own is not None:
                found[plan] = Correction(own.by_bucket, own.general, factor)
            elif plan in prior:
                found[plan] = Correction(NO_BUCKETS, prior[plan], 1.0)
            else:
                elsewhere = elsewhere or self._elsewhere(prior)
                found[plan] = elsewhere
        return found

    def _elsewhere(self, prior: Mapping[Plan, float]) -> Correction:
        """Of a plan of which nothing is known."""
        others = [ratio for own in self._learned.values() for ratio in own.means]
        general = mean(others) if others else mean(list(prior.values()))
        return Correction(NO_BUCKETS, general, self._speed.factor)

    def _learn(self, plan: Plan, profiled: ProfiledSteps, now: float) -> _Learned:
        """Corrections whose step times do not fall as the load grows: a lone sample that says so
        is noise."""
        timings = self._by_plan[plan]
        buckets = sorted(timings)
        means = tuple(timings[bucket].mean for bucket in buckets)
        general = mean(means)
        weights = [timings[bucket].at(now) + LEAST_SAMPLES for bucket in buckets]
        times, bases = [], []
        for bucket, count, own in zip(buckets, weights, means, strict=True):
            shrunk = (count * own + TRUSTED_SAMPLES * general) / (count + TRUSTED_SAMPLES)
            base = profiled.at_centre(plan, bucket)
            bases.append(base)
            times.append(base * shrunk)
        smooth = isotonic(times, weights)
        corrections = (t / base for t, base in zip(smooth, bases, strict=True))
        return _Learned(means, general, dict(zip(buckets, corrections, strict=True)))


def mean(values: Sequence[float]) -> float:
    """Geometric: factors of 2 and 1/2 cancel. Of nothing it is 1."""
    if not values:
        return 1.0
    return math.exp(sum(map(math.log, values)) / len(values))
