"""The words every package shares: mode, plan, schedule.

A plan says how the next step decodes. A schedule is what a controller issues to a replica: which
plan to use at which load. Both are frozen values, so they travel between threads and processes as
they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:  # it builds on this module's words
    from policies.worth import Worth

BLOCK_LENGTHS = (4, 8, 16, 32)
"""Block lengths a diffusion or self-speculation plan may have, in tokens."""

DEFAULT_THRESHOLD = 0.9
"""Confidence above which diffusion commits a token (the released evaluation's value)."""


class Mode(StrEnum):
    AR = "ar"
    DIFFUSION = "diffusion"
    SELF_SPECULATION = "self_speculation"


class Quality(StrEnum):
    """What a request accepts: `exact` is AR's distribution, token by token; `any` allows diffusion
    too."""

    EXACT = "exact"
    ANY = "any"


class _Fields(NamedTuple):
    mode: Mode
    block_length: int = 1
    threshold: float = DEFAULT_THRESHOLD


class Plan(_Fields):
    """Mode, block length in tokens (1 for AR) and, for diffusion only, the confidence threshold.

    A tuple, since plans are compared, and are keys, some hundred times in a step.

    Raises:
        ValueError: a block length the mode does not have, or a threshold outside (0, 1].
    """

    __slots__ = ()

    def __new__(
        cls, mode: Mode | str, block_length: int = 1, threshold: float = DEFAULT_THRESHOLD
    ) -> Self:
        mode = Mode(mode)
        allowed = (1,) if mode is Mode.AR else BLOCK_LENGTHS
        if block_length not in allowed:
            raise ValueError(
                f"block length {block_length} is not one of {allowed} for mode {mode.value}"
            )
        if not 0.0 < threshold <= 1.0:
            raise ValueError(f"threshold {threshold} must lie in (0, 1]")
        if mode is not Mode.DIFFUSION and threshold != DEFAULT_THRESHOLD:
            raise ValueError(f"only diffusion has a threshold, not mode {mode.value}")
        return super().__new__(cls, mode, block_length, threshold)

    @property
    def is_exact(self) -> bool:
        """Whether every token this plan emits follows the AR distribution."""
        return self.mode is not Mode.DIFFUSION

    def serves(self, quality: Quality) -> bool:
        return self.is_exact or quality is Quality.ANY

    def __str__(self) -> str:
        if self.mode is Mode.AR:
            return "ar"
        name = f"{self.mode.value}/{self.block_length}"
        return name if self.threshold == DEFAULT_THRESHOLD else f"{name}@{self.threshold:g}"

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Reads what `str(plan)` writes: `ar`, `self_speculation/16`, `diffusion/8@0.7`."""
        head, _, threshold = text.partition("@")
        mode, _, block = head.partition("/")
        try:
            return cls(
                Mode(mode),
                int(block) if block else 1,
                float(threshold) if threshold else DEFAULT_THRESHOLD,
            )
        except ValueError as error:
            raise ValueError(
                f"plan {text!r}: {error}; write ar, self_speculation/16 or diffusion/8@0.9"
            ) from None


AR = Plan(Mode.AR)
SAFE_PLAN = AR
"""Decodes everything, whatever the load: what a replica uses when nothing better is known."""


@cache
def all_plans() -> tuple[Plan, ...]:
    """AR, then self-speculation and diffusion at every block length."""
    block_modes = (Mode.SELF_SPECULATION, Mode.DIFFUSION)
    return (AR, *(Plan(mode, length) for mode in block_modes for length in BLOCK_LENGTHS))


@dataclass(frozen=True, slots=True)
class Band:
    """Use `plan` while at most `up_to` sequences are decoding (None: no upper bound)."""

    up_to: int | None
    plan: Plan


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a controller issues to a replica. Bands ascend; the last one has no upper bound.

    `epoch` names the controller's incarnation and `version` counts within it; a replica takes a
    schedule only if (epoch, version) is newer than what it has. After `ttl_s` without a refresh the
    replica falls back to the safe plan (`math.inf`: never). `hysteresis` is the number of sequences
    by which a band's upper bound must be undercut before the governor goes back to it, and
    `dwell_s` the shortest time between two changes of plan.

    With a `worth` the governor chooses among the plans of that, by what they are worth for its own
    batch; the bands are then what to expect at the load last known, for people and dashboards.
    """

    bands: tuple[Band, ...]
    hysteresis: int = 0
    dwell_s: float = 0.0
    ttl_s: float = math.inf
    epoch: int = 0
    version: int = 0
    worth: Worth | None = None

    def __post_init__(self) -> None:
        if not self.bands or self.bands[-1].up_to is not None:
            raise ValueError("a schedule needs bands, and its last band must have no upper bound")
        bounds = [band.up_to for band in self.bands[:-1]]
        if any(b is None or b < 1 for b in bounds) or bounds != sorted(set(bounds)):  # type: ignore[type-var]
            raise ValueError(f"band bounds {bounds} must be positive and strictly ascending")
        if self.hysteresis < 0 or self.dwell_s < 0 or self.ttl_s <= 0:
            raise ValueError("hysteresis and dwell_s must not be negative, ttl_s must be positive")

    @classmethod
    def pinned(cls, plan: Plan, **fields: Any) -> Schedule:
        """The smallest schedule: one plan at every load."""
        return cls(bands=(Band(None, plan),), **fields)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Plans that a replica following this may use."""
        if self.worth is not None:
            return self.worth.plans
        return tuple(band.plan for band in self.bands)

    def plan_at(self, decoding: float) -> Plan:
        """The plan this schedule gives with `decoding` sequences, before hysteresis and dwell."""
        for band in self.bands:
            if band.up_to is None or decoding <= band.up_to:
                break
        return band.plan

    def map_plans(self, change: Callable[[Plan], Plan]) -> Schedule:
        """The same schedule with every plan changed; neighbours that become equal are one band."""
        bands: list[Band] = []
        for band in self.bands:
            plan = change(band.plan)
            if bands and bands[-1].plan == plan:
                bands.pop()
            bands.append(band if plan is band.plan else Band(band.up_to, plan))
        worth = None if self.worth is None else self.worth.map_plans(change)
        if tuple(bands) == self.bands and worth is self.worth:
            return self
        return replace(self, bands=tuple(bands), worth=worth)

    @property
    def order(self) -> tuple[int, int]:
        """Newer schedules compare greater."""
        return (self.epoch, self.version)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, and all there is: `from_dict` reads it. An infinite time to live is null."""
        return {
            **self.summary(),
            "worth": None if self.worth is None else self.worth.to_dict(),
        }

    def summary(self) -> dict[str, Any]:
        """JSON-safe, for people and logs: of the worth only what tells it from another."""
        return {
            "bands": [{"up_to": b.up_to, "plan": str(b.plan)} for b in self.bands],
            "hysteresis": self.hysteresis,
            "dwell_s": self.dwell_s,
            "ttl_s": None if math.isinf(self.ttl_s) else self.ttl_s,
            "epoch": self.epoch,
            "version": self.version,
            "worth": None if self.worth is None else self.worth.summary(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Schedule:
        values = dict(fields)
        values["bands"] = tuple(
            Band(band["up_to"], Plan.parse(band["plan"])) for band in fields["bands"]
        )
        if values.get("ttl_s", 0) is None:
            values["ttl_s"] = math.inf
        if values.get("worth") is not None:
            from policies.worth import Worth

            values["worth"] = Worth.from_dict(values["worth"])
        return cls(**values)
