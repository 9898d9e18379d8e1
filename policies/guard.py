"""The rules no policy may break: operator pin, known signals, allowed plans, SLO, dwell.

`Guard` wraps any policy and is one itself. In this order: a pin wins until it expires; without the
signals that the policy needs, the last schedule holds and then the safe one; what the policy wants
is cut down to the allowed plans; a missed SLO target caps the block length; and a schedule stays
for the dwell. Every outcome has a reason. Invariant: no plan outside `allowed` but the safe plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from policies import slo
from policies.base import ChoosingPolicy, MergingPolicy, Policy
from policies.decisions import Decision, Reason, Signals
from policies.vocabulary import BLOCK_LENGTHS, SAFE_PLAN, Mode, Plan, Quality, Schedule, all_plans

MAX_FITTED = 256  # schedules whose fitting is remembered; more than a policy has in use at once


@dataclass(frozen=True, slots=True)
class Pin:
    """An operator's order: this plan until `expires_at`, in the controller's seconds."""

    plan: Plan
    expires_at: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What the guard enforces.

    `allowed`: plans that may be used besides the safe one. `ttft_target_s`, `tpot_target_s`: p95
    targets, None for no target. `dwell_s`: shortest time between two schedules. `stale_after_s`:
    age at which a signal is no longer known. `hold_s`: how long the last schedule holds without
    signals before the safe one. `ttl_s`: time to live of every schedule.

    Raises:
        ValueError: a time or target that is not positive.
    """

    allowed: frozenset[Plan] = frozenset(plan for plan in all_plans() if plan.is_exact)
    ttft_target_s: float | None = None
    tpot_target_s: float | None = None
    dwell_s: float = 2.0
    stale_after_s: float = 5.0
    hold_s: float = 60.0
    ttl_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("ttft_target_s", "tpot_target_s", "stale_after_s", "hold_s", "ttl_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value} must be above 0")
        if not self.dwell_s >= 0:
            raise ValueError(f"dwell_s {self.dwell_s} must not be negative")

    @classmethod
    def for_quality(cls, quality: Quality, **fields: Any) -> Self:
        """Rules that allow every plan of a quality class."""
        return cls(allowed=frozenset(p for p in all_plans() if p.serves(quality)), **fields)


@dataclass(slots=True)
class GuardState:
    """What the guard remembers of one replica. `decide` changes a copy, never its argument."""

    schedule: Schedule | None = None
    plan: Plan | None = None
    pin: Pin | None = None
    policy_state: Any = None
    override: Reason | None = None
    """PINNED or SAFE_STALE while the schedule in force is not the policy's."""
    pending: Reason | None = None
    """Why the policy wants a schedule that the dwell still keeps back."""
    changed_at: float = -math.inf
    known_at: float | None = None
    """When the signals were last all known, or the first decision."""
    cap: slo.Cap = field(default_factory=slo.Cap)

    def copied(self) -> GuardState:
        # In the order of the fields; `replace` takes three times as long, for every replica.
        return GuardState(
            self.schedule,
            self.plan,
            self.pin,
            self.policy_state,
            self.override,
            self.pending,
            self.changed_at,
            self.known_at,
            self.cap,
        )


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A policy's schedule and what the rules make of it; fitting is the costly part of a tick."""

    wanted: Schedule
    schedule: Schedule
    quality_cut: bool


class Guard:
    """Wraps a policy; see the module's description. `name` is what decisions call the policy."""

    def __init__(self, policy: Policy, rules: Rules | None = None, name: str = "") -> None:
        self.rules = rules or Rules()
        if isinstance(policy, ChoosingPolicy):
            # The best of all plans, cut down to an allowed one, need not be the best of those.
            policy = policy.among({*self.rules.allowed, SAFE_PLAN})
        self.policy = policy
        self.name = name or type(policy).__name__.lower()
        self.needs = policy.needs
        self._safe = Schedule.pinned(SAFE_PLAN, ttl_s=self.rules.ttl_s)
        self._targets = slo.Targets(self.rules.ttft_target_s, self.rules.tpot_target_s)
        self._fitted: dict[tuple[int, int], _Fitted] = {}

    def decide(
        self, signals: Signals, state: GuardState | None, now: float
    ) -> tuple[Decision, GuardState]:
        state = GuardState() if state is None else state.copied()
        unknown = self._unknown(signals)
        if unknown is None or state.known_at is None:
            state.known_at = now
        ended = Reason.UNPINNED
        if state.pin is not None:
            if now < state.pin.expires_at:
                return self._override(signals, state, now, self._pinned(state.pin), Reason.PINNED)
            state.pin, ended = None, Reason.PIN_EXPIRED
        if unknown is not None and _is_holding(state):
            return self._without_signals(signals, state, now, unknown)
        return self._ask(signals, state, now, ended)

    def merge(self, states: Mapping[str, GuardState], now: float) -> dict[str, GuardState]:
        """Lets the policy share between replicas what each has learned, if it can."""
        if not isinstance(self.policy, MergingPolicy):
            return dict(states)
        known = {n: s.policy_state for n, s in states.items() if s.policy_state is not None}
        try:
            merged = self.policy.merge(known, now)
        except Exception:  # as in `decide`; the next decision tells of what is wrong
            return dict(states)
        return {
            name: replace(state, policy_state=merged[name]) if name in merged else state
            for name, state in states.items()
        }

    def adopt(self, schedule: Schedule) -> GuardState:
        """The state of a replica that follows a schedule already: a controller has restarted."""
        return GuardState(schedule=self._fit(schedule, slo.NO_CAP).schedule)

    def allows(self, plan: Plan) -> bool:
        """Whether the rules let this plan be used, by a policy or by a pin."""
        return plan == SAFE_PLAN or plan in self.rules.allowed

    def _pinned(self, pin: Pin) -> Schedule:
        return Schedule.pinned(self._allowed(pin.plan), ttl_s=self.rules.ttl_s)

    def _unknown(self, signals: Signals) -> Reason | None:
        limit = self.rules.stale_after_s
        for name in self.needs:
            reading = getattr(signals, name)
            if reading.within(limit) is None:
                is_old = reading.age_s is not None and reading.age_s > limit
                return Reason.HOLD_STALE if is_old else Reason.HOLD_MISSING
        return None

    def _without_signals(
        self, signals: Signals, state: GuardState, now: float, reason: Reason
    ) -> tuple[Decision, GuardState]:
        held_s = now - (now if state.known_at is None else state.known_at)
        if held_s > self.rules.hold_s:
            return self._override(signals, state, now, self._safe, Reason.SAFE_STALE)
        assert state.schedule is not None
        detail = f"no signals for {held_s:.0f} s; the safe plan after {self.rules.hold_s:g} s"
        decision = Decision(state.schedule, reason, detail)
        return self._settle(signals, state, now, decision, state.schedule, reason)

    def _override(
        self, signals: Signals, state: GuardState, now: float, schedule: Schedule, reason: Reason
    ) -> tuple[Decision, GuardState]:
        state.override, state.pending = reason, None
        return self._settle(signals, state, now, Decision(schedule, reason), schedule, reason)

    def _ask(
        self, signals: Signals, state: GuardState, now: float, ended: Reason
    ) -> tuple[Decision, GuardState]:
        try:
            decision, state.policy_state = self.policy.decide(signals, state.policy_state, now)
        except Exception as error:  # somebody else's policy must not stop the control loop
            return self._after_error(signals, state, now, ended, error)
        limit = self.rules.stale_after_s
        state.cap, missed = slo.move(state.cap, signals, state.plan, self._targets, limit, now)
        fitted = self._fit(decision.schedule, state.cap.block_length)
        reason = self._reason(decision.reason, fitted, state, ended, missed, now)
        schedule = fitted.schedule
        if reason is Reason.HOLD_DWELL and state.schedule is not None:
            schedule = state.schedule
            state.pending = state.pending if decision.reason.is_hold else decision.reason
        else:
            state.override = state.pending = None
        return self._settle(signals, state, now, decision, schedule, reason)

    def _after_error(
        self, signals: Signals, state: GuardState, now: float, ended: Reason, error: Exception
    ) -> tuple[Decision, GuardState]:
        schedule, reason = state.schedule, Reason.HOLD_ERROR
        if schedule is None or not _is_holding(state):
            reason = Reason.INITIAL if schedule is None else ended
            schedule, state.override = self._safe, None
        decision = Decision(schedule, reason, f"the policy raised {type(error).__name__}: {error}")
        return self._settle(signals, state, now, decision, schedule, reason)

    def _reason(
        self,
        named: Reason,
        fitted: _Fitted,
        state: GuardState,
        ended: Reason,
        missed: Reason | None,
        now: float,
    ) -> Reason:
        """The policy's own reason, unless the guard is what changed, or kept, the schedule."""
        if state.override is not None:
            return ended if state.override is Reason.PINNED else Reason.SIGNALS_BACK
        if fitted.schedule is state.schedule or fitted.schedule == state.schedule:
            return named
        if missed is not None:
            return missed
        if state.schedule is not None and now - state.changed_at < self.rules.dwell_s:
            return Reason.HOLD_DWELL
        if fitted.quality_cut:
            return Reason.QUALITY
        if named.is_hold:
            return state.pending or (Reason.POLICY if state.schedule else Reason.INITIAL)
        return named

    def _fit(self, wanted: Schedule, cap: int) -> _Fitted:
        """The wanted schedule within the allowed plans and the SLO cap."""
        key = (id(wanted), cap)
        known = self._fitted.get(key)
        if known is not None and known.wanted is wanted:
            return known
        allowed = wanted.map_plans(self._allowed)
        capped = allowed
        if cap != slo.NO_CAP:
            capped = allowed.map_plans(lambda plan: self._capped(plan, cap))
        fitted = replace(capped, ttl_s=self.rules.ttl_s, epoch=0, version=0)
        if len(self._fitted) >= MAX_FITTED:
            self._fitted.clear()
        self._fitted[key] = _Fitted(wanted, fitted, allowed is not wanted)
        return self._fitted[key]

    def _allowed(self, plan: Plan) -> Plan:
        if self.allows(plan):
            return plan
        # Self-speculation runs the same forwards as diffusion of equal block length, and is exact.
        return self._first_allowed(
            Plan(Mode.SELF_SPECULATION, length)
            for length in reversed(BLOCK_LENGTHS)
            if length <= plan.block_length
        )

    def _capped(self, plan: Plan, cap: int) -> Plan:
        if plan.block_length <= cap:
            return plan
        return self._first_allowed(
            Plan(plan.mode, length, plan.threshold)
            for length in reversed(BLOCK_LENGTHS)
            if length <= cap
        )

    def _first_allowed(self, plans: Iterable[Plan]) -> Plan:
        return next((plan for plan in plans if self.allows(plan)), SAFE_PLAN)

    def _settle(
        self,
        signals: Signals,
        state: GuardState,
        now: float,
        decision: Decision,
        schedule: Schedule,
        reason: Reason,
    ) -> tuple[Decision, GuardState]:
        """The decision completed, and the state that remembers it."""
        if schedule is not state.schedule and schedule != state.schedule:
            state.schedule, state.changed_at = schedule, now
        decoding = signals.decoding.value
        if decoding is not None:
            state.plan = schedule.plan_at(decoding)
        elif state.plan not in schedule.plans:
            state.plan = schedule.bands[0].plan
        detail, predicted = decision.detail, decision.predicted
        settled = Decision(
            schedule, reason, detail, predicted, state.plan, signals.replica, self.name, now
        )
        return settled, state


def _is_holding(state: GuardState) -> bool:
    """Whether there is a last schedule to hold; a pin that has ended leaves none."""
    return state.schedule is not None and state.override is not Reason.PINNED
