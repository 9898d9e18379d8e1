"""The governor's rule where plans have a worth: take the best one, seldom change, keep learning.

Pure, and called at every step: a load seen since the last revision of the estimates costs one
look-up. Four parts, each of which can be read on its own:

    choose     the best plan, once it has been better for long enough to pay for the change
    probe      one step of another plan, now and then, so that the estimates do not go blind: in AR
               nothing else tells what self-speculation would yield
    observe    what a step took and yielded
    distrust   while requests queue and steps yield far less than predicted, or than AR would, AR,
               whatever dwell and estimates say: speculation that does not pay makes queues grow
               without end
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from policies.cost_model import CostModel, StepObservation, Values
from policies.vocabulary import AR, Mode, Plan
from policies.worth import Worth

LEAVING_AR = 1.5
"""Times the hysteresis to leave AR: right after it the batch holds more easy requests than it will
in steady self-speculation, where the hard ones stay longer, so what a probe promises is too much
(reference: residence bias, docs/decisions/0003)."""
DWELL_STEPS, DWELL_SWITCHES = 10, 20
"""The dwell in steps, of the plan that is left or of the next one, whichever are shorter, and in
costs of a change. Steps of a long block in a large batch take half a second: ten of the worse plan
would cost more than any number of changes."""
AFTER_CHANGE, CALM_S = 1.0, 5.0
"""More times the hysteresis right after a change, fading: a load that swings between two plans of
near worth changes seldom, a large gain is taken at once."""
RENT = 4.0  # costs of a change that must have been lost by staying
NEGLIGIBLE = 0.3  # of the hysteresis: plans that lie nearer together are worth the same
STEADY_LOSS_S = 0.1
"""Time lost against one plan, what is negligible not counted, after which it is taken however small
the gain: hysteresis protects against gains that come and go, not against one that stays."""
LONGEST_GAP_S = 1.0  # of the time between two picks counts: an engine may have been idle
PROBE_GAP_S = 0.05  # between two looks for something to probe
PROBE_FLOOR = 0.25  # share of a probe's time that it costs at least, unless it is urgent
PROBE_SAVINGS_S = 0.1  # probing time that can be saved up
PROBE_RESERVE_S = 0.05  # of it kept for urgent ones
ACCEPTANCE_AGE_S = 1.0  # without a draft for so long, acceptance is to be probed
CHANGED_AGE_S = 0.1  # the same once the traffic seems to have changed
OTHER_LOAD = 2.0  # times the sequences, or fewer, that there were: likely other traffic, too
PAID_ROUNDS, PROBED_ROUNDS = 2, 8
"""Rounds of a probe of acceptance that are paid for, and rounds until which it goes on while it
costs next to nothing: one round says little, and in a batch of one a step is one round."""
SPLIT_ROWS = 4  # that probe acceptance, of more than `PROBED_ROUNDS`
GOES_ON = 0.8  # of the yield at which probing costs nothing
ACCEPTANCE_LENGTH = 8  # block length for that, where it is allowed: long enough to tell much
UNPROVEN = 1.0  # how much more a plan may be worth that was never timed at this load
AGEING_PER_S = 0.002  # by which a timing is doubted more as it gets old
MOST_AGEING = 0.3
MOST_DOUBT = 1.0 + UNPROVEN + MOST_AGEING
DISTRUST_BELOW = 0.7  # of the predicted throughput
DISTRUST_BELOW_AR = 0.9  # of AR's: estimates may have followed the collapse and still be waiting
DISTRUST_STEPS = 16
DISTRUST_S = 5.0
SWITCH_WEIGHT = 0.1  # of a new measurement of what a change costs
MOST_SWITCH_S = 1.0  # longer than this is a stall, not the price of a change


class Probe(NamedTuple):
    """A step of another plan. `rows` sequences run it and the others the plan in use; None: all."""

    plan: Plan
    rows: int | None = None


class _Wanted(NamedTuple):
    """A probe, to be paid for `steps`; urgent where nothing is known without it."""

    probe: Probe
    is_urgent: bool
    steps: int = 1
    is_sample: bool = False


@dataclass(slots=True)
class _Sample:
    """A probe of acceptance under way: what it has yielded, and what it must for nothing lost."""

    probe: Probe
    break_even: float
    rounds: int = 0
    tokens: int = 0

    def is_open(self) -> bool:
        least = GOES_ON * self.break_even * self.rounds
        return self.rounds < PAID_ROUNDS or (self.rounds < PROBED_ROUNDS and self.tokens >= least)


@dataclass(slots=True)
class WorthRule:
    """State of one replica's rule. `probes` counts them by plan."""

    model: CostModel
    probes: dict[Plan, int] = field(default_factory=dict)
    predicted: Mapping[Plan, float] = field(default_factory=dict)
    """Tokens/s by plan at the load of the last pick."""
    switch_s: float = 0.0
    """What a change of plan costs, as measured."""
    distrusts: int = 0
    _excess_s: float = field(init=False)
    _lost_s: float = 0.0
    """Time lost against whatever was best, since a change last gained next to nothing."""
    _behind_s: dict[Plan, float] = field(default_factory=dict)
    """Time lost against plans, on balance, where it is above 0."""
    _is_new: bool = False
    _picked_at: float = -math.inf
    _savings_s: float = PROBE_SAVINGS_S
    _considered_at: float = -math.inf
    _drafted_at: float = -math.inf
    _disappointing: int = 0
    _distrusted_until: float = -math.inf
    _is_queueing: bool = False
    _has_changed: bool = False
    _is_probing: bool = False
    _sample: _Sample | None = None
    _decoding: int = 0
    _drafted_of: int = 0
    """Sequences that were decoding when last some drafted."""
    _changed_at: float = -math.inf

    def __post_init__(self) -> None:
        self._excess_s = self.switch_s

    @classmethod
    def of(cls, worth: Worth, now: float) -> WorthRule:
        return cls(CostModel(worth, now), switch_s=worth.profile.switch_s)

    @property
    def worth(self) -> Worth:
        return self.model.worth

    def is_distrusting(self, now: float) -> bool:
        return now < self._distrusted_until

    def choose(self, current: Plan, values: Values, waiting: int, now: float) -> Plan:
        """The plan to be in, dwell not considered; `current` unless a change pays."""
        picked_at = now if self._picked_at == -math.inf else self._picked_at
        since_s = min(LONGEST_GAP_S, max(0.0, now - picked_at))
        self._picked_at, self._is_queueing = now, waiting > 0
        self.predicted = values.by_plan
        self._savings_s = min(PROBE_SAVINGS_S, self._savings_s + self.worth.probe_share * since_s)
        if self.is_distrusting(now):
            return AR
        is_new, self._is_new = self._is_new, False
        if is_new or current not in values.within_limit:
            return values.best
        return self._if_it_pays(current, values, since_s)

    def _if_it_pays(self, current: Plan, values: Values, since_s: float) -> Plan:
        """A large gain at once, a small one when it has stayed."""
        best, now_worth = values.best, values.by_plan[current]
        hysteresis = self.worth.hysteresis * (LEAVING_AR if current == AR else 1.0)
        negligible = NEGLIGIBLE * hysteresis
        gain = values.by_plan[best] / now_worth - 1.0
        if self._behind_s or gain > negligible:
            self._count_losses(values, now_worth, negligible, since_s)
        if gain <= negligible:
            self._lost_s = 0.0
            return current
        # Rent until the rent has paid for the purchase, several times over: what is lost by
        # staying is small, and a load that swings would have the plan follow every swing.
        self._lost_s += gain * since_s
        paid_s = RENT * self.switch_s
        calm = math.exp((self._changed_at - self._picked_at) / CALM_S)
        if gain > hysteresis * (1.0 + AFTER_CHANGE * calm) and self._lost_s >= paid_s:
            return best
        rival = max(self._behind_s, key=self._behind_s.__getitem__, default=current)
        is_better = values.by_plan[rival] > now_worth
        is_due = is_better and self._behind_s[rival] >= max(STEADY_LOSS_S, paid_s)
        return rival if is_due else current

    def changed(self) -> None:
        """The governor has changed the plan."""
        self._lost_s, self._has_changed, self._changed_at = 0.0, True, self._picked_at
        self._sample = None
        self._behind_s.clear()

    def begin(self) -> None:
        """The plan in use was not its choice, so nothing speaks for staying with it."""
        self._is_new = True

    def _count_losses(
        self, values: Values, current: float, negligible: float, since_s: float
    ) -> None:
        before, least = self._behind_s, 1.0 + negligible
        lost_s = {
            plan: before.get(plan, 0.0) + (values.by_plan[plan] / current - least) * since_s
            for plan in values.within_limit
        }
        self._behind_s = {plan: seconds for plan, seconds in lost_s.items() if seconds > 0.0}

    def dwell_s(self, current: Plan, target: Plan, decoding: int, context_tokens: int) -> float:
        """Shortest stay in a plan: some steps, and long against what a change costs."""
        step_s = min(
            self.model.step_s(plan, max(1, decoding), context_tokens) for plan in (current, target)
        )
        return max(DWELL_STEPS * step_s, DWELL_SWITCHES * self.switch_s)

    def probe(
        self,
        current: Plan,
        values: Values,
        decoding: int,
        context_tokens: int,
        now: float,
        *,
        splits: bool = False,
    ) -> Probe | None:
        """Another plan for this one step, or None. `splits`: the engine runs two plans in one step,
        so that some sequences may probe and the others go on."""
        was_probing, self._is_probing, self._decoding = self._is_probing, False, decoding
        if decoding >= 1 and self._sample is not None:
            if self._sample.is_open():
                return self._go_on(self._sample.probe)
            self._sample = None
        if decoding < 1 or was_probing or now - self._considered_at < PROBE_GAP_S:
            return None
        self._considered_at = now
        if not self.worth.probe_share or self._disappointing or self.is_distrusting(now):
            return None
        wanted = self._probe_wanted(current, values, decoding, now, splits)
        if wanted is None or not self._pay(wanted, current, values, decoding, context_tokens):
            return None
        if wanted.is_sample:
            plan = wanted.probe.plan
            relative = values.by_plan.get(current, 0.0) / values.by_plan[plan]
            self._sample = _Sample(wanted.probe, relative * self.model.tokens(plan))
        return self._go_on(wanted.probe)

    def observe(self, step: StepObservation, current: Plan, now: float) -> None:
        """A step has run; `current` is the plan the governor is in."""
        if step.plan.mode is Mode.SELF_SPECULATION and step.sequences:
            self._drafted_at, self._drafted_of = now, self._decoding
            if self._sample is not None and self._is_probing:
                self._sample.rounds += step.rows
                self._sample.tokens += step.tokens
        is_usual = not self._has_changed  # what a change costs is not what the plan costs
        if step.plan == current and step.sequences > 0:
            self._judge(step, now)
        self.model.observe(step, now, is_timed=is_usual)

    # -- probing --------------------------------------------------------------------------------

    def _go_on(self, probe: Probe) -> Probe:
        self.probes[probe.plan] = self.probes.get(probe.plan, 0) + 1
        self._is_probing = True
        return probe

    def _probe_wanted(
        self, current: Plan, values: Values, decoding: int, now: float, splits: bool
    ) -> _Wanted | None:
        """What is least known and may matter: acceptance, where nothing drafts, or step times."""
        is_other = max(decoding, self._drafted_of) >= OTHER_LOAD * min(decoding, self._drafted_of)
        age_s = CHANGED_AGE_S if is_other or self.model.is_unsettled else ACCEPTANCE_AGE_S
        if current.mode is not Mode.SELF_SPECULATION and now - self._drafted_at > age_s:
            plan = self._acceptance_plan(values)
            rows = SPLIT_ROWS if splits and decoding > PROBED_ROUNDS else None
            steps = math.ceil(PAID_ROUNDS / decoding)
            return None if plan is None else _Wanted(Probe(plan, rows), True, steps, is_sample=True)
        best = values.by_plan[values.best]
        doubtful = [
            (value * self._doubt(plan, decoding, now), plan)
            for plan, value in values.by_plan.items()
            if plan != current and MOST_DOUBT * value > best
        ]
        promise, plan = max(doubtful, default=(0.0, current), key=lambda pair: pair[0])
        if promise <= best:
            return None
        samples, _ = self.model.timed(plan, decoding)
        return _Wanted(Probe(plan), samples == 0)

    def _pay(
        self,
        wanted: _Wanted,
        current: Plan,
        values: Values,
        decoding: int,
        context_tokens: int,
    ) -> bool:
        """Takes what a probe costs out of the savings, if they allow it."""
        plan, rows = wanted.probe
        if rows is None:
            cost_s = self._probe_cost_s(plan, current, values, decoding, context_tokens)
        else:
            step_s = self.model.step_s(plan, rows, context_tokens * rows / decoding)
            gained = rows * (self.model.tokens(plan) - 1.0)
            cost_s = step_s - gained / values.by_plan.get(current, math.inf)
        cost_s *= wanted.steps
        if not wanted.is_urgent:  # what it seems to gain is only a prediction
            step_s = self.model.step_s(plan, decoding, context_tokens)
            cost_s = max(cost_s, PROBE_FLOOR * step_s)
        # Urgent ones may draw on what others leave. On a slow machine a probe may cost more than
        # can be saved up: it is paid off afterwards.
        reserve_s = 0.0 if wanted.is_urgent else PROBE_RESERVE_S
        if min(cost_s, PROBE_SAVINGS_S - reserve_s) > self._savings_s - reserve_s:
            return False
        self._savings_s -= max(0.0, cost_s)
        return True

    def _acceptance_plan(self, values: Values) -> Plan | None:
        drafting = [p for p in values.by_plan if p.mode is Mode.SELF_SPECULATION]
        long_enough = [p for p in drafting if p.block_length >= ACCEPTANCE_LENGTH]
        if long_enough:
            return min(long_enough, key=lambda plan: plan.block_length)
        return max(drafting, default=None, key=lambda plan: plan.block_length)

    def _doubt(self, plan: Plan, decoding: int, now: float) -> float:
        """Factor by which a plan may be worth more than predicted."""
        samples, last_at = self.model.timed(plan, decoding)
        ageing = min(MOST_AGEING, AGEING_PER_S * (now - last_at))
        return 1.0 + UNPROVEN / (1.0 + 4.0 * samples) + ageing

    def _probe_cost_s(
        self, plan: Plan, current: Plan, values: Values, decoding: int, context_tokens: int
    ) -> float:
        """Time that a probe wastes: what it takes, less what the current plan would have taken for
        the same tokens. Diffusion is in for a whole block."""
        step_s = self.model.step_s(plan, decoding, context_tokens)
        if plan.mode is Mode.DIFFUSION:
            step_s *= plan.block_length / self.model.tokens(plan)
        return step_s * (1.0 - values.by_plan[plan] / values.by_plan.get(current, math.inf))

    # -- observing ------------------------------------------------------------------------------

    def _judge(self, step: StepObservation, now: float) -> None:
        """Against what was expected, if it follows a change or requests queue."""
        if not self._has_changed and not self._is_queueing:
            self._disappointing = 0
            return
        expected_s = self.model.step_s(step.plan, step.sequences, step.context_tokens)
        is_timed = step.is_alone and 0.0 < step.seconds < math.inf
        seconds = self.model.decoding_s(step) if is_timed else step.steps * expected_s
        if is_timed:
            self._observe_change(seconds - step.steps * expected_s)
        self._observe_yield(step, seconds, expected_s, now)

    def _observe_change(self, excess_s: float) -> None:
        if self._has_changed:
            self._has_changed = False
            # Steps that happened to be short count as well, or noise alone would be a price.
            cost_s = max(-MOST_SWITCH_S, min(MOST_SWITCH_S, excess_s))
            self._excess_s += SWITCH_WEIGHT * (cost_s - self._excess_s)
            self.switch_s = max(0.0, self._excess_s)

    def _observe_yield(
        self, step: StepObservation, seconds: float, expected_s: float, now: float
    ) -> None:
        predicted = step.sequences * self.model.tokens(step.plan) / expected_s
        least = max(DISTRUST_BELOW * predicted, DISTRUST_BELOW_AR * self.predicted.get(AR, 0.0))
        if step.plan == AR or not self._is_queueing or step.tokens >= least * seconds:
            self._disappointing = 0
            return
        self._disappointing += step.steps
        if self._disappointing >= DISTRUST_STEPS:
            self._disappointing, self._distrusted_until = 0, now + DISTRUST_S
            self.distrusts += 1
