"""Opt-in: physics as a prior, then what each plan was seen to do, and a bounded share of trying.

For hardware that the cost model fits badly. Predictions are the predictive policy's, uncorrected;
for every plan and size of batch this keeps by how much measured throughput differed from them.
Where nothing was measured of a size, the plan's mean holds, and where nothing of the plan, the mean
of all: a machine that is half as fast is so in every plan, so nobody runs to the untried. Old
evidence fades, and what has little of it gets a bonus (a discounted upper confidence bound), which
only decides what to try: the plan in use is the one with the highest estimate.

Decides at every tick, centrally, so it follows load a scrape and a tick late. Deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Self

from policies.cost_model import Values
from policies.decisions import Decision, Reason, Signals
from policies.estimates import Estimates, is_steady, with_fleet
from policies.predictive import Predictive, better, issued, pinned
from policies.profiled_steps import batch_bucket
from policies.step_time import Profile, forwards_per_step
from policies.vocabulary import AR, Plan, Schedule

HALF_LIFE_S = (
    120.0  # of what was measured; step times change with load and context, not by the hour
)
PRIOR_TICKS = 3.0  # ticks of measurement that a wider mean counts for
BONUS = 0.3  # how much more an unmeasured plan may yield, per unit of the confidence bound
MOST_OFF = math.log(8.0)  # further off than this is a hiccup


@dataclass(frozen=True, slots=True)
class Evidence:
    """`ticks` measured, as of `at`, and the mean of log(measured / predicted) over them."""

    ticks: float = 0.0
    mean: float = 0.0
    at: float = 0.0

    def faded(self, now: float) -> float:
        """What `ticks` still count for."""
        return self.ticks * math.exp2(-max(0.0, now - self.at) / HALF_LIFE_S)

    def with_tick(self, value: float, now: float) -> Evidence:
        before = self.faded(now)
        return Evidence(before + 1.0, (before * self.mean + value) / (before + 1.0), now)


NOTHING = Evidence()
Arms = Mapping[Plan, Mapping[int, Evidence]]
"""By plan and bucket of batch sizes."""


@dataclass(frozen=True, slots=True)
class State:
    """Of one replica. `since_explored` counts ticks."""

    known: Estimates
    schedule: Schedule
    plan: Plan = AR
    arms: Arms = field(default_factory=dict)
    since_explored: int = 0


class Bandit:
    """See the module.

    Args:
        tpot_target_s, hysteresis, dwell_s: as for the predictive policy.
        explore_every: at most one tick in so many tries another plan.
        most_loss: share below the best estimate from which on a plan is never tried.

    Raises:
        ValueError: an option outside its range.
    """

    needs: tuple[str, ...] = ("decoding",)

    def __init__(
        self,
        tpot_target_s: float | None = None,
        hysteresis: float = 0.05,
        dwell_s: float = 0.1,
        explore_every: int = 10,
        most_loss: float = 0.4,
    ) -> None:
        if explore_every < 2:
            raise ValueError(f"explore_every {explore_every} must be at least 2")
        if not 0.0 <= most_loss < 1.0:
            raise ValueError(f"most_loss {most_loss} must lie in [0, 1)")
        self._physics = Predictive(False, tpot_target_s, hysteresis, dwell_s=dwell_s)
        self.explore_every, self.most_loss = explore_every, most_loss

    def among(self, plans: Collection[Plan]) -> Self:
        """The same policy, which chooses among these plans and the safe one."""
        policy = copy(self)
        policy._physics = self._physics.among(plans)
        return policy

    def decide(
        self, signals: Signals, state: State | None, now: float
    ) -> tuple[Decision, State | None]:
        profile = signals.profile
        if profile is None and state is None:
            return self._physics.decide(signals, None, now)[0], None
        if profile is not None and (state is None or not state.known.is_of(profile)):
            return self._begin(signals, profile, state, now)
        assert state is not None
        state = self._learned(signals, state, now)
        decoding = signals.decoding.value
        if decoding is None:
            return Decision(state.schedule, Reason.HOLD_MISSING), state
        return self._choose(signals, decoding, state, now)

    def merge(self, states: Mapping[str, State], now: float) -> Mapping[str, State]:
        """Acceptance is pooled; what arms did belongs to one machine."""
        known = with_fleet({name: state.known for name, state in states.items()})
        return {name: replace(state, known=known[name]) for name, state in states.items()}

    # -- one tick -------------------------------------------------------------------------------

    def _begin(
        self, signals: Signals, profile: Profile, before: State | None, now: float
    ) -> tuple[Decision, State]:
        fleet = None if before is None else before.known.fleet
        known = Estimates.first(signals, profile, fleet, self._physics.worth_of, now)
        values = known.values(signals, signals.decoding.value or 0.0)
        schedule = pinned(values.best, self._physics.dwell_s)
        reason = Reason.INITIAL if before is None else Reason.REVISED
        decision = Decision(schedule, reason, f"profile {profile.name}", values.by_plan)
        return decision, State(known, schedule, values.best)

    def _learned(self, signals: Signals, state: State, now: float) -> State:
        """With this tick's measurements."""
        known = state.known.revised(
            signals, now, self._physics.worth_of, corrects=False, follows=True
        )
        arms = dict(state.arms)
        for plan, sequences, off in _measured(signals, known):
            at = arms.get(plan, {})
            bucket = batch_bucket(sequences)
            arms[plan] = {**at, bucket: at.get(bucket, NOTHING).with_tick(off, now)}
        return State(known, state.schedule, state.plan, arms, state.since_explored + 1)

    def _choose(
        self, signals: Signals, decoding: float, state: State, now: float
    ) -> tuple[Decision, State]:
        physical = state.known.values(signals, decoding)
        bucket = batch_bucket(state.known.load(signals, decoding)[0])
        factors = factors_of(state.arms, physical.by_plan, bucket, now)
        by_plan = {plan: value * factors[plan] for plan, value in physical.by_plan.items()}
        best = max(physical.within_limit, key=by_plan.__getitem__)
        values = Values(by_plan, best, physical.within_limit)
        plan, reason, detail = better(state.plan, values, decoding, self._physics.hysteresis)
        used, since = plan, state.since_explored
        if decoding and reason.is_hold and since >= self.explore_every:
            tried = self._worth_trying(plan, values, state.arms, bucket, now)
            if tried is not None:
                used, reason, detail, since = tried, Reason.PROBE, "", 0
        dwell_s = self._physics.dwell_s
        decision = issued(used, reason, detail, values, state.schedule, dwell_s)
        return decision, State(state.known, decision.schedule, plan, state.arms, since)

    def _worth_trying(
        self, plan: Plan, values: Values, arms: Arms, bucket: int, now: float
    ) -> Plan | None:
        """The plan that may be better than the one in use, and by how much nobody knows."""
        least = (1.0 - self.most_loss) * values.by_plan[values.best]
        ticks = {p: arms.get(p, {}).get(bucket, NOTHING).faded(now) for p in values.within_limit}
        width = math.log(2.0 + sum(ticks.values()))
        bounds = {
            p: values.by_plan[p] * (1.0 + BONUS * math.sqrt(width / (1.0 + ticks[p])))
            for p in values.by_plan  # in one order, so that ties fall one way
            if p in values.within_limit and p != plan and values.by_plan[p] >= least
        }
        tried = max(bounds, default=plan, key=lambda p: bounds[p])
        return tried if bounds.get(tried, 0.0) > values.by_plan[plan] else None


def factors_of(arms: Arms, plans: Collection[Plan], bucket: int, now: float) -> dict[Plan, float]:
    """Estimated over predicted throughput of every plan at one size of batch."""
    seen = {
        plan: [(evidence.faded(now), evidence.mean) for evidence in at.values()]
        for plan, at in arms.items()
    }
    overall = _shrunk([pair for pairs in seen.values() for pair in pairs], 0.0)
    factors = {}
    for plan in plans:
        general = _shrunk(seen.get(plan, []), overall)
        here = arms.get(plan, {}).get(bucket, NOTHING)
        factors[plan] = math.exp(_shrunk([(here.faded(now), here.mean)], general))
    return factors


def _shrunk(seen: Collection[tuple[float, float]], prior: float) -> float:
    """Weighted mean, the prior among it."""
    weight = sum(ticks for ticks, _ in seen)
    total = sum(ticks * mean for ticks, mean in seen)
    return (total + PRIOR_TICKS * prior) / (weight + PRIOR_TICKS)


def _measured(signals: Signals, known: Estimates) -> list[tuple[Plan, float, float]]:
    """Plan, sequences, and log of measured over predicted throughput, of every plan in use."""
    found = []
    for plan, used in signals.plans.items():
        tokens, step_s = used.tokens_per_forward.value, used.step_s.value
        sequences = used.sequences.value
        if plan not in known.model.worth.plans or not tokens or not step_s or not sequences:
            continue
        if not is_steady(signals, sequences):
            continue
        sequences, context = known.load(signals, sequences)
        predicted = known.model.throughput(plan, sequences, context)
        predicted /= sequences * forwards_per_step(plan)
        off = math.log(tokens) - math.log(step_s) - math.log(predicted)
        found.append((plan, sequences, min(MOST_OFF, max(-MOST_OFF, off))))
    return found
