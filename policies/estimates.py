"""What a controller knows of one replica: its machine's step times and its traffic's acceptance.

Read from metrics, so seconds old and coarse; the replica's governor has fresher figures of its own
(`cost_model.py`). Here they are pooled over the fleet, so that a new replica need not start blind.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from policies.acceptance import HALF_LIFE_S, Acceptance, pooled
from policies.cost_model import CostModel, Values
from policies.decisions import PlanSignals, Signals
from policies.step_time import Profile
from policies.vocabulary import Mode, Plan
from policies.worth import Worth

REVISE_S = 15.0  # between two revisions of a replica's estimates
MATERIAL = 0.03  # share by which a yield or a step time must have moved to count as changed
CONTEXT_MOVED = 0.5  # share by which the context length must have moved
SAMPLED_ROUNDS = 40.0  # what acceptance read from metrics counts for beside the fleet's
FOLLOWED_ROUNDS, FOLLOWED_HALF_LIFE_S = 300.0, 1.0
"""The same at most, and how fast what came before fades, where no governor learns: a window of
metrics is a mean already, and is followed."""
BELIEF = 0.5  # of a new measurement of a plan's step time
STEADY = 2.0  # times that the sequences of a window may differ from those that decode now
LEAST_CORRECTION, MOST_CORRECTION = 0.125, 8.0
MOST_SEQUENCES, MOST_CONTEXT = 65536.0, 2.0**24
USUAL_CONTEXT = 512.0  # tokens per sequence, where nothing is known

MakeWorth = Callable[[Profile, Acceptance, Mapping[Plan, float]], Worth]
"""A policy's own: the worth it issues, from step times, acceptance and corrections."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """A value; `model` only remembers what it has multiplied out.

    `corrections`: measured over profiled step time, by plan. `fleet`: chances of acceptance over
    all replicas. `context_length`: tokens per sequence.
    """

    profile: Profile
    model: CostModel
    acceptance: Acceptance
    corrections: Mapping[Plan, float] = field(default_factory=dict)
    fleet: tuple[float, ...] | None = None
    context_length: float = USUAL_CONTEXT
    revised_at: float = 0.0
    due_at: float = 0.0
    """When the next revision is due; a fleet's are spread over the period."""

    @classmethod
    def first(
        cls,
        signals: Signals,
        profile: Profile,
        fleet: tuple[float, ...] | None,
        make_worth: MakeWorth,
        now: float,
    ) -> Estimates:
        """The profile's step times, and what the fleet knows of acceptance."""
        acceptance = Acceptance() if fleet is None else Acceptance(fleet)
        return cls(
            profile=profile,
            model=CostModel(make_worth(profile, acceptance, {}), now),
            acceptance=acceptance,
            fleet=fleet,
            context_length=min(MOST_CONTEXT, context_length(signals, USUAL_CONTEXT)),
            revised_at=now,
            due_at=_due_at(signals.replica, now),
        )

    def is_of(self, profile: Profile) -> bool:
        return self.profile is profile or self.profile == profile

    def load(self, signals: Signals, decoding: float) -> tuple[float, float]:
        """Sequences and the tokens they have cached, within what a replica can hold: signals may
        contradict each other."""
        sequences = 1.0 if decoding < 1.0 else min(decoding, MOST_SEQUENCES)
        length = context_length(signals, self.context_length)
        return sequences, sequences * min(length, MOST_CONTEXT)

    def values(self, signals: Signals, decoding: float) -> Values:
        """Every plan's worth at the load last known."""
        sequences, tokens = self.load(signals, decoding)
        return self.model.values(round(sequences), tokens)

    def revised(
        self,
        signals: Signals,
        now: float,
        make_worth: MakeWorth,
        *,
        learns: bool = True,
        corrects: bool = True,
        follows: bool = False,
    ) -> Estimates:
        """Brought up to date; the model and the context length are new only where they have moved.

        `learns`: acceptance is learned. `corrects`: step times are, too. `follows`: no governor
        learns besides, so what is read is followed closely.
        """
        acceptance = self.acceptance
        if self.fleet is not None:
            acceptance = acceptance.with_prior(self.fleet)
        if learns:
            elapsed_s = max(0.0, now - self.revised_at)
            acceptance = _learned_acceptance(signals, acceptance, elapsed_s, follows)
        corrections = self.corrections
        if corrects:
            corrections = {**corrections, **_learned_corrections(signals, self, follows)}
        length, model = self.load(signals, 1.0)[1], self.model
        if _has_moved(model, acceptance, corrections):
            model = CostModel(make_worth(self.profile, acceptance, corrections), now)
        elif not _differs(length, self.context_length, CONTEXT_MOVED):
            length = self.context_length
        return Estimates(
            profile=self.profile,
            model=model,
            acceptance=acceptance,
            corrections=corrections,
            fleet=self.fleet,
            context_length=length,
            revised_at=now,
            due_at=_due_at(signals.replica, now),
        )


def _due_at(replica: str, now: float) -> float:
    phase = zlib.crc32(replica.encode()) / 2**32 * REVISE_S
    return ((now + phase) // REVISE_S + 1.0) * REVISE_S - phase


def with_fleet(known: Mapping[str, Estimates]) -> dict[str, Estimates]:
    """Each with what the others know, of all that run the same model on the same machine."""
    groups: dict[int, list[str]] = {}
    for name, estimates in known.items():
        groups.setdefault(hash(estimates.profile.fingerprint), []).append(name)
    merged: dict[str, Estimates] = {}
    for names in groups.values():
        chances = pooled([known[name].acceptance for name in names])
        merged |= {name: replace(known[name], fleet=chances) for name in names}
    return merged


def context_length(signals: Signals, fallback: float) -> float:
    """Cached tokens per decoding sequence."""
    decoding, tokens = signals.decoding.value, signals.context_tokens.value
    return tokens / decoding if decoding and tokens else fallback


def _learned_acceptance(
    signals: Signals, acceptance: Acceptance, elapsed_s: float, follows: bool
) -> Acceptance:
    # What was known fades fast only where something takes its place.
    is_followed = follows and any(used.acceptance for used in signals.plans.values())
    half_life_s = FOLLOWED_HALF_LIFE_S if is_followed else HALF_LIFE_S
    acceptance = acceptance.after({}, elapsed_s, half_life_s)
    for plan, used in signals.plans.items():
        per_forward = used.tokens_per_forward.value
        if plan.mode is Mode.SELF_SPECULATION and used.acceptance:
            rounds = _rounds(used, elapsed_s) if follows else SAMPLED_ROUNDS
            acceptance = acceptance.after_shares(used.acceptance, rounds)
        elif plan.mode is Mode.DIFFUSION and per_forward is not None:
            drafts = max(0.1, acceptance.yields().blocks[plan.block_length] - 1.0)
            ratio = (per_forward - 1.0) / drafts
            acceptance = acceptance.with_diffusion(plan.block_length, ratio)
    return acceptance


def _rounds(used: PlanSignals, elapsed_s: float) -> float:
    """How many can have been added to the window."""
    step_s, sequences = used.step_s.value, used.sequences.value
    if not step_s or sequences is None:
        return SAMPLED_ROUNDS
    return min(FOLLOWED_ROUNDS, elapsed_s * sequences / step_s)


def is_steady(signals: Signals, sequences: float) -> bool:
    """Whether a window in which so many decoded on average tells of the load that there is now. A
    rule of thumb: a mean step time over one sequence and forty is that of no load at all."""
    decoding = max(1.0, signals.decoding.value or 0.0)
    return decoding / STEADY <= sequences <= decoding * STEADY


def _learned_corrections(signals: Signals, known: Estimates, follows: bool) -> dict[Plan, float]:
    found: dict[Plan, float] = {}
    for plan, used in signals.plans.items():
        step_s, sequences = used.step_s.value, used.sequences.value
        if not step_s or not sequences or sequences < 1.0:
            continue
        if follows and not is_steady(signals, sequences):
            continue  # a governor has step times of its own, and these only to begin with
        ratio = step_s / known.profile.step_s(plan, *known.load(signals, sequences))
        before = known.corrections.get(plan, 1.0)
        moved = before + BELIEF * (ratio - before)
        found[plan] = min(MOST_CORRECTION, max(LEAST_CORRECTION, moved))
    return found


def _has_moved(model: CostModel, acceptance: Acceptance, corrections: Mapping[Plan, float]) -> bool:
    assumed = model.worth.corrections
    if any(_differs(f, assumed.get(p, 1.0), MATERIAL) for p, f in corrections.items()):
        return True
    found, known = acceptance.yields(), model.yields
    return any(_differs(found.tokens(p), known.tokens(p), MATERIAL) for p in model.worth.plans)


def _differs(value: float, other: float, share: float) -> bool:
    return abs(value - other) > share * other
