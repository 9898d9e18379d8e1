"""What a policy reads and what it answers: signals of one replica in, a decision with its reason
out.

A missing signal is None and carries its age; it is never 0. Every outcome has a reason, holds too,
and the same word goes to the log, the metric label and the dashboard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from policies.step_time import Profile
from policies.vocabulary import Plan, Schedule


@dataclass(frozen=True, slots=True)
class Reading:
    """A measured value and its age in seconds when the signals were collected.

    `value` None: not known now; `age_s` is then the age of the last known value, None if there
    never was one. What is not a finite number of at least 0 is no measurement of any signal here,
    so it becomes None. A value without an age counts as missing: nobody can tell how old it is.
    """

    value: float | None = None
    age_s: float | None = None

    def __post_init__(self) -> None:
        value, age = self.value, self.age_s
        if age is not None and not 0.0 <= age < math.inf:
            # Two clocks disagree where it is negative: the value is new.
            object.__setattr__(self, "age_s", 0.0 if -math.inf < age < 0.0 else None)
        if value is not None and not 0.0 <= value < math.inf:
            object.__setattr__(self, "value", None)

    def within(self, max_age_s: float) -> float | None:
        """The value, if it is known and at most `max_age_s` seconds old."""
        return self.value if self.age_s is not None and self.age_s <= max_age_s else None


MISSING = Reading()


@dataclass(frozen=True, slots=True)
class PlanSignals:
    """What one plan did on a replica during the window; all missing where the plan was not used."""

    tokens_per_forward: Reading = MISSING
    """Tokens committed per sequence and forward pass: 1 for AR."""
    accepted_length: Reading = MISSING
    """Drafted tokens accepted per round, the bonus token not counted."""
    step_s: Reading = MISSING
    """Mean duration of a step."""
    sequences: Reading = MISSING
    """Mean number of sequences in a step."""
    acceptance: tuple[float, ...] = ()
    """Share of rounds in which draft position i was accepted; as old as `accepted_length`."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What the controller knows of one replica. Units are in the names; counts are sequences."""

    replica: str = ""
    decoding: Reading = MISSING
    prefilling: Reading = MISSING
    waiting: Reading = MISSING
    tokens_per_s: Reading = MISSING
    ttft_p50_s: Reading = MISSING
    ttft_p95_s: Reading = MISSING
    tpot_p50_s: Reading = MISSING
    tpot_p95_s: Reading = MISSING
    context_tokens: Reading = MISSING
    """Sum over the decoding sequences."""
    kv_use: Reading = MISSING
    """Share of the KV cache in use, 0 to 1."""
    plan: Plan | None = None
    """The plan in use; as old as `decoding`."""
    plans: Mapping[Plan, PlanSignals] = field(default_factory=dict)
    profile: Profile | None = None
    """Step times of this replica's machine and model; it does not age."""

    def readings(self) -> dict[str, Reading]:
        """Every scalar signal by name."""
        return {name: getattr(self, name) for name in SIGNAL_NAMES}


SIGNAL_NAMES = (
    "decoding",
    "prefilling",
    "waiting",
    "tokens_per_s",
    "ttft_p50_s",
    "ttft_p95_s",
    "tpot_p50_s",
    "tpot_p95_s",
    "context_tokens",
    "kv_use",
)


class Reason(StrEnum):
    """Why a replica has the schedule it has. `hold_*` means: the same as before."""

    INITIAL = "initial"
    STATIC = "static"
    LOAD_ROSE = "load_rose"
    LOAD_FELL = "load_fell"
    PREDICTED_GAIN = "predicted_gain"
    REVISED = "revised"
    """Estimates have moved; the plan at this load has not."""
    PROBE = "probe"
    POLICY = "policy"
    """The policy changed its schedule and gave no reason of its own."""
    QUALITY = "quality"
    SLO_TTFT = "slo_ttft"
    SLO_TPOT = "slo_tpot"
    SLO_RELAXED = "slo_relaxed"
    PINNED = "pinned"
    PIN_EXPIRED = "pin_expired"
    UNPINNED = "unpinned"
    SAFE_STALE = "safe_stale"
    """Signals were missing for too long: the safe plan."""
    SIGNALS_BACK = "signals_back"
    HOLD_STEADY = "hold_steady"
    HOLD_HYSTERESIS = "hold_hysteresis"
    HOLD_DWELL = "hold_dwell"
    HOLD_STALE = "hold_stale"
    HOLD_MISSING = "hold_missing"
    HOLD_IDLE = "hold_idle"
    HOLD_ERROR = "hold_error"
    """The policy raised; the detail names the exception."""

    @property
    def is_hold(self) -> bool:
        return self.value.startswith("hold_")


class Decision(NamedTuple):
    """The schedule chosen for a replica, and why.

    A policy fills `schedule`, `reason` and, where it has them, `detail` (a sentence with numbers)
    and `predicted` (tokens/s of every candidate plan). The guard adds the rest: `plan` is what the
    schedule gives at the load last known, `time_s` the controller's clock. An advisory decision is
    not applied. (A tuple, for two are made of every replica at every tick, and a frozen dataclass
    takes three times as long.)
    """

    schedule: Schedule
    reason: Reason
    detail: str = ""
    predicted: Mapping[Plan, float] = {}
    plan: Plan | None = None
    replica: str = ""
    policy: str = ""
    time_s: float = 0.0
    advisory: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: what the decision log and `policy explain` show."""
        return {
            "time_s": self.time_s,
            "replica": self.replica,
            "policy": self.policy,
            "reason": self.reason.value,
            "plan": None if self.plan is None else str(self.plan),
            "detail": self.detail,
            "predicted": {
                str(plan): value for plan, value in self.predicted.items() if math.isfinite(value)
            },
            "schedule": self.schedule.summary(),
            "advisory": self.advisory,
        }
