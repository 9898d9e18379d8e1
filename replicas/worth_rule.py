"""The governor's rule where plans have a worth: take the best one, seldom change, keep learning.

Pure, and called at every step: a load seen since the last revision of the estimates costs one
look-up. Four parts, each of which can be read on its own:

    choose     the best plan, once it has been better for long enough to pay for the change
    probe      a step of another plan, now and then, so that the estimates do not go blind
               (`probing.py`)
    observe    what a step took and yielded
    distrust   while requests queue and steps yield far less than predicted, or than AR would, AR,
               whatever dwell and estimates say: speculation that does not pay makes queues grow
               without end
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.cost_model import CostModel, Values
from policies.observation import StepObservation
from policies.vocabulary import AR, Plan
from policies.worth import Worth
from replicas.probing import LONGEST_GAP_S, Moment, Probe, Prober

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
DISTRUST_BELOW = 0.7  # of the predicted throughput
DISTRUST_BELOW_AR = 0.9  # of AR's: estimates may have followed the collapse and still be waiting
DISTRUST_STEPS = 16
DISTRUST_S = 5.0
CHANGES, OUTER = 16, 4
"""What a change costs is the mean over so many changes, without so many of the cheapest and of the
dearest: the load has often changed as well, and a first step that waited for a neighbour, or for
requests to be taken in, is no price of the plan's."""


@dataclass(slots=True)
class WorthRule:
    """State of one replica's rule."""

    model: CostModel
    prober: Prober = field(init=False)
    predicted: Mapping[Plan, float] = field(default_factory=dict)
    """Tokens/s by plan at the load of the last pick."""
    switch_s: float = 0.0
    """What a change of plan costs, as measured."""
    distrusts: int = 0
    _costs_s: deque[float] = field(init=False)
    """Of the last changes: how much longer than usual the first step took."""
    _lost_s: float = 0.0
    """Time lost against whatever was best, since a change last gained next to nothing."""
    _behind_s: dict[Plan, float] = field(default_factory=dict)
    """Time lost against plans, on balance, where it is above 0."""
    _is_new: bool = False
    _picked_at: float = -math.inf
    _disappointing: int = 0
    _distrusted_until: float = -math.inf
    _is_queueing: bool = False
    _has_changed: bool = False
    _changed_at: float = -math.inf

    def __post_init__(self) -> None:
        self.prober = Prober(self.model)
        self._costs_s = deque([self.switch_s] * CHANGES, CHANGES)

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
        if self.is_distrusting(now):
            return AR
        is_new, self._is_new = self._is_new, False
        if is_new or current not in values.within_limit:
            return values.best
        return self._if_it_pays(current, values, since_s)

    def _if_it_pays(self, current: Plan, values: Values, since_s: float) -> Plan:
        """A large gain at once, a small one when it has stayed."""
        best, now_worth = values.best, values.by_plan[current]
        hysteresis = self.worth.hysteresis
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
        self.prober.stop()
        self._behind_s.clear()

    def begin(self) -> None:
        """The plan in use was not its choice, so nothing speaks for staying with it."""
        self._is_new = True
        self.prober.stop()

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

    def probe(self, moment: Moment, now: float) -> Probe | None:
        """Another plan for this one step, or None."""
        is_calm = not self._disappointing and not self.is_distrusting(now)
        return self.prober.next(moment, now, is_calm=is_calm)

    def observe(self, step: StepObservation, current: Plan, now: float) -> None:
        """A step has run; `current` is the plan the governor is in."""
        self.prober.observe(step, now)
        is_usual = not self._has_changed  # what a change costs is not what the plan costs
        if step.plan == current and step.sequences > 0:
            self._judge(step, now)
        self.model.observe(step, now, is_timed=is_usual)

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
            self._costs_s.append(excess_s)
            usual = sorted(self._costs_s)[OUTER:-OUTER]
            self.switch_s = max(0.0, sum(usual) / len(usual))

    def _observe_yield(
        self, step: StepObservation, seconds: float, expected_s: float, now: float
    ) -> None:
        # Of those that decode: that they are hard is no reason to distrust a plan that pays.
        tokens = self.model.learned.present.tokens(step.plan)
        predicted = step.sequences * tokens / expected_s
        in_ar = self.model.throughput(AR, step.sequences, step.context_tokens)
        least = max(DISTRUST_BELOW * predicted, DISTRUST_BELOW_AR * in_ar)
        if step.plan == AR or not self._is_queueing or step.tokens >= least * seconds:
            self._disappointing = 0
            return
        self._disappointing += step.steps
        if self._disappointing >= DISTRUST_STEPS:
            self._disappointing, self._distrusted_until = 0, now + DISTRUST_S
            self.distrusts += 1
