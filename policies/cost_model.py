"""What every plan is worth in tokens per second, at a load, learned as it goes.

    worth(plan) = sequences * tokens per step / (profiled step time * correction)

A replica's governor owns one and feeds it every step; the predictive policy owns one per replica
and feeds it what it reads from metrics; replay uses the same. Time is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np

from policies.acceptance import HALF_LIFE_S, Yields
from policies.learned_yields import REFRESH_S, LearnedYields
from policies.observation import Drafted, StepObservation
from policies.profiled_steps import ProfiledSteps, batch_bucket, context_bucket
from policies.request_mix import are_others
from policies.shared_steps import PlanStep, SharedSteps
from policies.timings import Correction, Timings
from policies.vocabulary import AR, Plan
from policies.worth import Worth

LEAST_SHARE = 0.2  # of a step with prefill that is decoding, whatever the profile says
MAX_REMEMBERED = 4096  # loads whose worth is remembered until the next revision


class Values(NamedTuple):
    """Predicted tokens/s by plan at one load. `best` keeps to the TPOT limit if any plan does."""

    by_plan: Mapping[Plan, float]
    best: Plan
    within_limit: Set[Plan]


class _Row(NamedTuple):
    """All that is multiplied out of a plan; `hard_tokens` are needed only under a limit on TPOT."""

    plan: Plan
    tokens: float
    hard_tokens: float
    correction: Correction


class CostModel:
    """Predicts, and is corrected by what happened. Invariant: every prediction is positive."""

    def __init__(self, worth: Worth, now: float = 0.0) -> None:
        self.worth = worth
        self._profiled = ProfiledSteps.of(worth.profile, worth.plans)
        self.learned = LearnedYields(worth, now)
        self._shared = SharedSteps()
        self._timings = Timings()
        self._corrections: dict[Plan, Correction] = {}
        self._rows: list[_Row] = []
        self._remembered: dict[tuple[int, int, bool], Values] = {}
        self._revised_at = now
        self._has_news = False
        self._met_at, self._met_of = -math.inf, 0
        self._renew()

    # -- learning -------------------------------------------------------------------------------

    def adopt(self, worth: Worth) -> None:
        """Takes a new worth from the controller; what was learned on the same profile stays."""
        if worth is self.worth:
            return
        self.worth = worth
        self._profiled = ProfiledSteps.of(worth.profile, worth.plans)
        self.learned.adopt(worth)
        self._renew()

    def observe(self, step: StepObservation, now: float, *, is_timed: bool = True) -> None:
        """Counts one step; estimates follow within `REFRESH_S`. `is_timed`: whether its seconds
        say anything of the plan's."""
        self.learned.observe(step)
        self._shared.end_step(step.tokens, step.answers)
        if is_timed and step.is_alone and step.sequences > 0:
            expected_s = self._profiled.step_s(step.plan, step.sequences, step.context_tokens)
            load = self._shared.clients or step.sequences
            self._timings.add(
                step.plan, load, self.decoding_s(step) / step.steps, expected_s, step.steps, now
            )
        self._has_news = True
        if now - self._revised_at >= REFRESH_S:
            self.revise(now)

    def begin_step(self, decoding: int, running: int, waiting: int = 0) -> int:
        """So many sequences run in it, some of them in prefill, and so many requests found no room.
        Returns how many clients there are, with those that are between two requests."""
        return self._shared.begin_step(decoding, running, waiting)

    def meet(self, running: int, drafted: Callable[[], Drafted], now: float) -> None:
        """So many run. `drafted` tells how the drafts of those that decode have fared; it is asked
        as often as estimates are revised, and when most are others."""
        are_new = are_others(running, self._met_of)
        if not self.worth.learns or (now - self._met_at < REFRESH_S and not are_new):
            return
        self._met_at, self._met_of = now, running
        decoding = drafted()
        if len(decoding.tried):
            self.learned.meet(decoding, at_once=are_new)
        if are_new:
            self._renew()

    def revise(self, now: float) -> None:
        """Brings the estimates up to date with what was counted."""
        elapsed_s, self._revised_at = max(0.0, now - self._revised_at), now
        if not self._has_news:
            return
        self._has_news = False
        self._shared.occupancy.fade(0.5 ** (elapsed_s / HALF_LIFE_S))
        self.learned.revise(now, self._shared.occupancy.tokens_per_answer)
        self._renew()

    def timed(self, plan: Plan, sequences: float) -> tuple[float, float]:
        """Step times that the plan's correction at about this load rested on when the last of them
        was taken, and when that was."""
        return self._timings.known(plan, self._shared.clients or sequences)

    # -- predicting -----------------------------------------------------------------------------

    def values(self, sequences: int, context_tokens: float, clients: int | None = None) -> Values:
        """Every plan's worth at this load; remembered until the next revision.

        `clients`: as `begin_step` counts them, in an engine where prefill shares steps with
        decoding; of `sequences` only the context length is then read.
        """
        sequences = max(1, sequences)
        bucket = context_bucket(context_tokens / sequences)
        is_shared = clients is not None
        key = (sequences if clients is None else max(1, clients), bucket, is_shared)
        known = self._remembered.get(key)
        if known is None:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[key] = self._values(*key)
        return known

    def best_by_batch(self, batches: Sequence[int], context_length: float) -> list[Plan]:
        """What `values` calls best at these numbers of sequences, and no more than that."""
        if self.worth.tpot_limit_s is not None or self.worth.profile.max_positions is not None:
            return [self.values(n, n * context_length).best for n in batches]
        profiled_s = self._profiled.table(tuple(batches), context_bucket(context_length))
        corrections = [row.correction for row in self._rows]
        # Of a model that was not corrected here, as a controller's are, one row serves all batches.
        own = batches if any(c.by_bucket for c in corrections) else batches[:1]
        factors = np.array([[c.at(batch_bucket(n)) for c in corrections] for n in own])
        tokens = np.array([row.tokens for row in self._rows])
        values = np.array(batches)[:, None] * tokens / (profiled_s * factors)
        return [self.worth.plans[best] for best in values.argmax(axis=1).tolist()]

    def step_s(self, plan: Plan, sequences: float, context_tokens: float) -> float:
        """Predicted seconds of a step."""
        profiled = self._profiled.step_s(plan, sequences, context_tokens)
        return profiled * self.correction(plan, sequences)

    def decoding_s(self, step: StepObservation) -> float:
        """Seconds of a step, without what its prefill took by the profile."""
        if not step.prompt_tokens:
            return step.seconds
        added_s = self.added_s(step.sequences * step.plan.block_length, step.prompt_tokens)
        return max(step.seconds - added_s, LEAST_SHARE * step.seconds)

    def added_s(self, positions: int, more: int) -> float:
        """Predicted seconds that `more` positions add to a forward over some."""
        return self._timings.machine * self.worth.profile.curve.added_s(positions, more)

    def tokens(self, plan: Plan, *, hard: bool = False) -> float:
        """Predicted tokens per sequence and step; `hard`: of a request of low acceptance."""
        return self.learned.expected.tokens(plan, hard=hard)

    def throughput(self, plan: Plan, sequences: float, context_tokens: float) -> float:
        """Predicted tokens/s."""
        return sequences * self.tokens(plan) / self.step_s(plan, sequences, context_tokens)

    def correction(self, plan: Plan, sequences: float) -> float:
        """Factor on the profiled step time; where steps are shared, at the clients of the step that
        runs, whatever its `sequences`."""
        known = self._corrections.get(plan)
        return 1.0 if known is None else known.at(batch_bucket(self._shared.clients or sequences))

    @property
    def yields(self) -> Yields:
        return self.learned.expected

    # -- the parts ------------------------------------------------------------------------------

    def _values(self, sequences: int, bucket: int, is_shared: bool) -> Values:
        most, limit_s = self.worth.profile.max_positions, self.worth.tpot_limit_s
        by_plan: dict[Plan, float] = {}
        tpot: dict[Plan, float] = {}
        best, most_worth = AR, 0.0
        for (plan, tokens, hard_tokens, correction), (profiled_s, batch, rows) in zip(
            self._rows, self._steps(sequences, bucket, is_shared), strict=True
        ):
            if most is not None and sequences * plan.block_length > most and plan != AR:
                continue
            by_bucket, factor, machine = correction
            if by_bucket:
                factor = by_bucket.get(batch, factor)
            step_s = profiled_s * (factor * machine)
            by_plan[plan] = value = rows * tokens / step_s
            if value > most_worth:
                best, most_worth = plan, value
            if limit_s is not None:
                tpot[plan] = step_s / hard_tokens
        if limit_s is None:
            return Values(by_plan, best, by_plan.keys())
        within: Set[Plan] = {plan: s for plan, s in tpot.items() if s <= limit_s}.keys()
        within = within or {min(tpot, key=tpot.__getitem__)}
        return Values(by_plan, max(within, key=by_plan.__getitem__), within)

    def _steps(self, sequences: int, bucket: int, is_shared: bool) -> list[PlanStep]:
        """Of every plan; where prefill shares the steps, at so many clients."""
        if is_shared:
            return self._shared.steps(sequences, bucket)
        profiled, batch = self._profiled.on_grid(sequences, bucket), batch_bucket(sequences)
        return [PlanStep(step_s, batch, sequences) for step_s in profiled]

    def _renew(self) -> None:
        """What the estimates say, laid out for one pass over the plans."""
        if self.worth.learns:
            self._timings.learn(self._profiled, self._revised_at)
            timings = self._timings
        else:
            timings = Timings()
        self._corrections = timings.corrections(self.worth.plans, self.worth.corrections)
        tokens, is_limited = self.learned.expected.tokens, self.worth.tpot_limit_s is not None
        self._rows = [
            _Row(
                plan,
                tokens(plan),
                tokens(plan, hard=True) if is_limited else math.nan,
                self._corrections[plan],
            )
            for plan in self.worth.plans
        ]
        self._shared.renew(self._profiled, [row.tokens for row in self._rows])
        self._remembered.clear()
