"""The default policy: the plan with the highest predicted throughput, on any machine and traffic.

A plan is worth its expected tokens over its step time (`cost_model.py`). Two levels: this policy
turns a replica's profile and what its metrics say into a `Worth`, and the replica's governor
multiplies it out for its own batch at every step, corrected by what it sees itself. So a schedule
changes only when an estimate has moved, not when the load has; what replicas learn is pooled, and
a new one starts from what the fleet knows. With `local=False` the choice is made here, once a tick:
slower by a scrape and a tick, for comparison and for engines that cannot follow a worth.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from policies.acceptance import Acceptance, pooled
from policies.cost_model import CostModel, Values
from policies.decisions import Decision, Reason, Signals
from policies.step_time import Profile
from policies.threshold import DEFAULT_BANDS
from policies.vocabulary import AR, Band, Mode, Plan, Schedule, all_plans
from policies.worth import Worth

REVISE_S = 15.0  # between two revisions of a replica's estimates; its governor has fresher ones
MATERIAL = 0.03  # share by which a yield or a step time must have moved for a new schedule
CONTEXT_MOVED = 0.5  # share by which the context length must have moved for new bands
SAMPLED_ROUNDS = 40.0  # what acceptance read from metrics counts for
BELIEF = 0.5  # of a new measurement of a plan's step time
TPOT_SHARE = 0.6
"""Share of the TPOT target that decoding may use: prefill and queueing take from the rest."""
USUAL_CONTEXT = 512.0  # tokens per sequence, where nothing is known
EXPLORE_S, EXPLORE_LENGTH = 60.0, 8
"""Deciding here, a replica in AR is given one tick of self-speculation after so long: nothing else
tells what it would yield."""


@dataclass(frozen=True, slots=True)
class State:
    """What is known of one replica. A value; `model` only remembers what it has multiplied out."""

    profile: Profile
    model: CostModel
    schedule: Schedule
    acceptance: Acceptance
    corrections: Mapping[Plan, float] = field(default_factory=dict)
    fleet: tuple[float, ...] | None = None
    """Chances of acceptance over all replicas."""
    context_length: float = USUAL_CONTEXT
    plan: Plan = AR
    decoding: float = 0.0
    revised_at: float = 0.0
    drafted_at: float = 0.0


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
        if dwell_s < 0:
            raise ValueError(f"dwell_s {dwell_s} must not be negative")
        self.local, self.learns, self.dwell_s = local, learns, dwell_s
        self.hysteresis, self.probe_share = hysteresis, probe_share
        self.tpot_limit_s = None if tpot_target_s is None else TPOT_SHARE * tpot_target_s
        self._without_profile = Schedule(DEFAULT_BANDS, hysteresis=1, dwell_s=dwell_s)

    def decide(
        self, signals: Signals, state: State | None, now: float
    ) -> tuple[Decision, State | None]:
        profile = signals.profile
        if profile is None:
            schedule = self._without_profile if state is None else state.schedule
            return Decision(schedule, Reason.HOLD_MISSING, "no step-time profile yet"), state
        if state is None or (state.profile is not profile and state.profile != profile):
            return self._begin(signals, profile, state, now)
        if not self.local or _is_due(signals.replica, state.revised_at, now):
            revised = self._revised(signals, state, now)
            decision, after = self._at_load(signals, revised, now)
            if self.local and revised.schedule is not state.schedule and decision.reason.is_hold:
                decision = replace(decision, reason=Reason.REVISED)
            return decision, after
        return self._at_load(signals, state, now)

    def merge(self, states: Mapping[str, State], now: float) -> Mapping[str, State]:
        """What every replica knows, given to all that run the same model on the same machine."""
        groups: dict[int, list[str]] = {}
        for name, state in states.items():
            groups.setdefault(hash(state.profile.fingerprint), []).append(name)
        merged = dict(states)
        for names in groups.values():
            chances = pooled([states[name].acceptance for name in names])
            for name in names:
                merged[name] = replace(states[name], fleet=chances)
        return merged

    # -- one replica ----------------------------------------------------------------------------

    def _begin(
        self, signals: Signals, profile: Profile, before: State | None, now: float
    ) -> tuple[Decision, State]:
        fleet = None if before is None else before.fleet
        acceptance = Acceptance() if fleet is None else Acceptance(fleet)
        context_length = _context_length(signals, USUAL_CONTEXT)
        worth = self._worth(profile, acceptance, {})
        model = CostModel(worth, now)
        decoding = signals.decoding.value or 0.0
        values = model.values(round(decoding), decoding * context_length)
        plan = values.best
        schedule = self._schedule(model, context_length, plan)
        state = State(
            profile=profile,
            model=model,
            schedule=schedule,
            acceptance=acceptance,
            fleet=fleet,
            context_length=context_length,
            plan=schedule.plan_at(decoding),
            decoding=decoding,
            revised_at=now,
            drafted_at=now,
        )
        reason = Reason.INITIAL if before is None else Reason.REVISED
        return Decision(schedule, reason, f"profile {profile.name}", values.by_plan), state

    def _revised(self, signals: Signals, state: State, now: float) -> State:
        """Estimates brought up to date; a new worth only where one has moved."""
        elapsed_s = max(0.0, now - state.revised_at)
        acceptance = state.acceptance
        if state.fleet is not None:
            acceptance = acceptance.with_prior(state.fleet)
        corrections = dict(state.corrections)
        if self.learns:
            acceptance = _learned_acceptance(signals, acceptance, elapsed_s)
            corrections |= _learned_corrections(signals, state)
        context_length = _context_length(signals, state.context_length)
        drafted = any(p.mode is Mode.SELF_SPECULATION for p in signals.plans)
        state = replace(
            state,
            acceptance=acceptance,
            corrections=corrections,
            revised_at=now,
            drafted_at=now if drafted else state.drafted_at,
        )
        has_moved = _has_moved(state.model, acceptance, corrections)
        if not has_moved and not _differs(context_length, state.context_length, CONTEXT_MOVED):
            return state
        model = state.model
        if has_moved:
            model = CostModel(self._worth(state.profile, acceptance, corrections), now)
        schedule = self._schedule(model, context_length, state.plan)
        return replace(state, model=model, schedule=schedule, context_length=context_length)

    def _at_load(self, signals: Signals, state: State, now: float) -> tuple[Decision, State]:
        """The decision at the load last known."""
        decoding = signals.decoding.value
        if decoding is None:
            return Decision(state.schedule, Reason.HOLD_MISSING), state
        length = _context_length(signals, state.context_length)
        values = state.model.values(round(decoding), max(1.0, decoding) * length)
        if not self.local:
            return self._chosen_here(values, decoding, state, now)
        plan = state.schedule.plan_at(decoding)
        reason = _reason(plan, decoding, state)
        detail = f"{decoding:g} decoding, {length:.0f} tokens each"
        decision = Decision(state.schedule, reason, detail, values.by_plan if decoding else {})
        if plan == state.plan and decoding == state.decoding:
            return decision, state
        return decision, replace(state, plan=plan, decoding=decoding)

    def _chosen_here(
        self, values: Values, decoding: float, state: State, now: float
    ) -> tuple[Decision, State]:
        plan, reason = state.plan, Reason.HOLD_STEADY
        gain = values.by_plan[values.best] / values.by_plan.get(plan, 1e-9) - 1.0
        if decoding and gain > self.hysteresis:
            plan, reason = values.best, Reason.PREDICTED_GAIN
        elif gain > 0.0:
            reason = Reason.HOLD_HYSTERESIS
        elif not decoding:
            reason = Reason.HOLD_IDLE
        drafted_at = now if plan.mode is Mode.SELF_SPECULATION else state.drafted_at
        state = replace(state, plan=plan, decoding=decoding, drafted_at=drafted_at)
        if decoding and now - drafted_at > EXPLORE_S:
            explored = Plan(Mode.SELF_SPECULATION, EXPLORE_LENGTH)
            state = replace(state, drafted_at=now)
            return Decision(self._pinned(explored), Reason.PROBE, "", values.by_plan), state
        return Decision(self._pinned(plan), reason, f"{gain:+.0%}", values.by_plan), state

    # -- schedules ------------------------------------------------------------------------------

    def _worth(
        self, profile: Profile, acceptance: Acceptance, corrections: Mapping[Plan, float]
    ) -> Worth:
        return Worth(
            plans=all_plans(),
            profile=profile,
            chances=tuple(acceptance.chances()),
            diffusion=acceptance.diffusion,
            corrections=corrections,
            tpot_limit_s=self.tpot_limit_s,
            hysteresis=self.hysteresis,
            probe_share=self.probe_share,
            learns=self.learns,
        )

    def _schedule(self, model: CostModel, context_length: float, plan: Plan) -> Schedule:
        if not self.local:
            return self._pinned(plan)
        return Schedule(bands(model, context_length), dwell_s=self.dwell_s, worth=model.worth)

    def _pinned(self, plan: Plan) -> Schedule:
        return _pinned(plan, self.dwell_s)


def bands(model: CostModel, context_length: float) -> tuple[Band, ...]:
    """The best plan by number of sequences, at one context length: the worth as people read it."""
    found: list[Band] = []
    for sequences in _grid(model.worth.profile.max_sequences):
        plan = model.values(sequences, sequences * context_length).best
        if found and found[-1].plan == plan:
            found.pop()
        found.append(Band(sequences, plan))
    return (*found[:-1], Band(None, found[-1].plan))


_PINNED: dict[tuple[Plan, float], Schedule] = {}


def _pinned(plan: Plan, dwell_s: float) -> Schedule:
    """One object per plan, so that who asks again sees that nothing has changed."""
    return _PINNED.setdefault((plan, dwell_s), Schedule.pinned(plan, dwell_s=dwell_s))


def _grid(max_sequences: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 ... up to the limit."""
    grid, step = [1, 2, 3], 4
    while step <= max_sequences:
        grid += [step, step * 3 // 2]
        step *= 2
    return [n for n in grid if n <= max_sequences] or [1]


def _is_due(replica: str, revised_at: float, now: float) -> bool:
    """Whether a revision's time has come; a fleet's revisions are spread over the period."""
    phase = zlib.crc32(replica.encode()) / 2**32 * REVISE_S
    return (now + phase) // REVISE_S > (revised_at + phase) // REVISE_S


def _reason(plan: Plan, decoding: float, state: State) -> Reason:
    if plan == state.plan:
        return Reason.HOLD_STEADY if decoding else Reason.HOLD_IDLE
    if decoding == state.decoding:
        return Reason.PREDICTED_GAIN
    return Reason.LOAD_ROSE if decoding > state.decoding else Reason.LOAD_FELL


def _context_length(signals: Signals, fallback: float) -> float:
    decoding, tokens = signals.decoding.value, signals.context_tokens.value
    return tokens / decoding if decoding and tokens else fallback


def _learned_acceptance(signals: Signals, acceptance: Acceptance, elapsed_s: float) -> Acceptance:
    acceptance = acceptance.after({}, elapsed_s)
    for plan, used in signals.plans.items():
        per_forward = used.tokens_per_forward.value
        if plan.mode is Mode.SELF_SPECULATION and used.acceptance and per_forward is not None:
            shares = _kept(used.acceptance, 2.0 * per_forward)
            acceptance = acceptance.after_shares(shares, SAMPLED_ROUNDS)
        elif plan.mode is Mode.DIFFUSION and per_forward is not None:
            drafts = max(0.1, acceptance.yields().blocks[plan.block_length] - 1.0)
            ratio = (per_forward - 1.0) / drafts
            acceptance = acceptance.with_diffusion(plan.block_length, ratio)
    return acceptance


def _kept(shares: tuple[float, ...], tokens_per_round: float) -> list[float]:
    """Shares of accepted positions, without the tokens that lay behind the end of a sequence."""
    drafted = sum(shares)
    factor = min(1.0, max(0.0, tokens_per_round - 1.0) / drafted) if drafted > 0 else 1.0
    return [min(1.0, share * factor) for share in shares]


def _learned_corrections(signals: Signals, state: State) -> dict[Plan, float]:
    found: dict[Plan, float] = {}
    for plan, used in signals.plans.items():
        step_s, sequences = used.step_s.value, used.sequences.value
        if not step_s or not sequences or sequences < 1.0:
            continue
        length = _context_length(signals, state.context_length)
        ratio = step_s / state.profile.step_s(plan, sequences, sequences * length)
        before = state.corrections.get(plan, 1.0)
        found[plan] = min(8.0, max(0.125, before + BELIEF * (ratio - before)))
    return found


def _has_moved(model: CostModel, acceptance: Acceptance, corrections: Mapping[Plan, float]) -> bool:
    known, found = model.yields, acceptance.yields()
    return any(
        _differs(found.by_plan[p], known.by_plan[p], MATERIAL) for p in model.worth.plans
    ) or any(
        _differs(factor, model.worth.corrections.get(plan, 1.0), MATERIAL)
        for plan, factor in corrections.items()
    )


def _differs(value: float, other: float, share: float) -> bool:
    return abs(value - other) > share * other
