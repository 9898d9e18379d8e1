"""The default policy: the plan with the highest predicted throughput, on any machine and traffic.

A plan is worth its expected tokens over its step time (`cost_model.py`). Two levels: this policy
turns a replica's profile and what its metrics say into a `Worth`, and the replica's governor
multiplies it out for its own batch at every step, corrected by what it sees itself. So a schedule
changes only when an estimate has moved, not when the load has; what replicas learn is pooled, and
a new one starts from what the fleet knows. With `local=False` the choice is made here, once a tick:
slower by a scrape and a tick, for comparison and for engines that cannot follow a worth.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from functools import cache
from typing import NamedTuple, Self

from policies.acceptance import Acceptance
from policies.cost_model import CostModel, Values
from policies.decisions import Decision, Reason, Signals
from policies.estimates import Estimates, with_fleet
from policies.step_time import Profile
from policies.threshold import DEFAULT_BANDS
from policies.vocabulary import AR, Band, Mode, Plan, Schedule, all_plans
from policies.worth import Worth, check_shares

TPOT_SHARE = 0.6
"""Share of the TPOT target that decoding may use: prefill and queueing take from the rest."""
EXPLORE_S, EXPLORE_LENGTH = 60.0, 8
"""Deciding here, a replica in AR is given a tick of self-speculation after so long: nothing else
tells what it would yield."""
EXPLORE_LIGHTER_S, LIGHTER = 4.0, 0.5
"""So much sooner, once, where the load has fallen to this share of what it was at the last draft: a
draft that did not pay then may pay now."""


class State(NamedTuple):
    """Of one replica: what is known of it, the schedule issued, and its plan at the last load.

    Deciding here: `drafted_at` is when it was last seen to self-speculate, or began, and
    `drafted_of` how many sequences decoded then.
    """

    known: Estimates
    schedule: Schedule
    plan: Plan = AR
    decoding: float = 0.0
    drafted_at: float = 0.0
    drafted_of: float = 0.0


class Predictive:
    """See the module.

    Args:
        local: whether the replica's governor evaluates the worth at every step, or this policy does
            at every tick.
        tpot_target_s: plans in which a request of low acceptance would take longer than 0.6 of this
            per token are avoided.
        hysteresis: share by which another plan must be worth more.
        probe_share: share of the time that governors may spend on trying other plans.
        dwell_s: shortest time that a governor stays in a plan.
        learns: whether predictions are corrected by measurement; False uses the profile as it is.

    Raises:
        ValueError: an option outside its range.
    """

    needs: tuple[str, ...] = ("decoding",)

    def __init__(
        self,
        local: bool = True,
        tpot_target_s: float | None = None,
        hysteresis: float = 0.05,
        probe_share: float = 0.005,
        dwell_s: float = 0.1,
        learns: bool = True,
    ) -> None:
        if not dwell_s >= 0:
            raise ValueError(f"dwell_s {dwell_s} must not be negative")
        self.tpot_limit_s = None if tpot_target_s is None else TPOT_SHARE * tpot_target_s
        check_shares(hysteresis, probe_share, self.tpot_limit_s)
        self.local, self.learns, self.dwell_s = local, learns, dwell_s
        self.hysteresis, self.probe_share = hysteresis, probe_share
        self.plans = all_plans()
        self._without_profile = Schedule(DEFAULT_BANDS, hysteresis=1, dwell_s=dwell_s)

    def among(self, plans: Collection[Plan]) -> Self:
        """The same policy, which chooses among these plans and the safe one."""
        policy = copy(self)
        policy.plans = tuple(plan for plan in all_plans() if plan in plans or plan == AR)
        return policy

    def decide(
        self, signals: Signals, state: State | None, now: float
    ) -> tuple[Decision, State | None]:
        profile = signals.profile
        if profile is None:
            schedule = self._without_profile if state is None else state.schedule
            return Decision(schedule, Reason.HOLD_MISSING, "no step-time profile yet"), state
        if state is None or not state.known.is_of(profile):
            return self._begin(signals, profile, state, now)
        if self.local and now < state.known.due_at:
            return self._at_load(signals, state, now)
        decision, after = self._at_load(signals, self._revised(signals, state, now), now)
        if self.local and decision.reason.is_hold and after.schedule is not state.schedule:
            decision = decision._replace(reason=Reason.REVISED)
        return decision, after

    def merge(self, states: Mapping[str, State], now: float) -> Mapping[str, State]:
        """What every replica knows, given to all that run the same model on the same machine."""
        known = with_fleet({name: state.known for name, state in states.items()})
        return {name: state._replace(known=known[name]) for name, state in states.items()}

    # -- one replica ----------------------------------------------------------------------------

    def _begin(
        self, signals: Signals, profile: Profile, before: State | None, now: float
    ) -> tuple[Decision, State]:
        fleet = None if before is None else before.known.fleet
        known = Estimates.first(signals, profile, fleet, self.worth_of, now)
        decoding = signals.decoding.value or 0.0
        values = known.values(signals, decoding)
        schedule = self._schedule(known, values.best)
        state = State(known, schedule, schedule.plan_at(decoding), decoding, now, decoding)
        reason = Reason.INITIAL if before is None else Reason.REVISED
        return Decision(schedule, reason, f"profile {profile.name}", values.by_plan), state

    def _revised(self, signals: Signals, state: State, now: float) -> State:
        """Estimates brought up to date; a new schedule only where one has moved."""
        before = state.known
        known = before.revised(
            signals,
            now,
            self.worth_of,
            learns=self.learns,
            corrects=self.learns,
            follows=not self.local,
        )
        is_same = known.model is before.model and known.context_length == before.context_length
        schedule = state.schedule if is_same else self._schedule(known, state.plan)
        return state._replace(known=known, schedule=schedule)

    def _at_load(self, signals: Signals, state: State, now: float) -> tuple[Decision, State]:
        """The decision at the load last known."""
        decoding = signals.decoding.value
        if decoding is None:
            return Decision(state.schedule, Reason.HOLD_MISSING), state
        sequences, tokens = state.known.load(signals, decoding)
        values = state.known.model.values(round(sequences), tokens)
        if not self.local:
            return self._chosen_here(signals, values, decoding, state, now)
        schedule = state.schedule
        plan = schedule.plan_at(decoding)
        reason = _reason(plan, decoding, state)
        detail = f"{decoding:g} decoding, {tokens / sequences:.0f} tokens each"
        decision = Decision(schedule, reason, detail, values.by_plan if decoding else {})
        if decoding == state.decoding and plan == state.plan:
            return decision, state
        return decision, state._replace(plan=plan, decoding=decoding)

    def _chosen_here(
        self, signals: Signals, values: Values, decoding: float, state: State, now: float
    ) -> tuple[Decision, State]:
        plan, reason, detail = better(state.plan, values, decoding, self.hysteresis)
        used, explored = plan, to_explore(self.plans) if self.learns else None
        drafted_at, drafted_of = state.drafted_at, state.drafted_of
        in_use = signals.plan or state.schedule.bands[0].plan
        is_staying = plan == state.plan and plan.mode is not Mode.SELF_SPECULATION
        if in_use.mode is Mode.SELF_SPECULATION:
            drafted_at, drafted_of = now, decoding
        elif decoding and is_staying and explored is not None:
            is_lighter = decoding <= LIGHTER * drafted_of
            # Asked for until it is seen to run: the guard may keep it back for a dwell.
            if now - drafted_at > (EXPLORE_LIGHTER_S if is_lighter else EXPLORE_S):
                used, reason, detail = explored, Reason.PROBE, ""
        decision = issued(used, reason, detail, values, state.schedule, self.dwell_s)
        known, schedule = state.known, decision.schedule
        return decision, State(known, schedule, plan, decoding, drafted_at, drafted_of)

    # -- schedules ------------------------------------------------------------------------------

    def worth_of(
        self, profile: Profile, acceptance: Acceptance, corrections: Mapping[Plan, float]
    ) -> Worth:
        """What is issued, from step times, acceptance and corrections."""
        return Worth(
            plans=self.plans,
            profile=profile,
            chances=tuple(acceptance.chances()),
            diffusion=acceptance.diffusion,
            corrections=corrections,
            tpot_limit_s=self.tpot_limit_s,
            hysteresis=self.hysteresis,
            probe_share=self.probe_share,
            learns=self.learns,
        )

    def _schedule(self, known: Estimates, plan: Plan) -> Schedule:
        if not self.local:
            return pinned(plan, self.dwell_s)
        found = bands(known.model, known.context_length)
        return Schedule(found, dwell_s=self.dwell_s, worth=known.model.worth)


def bands(model: CostModel, context_length: float) -> tuple[Band, ...]:
    """The best plan by number of sequences, at one context length: the worth as people read it."""
    grid = _grid(model.worth.profile.max_sequences)
    best = model.best_by_batch(grid, context_length)
    ends = zip(grid, best, best[1:], strict=False)
    return (*(Band(n, plan) for n, plan, after in ends if plan != after), Band(None, best[-1]))


def better(
    current: Plan, values: Values, decoding: float, hysteresis: float
) -> tuple[Plan, Reason, str]:
    """The plan to be in next, why, and what it would gain."""
    if not decoding:
        return current, Reason.HOLD_IDLE, ""
    if current not in values.within_limit:
        return values.best, Reason.PREDICTED_GAIN, f"{current} is too slow, or too large, here"
    gain = values.by_plan[values.best] / values.by_plan[current] - 1.0
    if gain > hysteresis:
        return values.best, Reason.PREDICTED_GAIN, f"{gain:+.0%}"
    return current, Reason.HOLD_HYSTERESIS if gain > 0.0 else Reason.HOLD_STEADY, f"{gain:+.0%}"


def to_explore(plans: Collection[Plan]) -> Plan | None:
    """The plan that says most about acceptance for what it costs; None if none drafts."""
    drafting = [plan for plan in plans if plan.mode is Mode.SELF_SPECULATION]
    lengths = [plan.block_length for plan in drafting]
    wanted = min((n for n in lengths if n >= EXPLORE_LENGTH), default=max(lengths, default=0))
    return next((plan for plan in drafting if plan.block_length == wanted), None)


_PINNED: dict[tuple[Plan, float], Schedule] = {}


def pinned(plan: Plan, dwell_s: float) -> Schedule:
    """One object per plan, so that who asks again sees that nothing has changed."""
    return _PINNED.setdefault((plan, dwell_s), Schedule.pinned(plan, dwell_s=dwell_s))


def issued(
    plan: Plan, reason: Reason, detail: str, values: Values, before: Schedule, dwell_s: float
) -> Decision:
    """One plan at every load, after the schedule `before`."""
    schedule = pinned(plan, dwell_s)
    if reason.is_hold and schedule is not before:
        reason, detail = Reason.PROBE, "back from a probe"
    return Decision(schedule, reason, detail, values.by_plan)


@cache
def _grid(max_sequences: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12 ... up to the limit."""
    grid, step = [1, 2, 3], 4
    while step <= max_sequences:
        grid += [step, step * 3 // 2]
        step *= 2
    return tuple(n for n in grid if n <= max_sequences) or (1,)


def _reason(plan: Plan, decoding: float, state: State) -> Reason:
    if plan == state.plan:
        return Reason.HOLD_STEADY if decoding else Reason.HOLD_IDLE
    if decoding == state.decoding:
        return Reason.PREDICTED_GAIN
    return Reason.LOAD_ROSE if decoding > state.decoding else Reason.LOAD_FELL
