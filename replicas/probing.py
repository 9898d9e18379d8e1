"""Steps of other plans than the one in use, so that the governor's estimates do not go blind.

In AR nothing else tells what self-speculation would yield, and no plan's step time is known that
never ran at this load. A probe costs what it takes beyond what the plan in use would have taken for
the same tokens, and all of them together a small share of the time, which can be saved up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from policies.cost_model import CostModel, Values
from policies.observation import StepObservation
from policies.request_mix import are_others
from policies.vocabulary import AR, Mode, Plan

LOOK_GAP_S = 0.05  # between two looks for something to probe
MOST_PROMISE = 4.0
"""Times the savings that a sample of acceptance may cost, where it could multiply what AR yields.
With many sequences there is but a fraction to gain."""
LEAST_COST = 0.25  # share of a probe's time that it costs at least, if it is a guess
SAVINGS_S = 0.1  # probing time that can be saved up
LONGEST_GAP_S = 1.0  # of the time between two picks counts: an engine may have been idle
RESERVE_S = 0.05  # of it kept for urgent ones
FOLLOW_UP_S = 0.04  # and kept for when the traffic seems to have changed
ACCEPTANCE_AGE_S = 1.0  # without a draft for so long, acceptance is to be probed
CHANGED_AGE_S = 0.1  # the same once the traffic seems to have changed
ACCEPTANCE_LENGTH = 8  # block length for that, where it is allowed: long enough to tell much
PAID_ROUNDS, PROBED_ROUNDS = 2, 8
"""Rounds of a probe of acceptance that are paid for, and rounds until which it goes on while it
costs next to nothing: one round says little, and in a batch of one a step is one round."""
GOES_ON = 0.8  # of the yield at which probing costs nothing
SPLIT_ROWS = 4  # that probe acceptance, out of more than `PROBED_ROUNDS`
UNPROVEN = 1.0  # how much more a plan may be worth that was never timed at this load
AGEING_PER_S = 0.001  # by which a timing is doubted more as it gets old
MOST_AGEING = 0.3
MOST_DOUBT = 1.0 + UNPROVEN + MOST_AGEING


class Probe(NamedTuple):
    """A step of another plan. `rows` sequences run it and the others go on; None: all."""

    plan: Plan
    rows: int | None = None


class Moment(NamedTuple):
    """In which a probe is weighed. `splits`: the engine runs two plans in one step, so that some
    sequences may probe while the others go on in AR."""

    current: Plan
    values: Values
    decoding: int
    context_tokens: int
    splits: bool = False


class _Wanted(NamedTuple):
    """A probe, to be paid for `steps`, which leaves `reserve_s` of the savings. `is_guess`: what it
    seems to gain is only predicted. `is_sample`: it is of acceptance."""

    probe: Probe
    reserve_s: float
    steps: int = 1
    is_guess: bool = False
    is_sample: bool = False


@dataclass(slots=True)
class _Sample:
    """A probe of acceptance under way: what it has yielded, and the tokens of a round that it must
    for nothing to be lost."""

    probe: Probe
    break_even: float
    decoding: int
    rounds: int = 0
    tokens: int = 0
    steps: int = 0

    def is_open(self) -> bool:
        if max(self.rounds, self.steps) >= PROBED_ROUNDS:  # a step may have none, if all are pinned
            return False
        return not self.is_paid_up() or self.paid() >= GOES_ON

    def is_paid_up(self) -> bool:
        """Whether the next step was not paid for when it began."""
        return self.rounds >= PAID_ROUNDS

    def paid(self) -> float:
        """What it yielded, over what it must."""
        return self.tokens / (self.break_even * self.rounds) if self.break_even else math.inf


@dataclass(slots=True)
class Prober:
    """Of one replica. `counts`: probing steps by plan."""

    model: CostModel
    counts: dict[Plan, int] = field(default_factory=dict)
    _savings_s: float = SAVINGS_S
    _saved_at: float = math.inf
    _looked_at: float = -math.inf
    _drafted_at: float = -math.inf
    _drafted_of: int = 0
    """Sequences that were decoding when last some drafted."""
    _decoding: int = 0
    _is_probing: bool = False
    _sample: _Sample | None = None

    def save(self, now: float) -> None:
        """Time has gone by, pinned or not, a share of which may be spent."""
        seconds = min(LONGEST_GAP_S, max(0.0, now - self._saved_at))
        self._saved_at = now
        self._savings_s = min(SAVINGS_S, self._savings_s + self.model.worth.probe_share * seconds)

    def stop(self) -> None:
        """The plan in use is another: what was begun is not gone on with."""
        self._sample = None

    def next(self, moment: Moment, now: float, *, is_calm: bool) -> Probe | None:
        """What to run in this one step in place of the plan in use, or None. A new probe begins
        only if all `is_calm`."""
        was_probing, self._is_probing, self._decoding = self._is_probing, False, moment.decoding
        if moment.decoding < 1:
            return None
        if self._sample is not None:
            if self._sample.is_open() and self._fits(self._sample, moment):
                return self._go_on(self._sample, moment)
            self._sample = None
        if was_probing or now - self._looked_at < LOOK_GAP_S:
            return None
        self._looked_at = now
        if not is_calm or not self.model.worth.probe_share:
            return None
        wanted = self._wanted(moment, now)
        if wanted is None or not self._pays(wanted, moment):
            return None
        if wanted.is_sample:
            break_even = self._break_even(wanted.probe.plan, moment)
            self._sample = _Sample(wanted.probe, break_even, moment.decoding, steps=1)
        return self._run(wanted.probe)

    def observe(self, step: StepObservation, now: float) -> None:
        """A step has run, probing or not."""
        if step.plan.mode is not Mode.SELF_SPECULATION or not step.sequences:
            return
        self._drafted_at, self._drafted_of = now, self._decoding
        if self._sample is not None and step.plan == self._sample.probe.plan:
            self._sample.rounds += step.rows
            self._sample.tokens += step.tokens

    def _fits(self, sample: _Sample, moment: Moment) -> bool:
        """Whether the plan may still run, on no more sequences than it was begun on."""
        return sample.probe.plan in moment.values.by_plan and moment.decoding <= sample.decoding

    def _go_on(self, sample: _Sample, moment: Moment) -> Probe:
        if sample.is_paid_up():
            lost_s = (1.0 - sample.paid()) * self._step_s(sample.probe, moment)
            self._savings_s -= max(0.0, lost_s)
        sample.steps += 1
        return self._run(sample.probe)

    def _run(self, probe: Probe) -> Probe:
        self.counts[probe.plan] = self.counts.get(probe.plan, 0) + 1
        self._is_probing = True
        return probe

    # -- what to probe --------------------------------------------------------------------------

    def _wanted(self, moment: Moment, now: float) -> _Wanted | None:
        """What is least known and may matter: acceptance, where nothing drafts, or step times."""
        if moment.current.mode is not Mode.SELF_SPECULATION:
            has_changed = self._has_changed(moment.decoding)
            age_s = CHANGED_AGE_S if has_changed else ACCEPTANCE_AGE_S
            if now - self._drafted_at > age_s:
                return self._acceptance(moment, 0.0 if has_changed else FOLLOW_UP_S)
        values, best = moment.values.by_plan, moment.values.by_plan[moment.values.best]
        doubtful = [
            (value * self._doubt(plan, moment.decoding, now), plan)
            for plan, value in values.items()
            if plan != moment.current and MOST_DOUBT * value > best
        ]
        nothing = (0.0, moment.current)
        promise, plan = max(doubtful, default=nothing, key=lambda pair: pair[0])
        if promise <= best:
            return None
        steps, _ = self.model.timed(plan, moment.decoding)
        return _Wanted(Probe(plan), RESERVE_S if steps else 0.0, is_guess=steps > 0)

    def _has_changed(self, decoding: int) -> bool:
        """Whether the traffic is likely another than when last some drafted."""
        return are_others(decoding, self._drafted_of) or self.model.learned.is_unsettled

    def _acceptance(self, moment: Moment, reserve_s: float) -> _Wanted | None:
        drafting = [p for p in moment.values.by_plan if p.mode is Mode.SELF_SPECULATION]
        if not drafting:
            return None
        long_enough = [p for p in drafting if p.block_length >= ACCEPTANCE_LENGTH]
        if long_enough:
            plan = max(long_enough, key=moment.values.by_plan.__getitem__)
        else:
            plan = max(drafting, key=lambda p: p.block_length)
        is_split = moment.splits and moment.current == AR and moment.decoding > PROBED_ROUNDS
        rows = SPLIT_ROWS if is_split else None
        steps = math.ceil(PAID_ROUNDS / moment.decoding)
        return _Wanted(Probe(plan, rows), reserve_s, steps, is_sample=True)

    def _doubt(self, plan: Plan, decoding: int, now: float) -> float:
        """Factor by which a plan may be worth more than predicted: timed once it is no longer
        unproven, only dated."""
        steps, last_at = self.model.timed(plan, decoding)
        ageing = min(MOST_AGEING, AGEING_PER_S * (now - last_at))
        return 1.0 + UNPROVEN / (1.0 + 4.0 * steps) + ageing

    # -- what it costs --------------------------------------------------------------------------

    def _pays(self, wanted: _Wanted, moment: Moment) -> bool:
        """Takes what a probe costs out of the savings, if they allow it."""
        cost_s = wanted.steps * self._cost_s(wanted.probe, moment)
        if wanted.is_sample and cost_s > 0.0:
            cost_s /= self._promise(wanted.probe.plan, moment)
        if wanted.is_guess:
            cost_s = max(cost_s, LEAST_COST * self._step_s(wanted.probe, moment))
        # On a slow machine a probe may cost more than can be saved up: it is paid off afterwards.
        left_s = self._savings_s - wanted.reserve_s
        if cost_s > 0.0 and min(cost_s, SAVINGS_S - wanted.reserve_s) > left_s:
            return False
        self._savings_s -= max(0.0, cost_s)
        return True

    def _promise(self, plan: Plan, moment: Moment) -> float:
        """What could be gained if every draft were accepted: for less, less is spent."""
        values = moment.values.by_plan
        most = values[plan] * plan.block_length / self.model.tokens(plan)
        gain = most / values.get(moment.current, most) - 1.0
        return max(1.0, min(MOST_PROMISE, gain))

    def _cost_s(self, probe: Probe, moment: Moment) -> float:
        """Time that a step of it wastes. Diffusion is in for a whole block."""
        step_s, now_worth = self._step_s(probe, moment), moment.values.by_plan.get(moment.current)
        if probe.plan.mode is Mode.DIFFUSION:
            step_s *= probe.plan.block_length / self.model.tokens(probe.plan)
        if now_worth is None:
            return step_s
        if probe.rows is None:
            return step_s * (1.0 - moment.values.by_plan[probe.plan] / now_worth)
        # A draft of its own; the rest shares the others' step, in which these rows would have kept
        # a token each.
        added = probe.rows * (probe.plan.block_length - 1)
        added_s = self.model.added_s(moment.decoding, added)
        gained = probe.rows * (self.model.tokens(probe.plan) - 1.0)
        return step_s / 2 + added_s - gained / now_worth

    def _step_s(self, probe: Probe, moment: Moment) -> float:
        rows = moment.decoding if probe.rows is None else probe.rows
        context_tokens = moment.context_tokens * rows / moment.decoding
        return self.model.step_s(probe.plan, rows, context_tokens)

    def _break_even(self, plan: Plan, moment: Moment) -> float:
        """Tokens of a round at which the plan is worth as much as the one in use."""
        values = moment.values.by_plan
        return self.model.tokens(plan) * values.get(moment.current, 0.0) / values[plan]
