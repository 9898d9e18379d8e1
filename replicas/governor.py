"""The replica-local rule: schedule and own batch in, plan out. Pure; called at every step.

The controller is slow and sees the fleet; the governor is fast and sees one batch. A schedule gives
it bands on the number of decoding sequences, or what every plan is worth (`worth_rule.py`). It owns
no clock: time is an argument. Seconds may come from any monotonic source, as long as it is always
the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from policies.observation import Drafted, StepObservation
from policies.vocabulary import SAFE_PLAN, Plan, Schedule
from replicas.probing import Moment
from replicas.worth_rule import WorthRule

Change = tuple[Plan, Plan, "PickReason"]
"""Plan before, plan after, and why."""


class PickReason(StrEnum):
    """Why the governor uses the plan it uses."""

    BAND = "band"
    WORTH = "worth"
    HYSTERESIS = "hysteresis"
    DWELL = "dwell"
    DISTRUST = "distrust"
    """Requests queue and steps yield far less than predicted: AR for a while."""
    EXPIRED = "expired"


CHANGE_REASONS = tuple(reason for reason in PickReason if reason is not PickReason.DWELL)
"""Those that can change a plan."""


@dataclass(slots=True)
class Governor:
    """Picks the plan of the next step from a schedule and what is decoding.

    Invariant: the plan in use changes only in `pick`, by at most one change per call. A probe is
    steps of another plan and changes nothing.
    """

    schedule: Schedule
    received_at: float = 0.0
    plan: Plan = field(init=False)
    reason: PickReason = field(init=False, default=PickReason.BAND)
    switched: dict[Change, int] = field(init=False, default_factory=dict)
    """Changes so far."""
    switched_at: dict[Change, float] = field(init=False, default_factory=dict)
    """When each last happened, on the caller's clock."""
    probed_rows: int | None = field(init=False, default=None)
    """How many sequences are to run what was picked last, the others the plan in use; None: all."""
    _changed_at: float = field(init=False, default=float("-inf"))
    _rule: WorthRule | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.plan = self.schedule.bands[0].plan
        self._follow_worth(self.received_at)

    @property
    def switches(self) -> int:
        return sum(self.switched.values())

    @property
    def probes(self) -> Mapping[Plan, int]:
        """Steps taken in another plan to learn, by plan."""
        return {} if self._rule is None else dict(self._rule.prober.counts)

    @property
    def predicted(self) -> Mapping[Plan, float]:
        """Tokens/s of every plan at the load of the last pick; empty under bands and pins."""
        if self._rule is None or self.schedule.worth is None:
            return {}
        return self._rule.predicted

    @property
    def distrusts(self) -> int:
        """How often it fell back to AR because steps yielded far less than predicted."""
        return 0 if self._rule is None else self._rule.distrusts

    @property
    def rule(self) -> WorthRule | None:
        """What it has learned; None under a schedule of bands."""
        return self._rule

    def receive(self, schedule: Schedule, now: float) -> bool:
        """Takes a schedule unless it is older than the one in force; says whether it was taken.

        The same (epoch, version) again is a refresh: it restarts the time to live.
        """
        if schedule.order < self.schedule.order:
            return False
        self.received_at = now
        # A refresh must not set what was learned back.
        if schedule is not self.schedule and schedule != self.schedule:
            was_choosing, self.schedule = self.schedule.worth is not None, schedule
            self._follow_worth(now)
            if self._rule is not None and not was_choosing:
                self._rule.begin()
                self._changed_at = float("-inf")  # nor does the dwell of a pin bind it
        return True

    def pick(
        self,
        decoding: int,
        now: float,
        context_tokens: int = 0,
        waiting: int = 0,
        running: int | None = None,
        *,
        splits: bool = False,
        drafted: Callable[[], Drafted] | None = None,
    ) -> Plan:
        """The plan for the next step with `decoding` sequences, at `now` seconds.

        `context_tokens` is the sum of their cached tokens, `waiting` the number of requests that
        are not admitted yet, `running` the sequences with those in prefill, where these share steps
        with decoding ones. `splits`: a step can run two plans, so a probe may be of `probed_rows`.
        `drafted` tells of those that decode, asked now and then.
        """
        self.probed_rows, clients = None, None
        if self._rule is not None:  # pinned or not
            self._rule.prober.save(now)
            if running is not None:
                clients = self._rule.model.begin_step(decoding, running, waiting)
            if drafted is not None:
                self._rule.model.meet(decoding if running is None else running, drafted, now)
        if now - self.received_at > self.schedule.ttl_s:
            self._move_to(SAFE_PLAN, PickReason.EXPIRED, 0.0, now)
        elif self._rule is not None and self.schedule.worth is not None:
            values = self._rule.model.values(decoding, context_tokens, clients)
            moment = Moment(self.plan, values, decoding, context_tokens, splits)
            return self._pick_by_worth(self._rule, moment, waiting, now)
        else:
            self._move_to(*self._banded(decoding), self.schedule.dwell_s, now)
        return self.plan

    def observe(self, step: StepObservation, now: float) -> None:
        """Tells what a step took and yielded; call it once for every plan of every step."""
        if self._rule is not None:
            self._rule.observe(step, self.plan, now)

    def _follow_worth(self, now: float) -> None:
        worth = self.schedule.worth
        if worth is None:
            return  # what was learned stays: a pin ends, and the worth comes back
        if self._rule is None or self._rule.worth.profile != worth.profile:
            self._rule = WorthRule.of(worth, now)
        else:
            self._rule.model.adopt(worth)

    def _pick_by_worth(self, rule: WorthRule, moment: Moment, waiting: int, now: float) -> Plan:
        before, values, decoding, context_tokens, _ = moment
        target = rule.choose(before, values, waiting, now)
        is_kept = target == before != values.best
        reason = PickReason.HYSTERESIS if is_kept else PickReason.WORTH
        if rule.is_distrusting(now):
            reason = PickReason.DISTRUST
        if target != before:
            own_s = rule.dwell_s(before, target, decoding, context_tokens)
            dwell_s = max(self.schedule.dwell_s, own_s)
            # A shape that is not captured must not run once more, whatever the dwell.
            self._move_to(target, reason, dwell_s if before in values.by_plan else 0.0, now)
        else:
            self.reason = reason
        if self.plan != before:
            rule.changed()
            return self.plan
        probe = rule.probe(moment, now)
        if probe is None:
            return self.plan
        self.probed_rows = probe.rows
        return probe.plan

    def _banded(self, decoding: int) -> tuple[Plan, PickReason]:
        # Going up needs only the load; going down stops at the band that would still hold with
        # `hysteresis` more sequences. A plan may stand in several bands, so positions are not kept.
        plans = self.schedule.plans
        wanted = self._band_at(decoding)
        clear = self._band_at(decoding + self.schedule.hysteresis)
        if self.plan in plans[wanted : clear + 1]:
            target = self.plan
        else:
            target = plans[clear] if self.plan in plans[clear + 1 :] else plans[wanted]
        return target, PickReason.BAND if target == plans[wanted] else PickReason.HYSTERESIS

    def _band_at(self, decoding: int) -> int:
        bands = self.schedule.bands
        return next(i for i, b in enumerate(bands) if b.up_to is None or decoding <= b.up_to)

    def _move_to(self, target: Plan, reason: PickReason, dwell_s: float, now: float) -> None:
        self.reason = reason
        if target == self.plan:
            return
        # A plan that the schedule no longer names is left at once: dwell protects against flapping
        # inside one schedule, it must not keep a plan that the controller has withdrawn.
        is_forced = reason in (PickReason.EXPIRED, PickReason.DISTRUST)
        if not is_forced and self.plan in self.schedule.plans and now - self._changed_at < dwell_s:
            self.reason = PickReason.DWELL
            return
        change = (self.plan, target, reason)
        # New mappings, so that a report taken on another thread never sees one that changes.
        self.switched = {**self.switched, change: self.switched.get(change, 0) + 1}
        self.switched_at = {**self.switched_at, change: now}
        self.plan = target
        self._changed_at = now
