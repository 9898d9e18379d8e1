"""What a controller tells a replica's governor about plans: which are allowed, and what they cost.

The governor multiplies this out at every step for its own batch, with what it has itself seen since
(`cost_model.py`). Travels inside a `Schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from policies.acceptance import DIFFUSION_RATIOS, Acceptance, default_hazards
from policies.step_time import Profile
from policies.vocabulary import SAFE_PLAN, Plan


@dataclass(frozen=True, slots=True)
class Worth:
    """Allowed plans and what to predict their throughput from.

    Args:
        plans: the allowed ones; the safe plan is always among them.
        profile: step times.
        chances: prior chance of each draft position (`Acceptance.prior`).
        diffusion: prior ratios of diffusion (`Acceptance.diffusion`).
        corrections: prior factor on a plan's step time, where the fleet has learned one.
        tpot_limit_s: a plan in which a request of low acceptance takes longer per token is not
            used while another keeps to it; None for no limit.
        hysteresis: share by which another plan must be worth more before it is taken.
        probe_share: share of the time that may go into trying other plans, and up to four times as
            much where acceptance could multiply what AR yields; 0 tries none.
        learns: whether the governor corrects the prediction by what it measures.
    """

    plans: tuple[Plan, ...]
    profile: Profile
    chances: tuple[float, ...] = field(default_factory=default_hazards)
    diffusion: Mapping[int, float] = field(default_factory=lambda: dict(DIFFUSION_RATIOS))
    corrections: Mapping[Plan, float] = field(default_factory=dict)
    tpot_limit_s: float | None = None
    hysteresis: float = 0.05
    probe_share: float = 0.005
    learns: bool = True

    def __post_init__(self) -> None:
        if SAFE_PLAN not in self.plans:
            object.__setattr__(self, "plans", (SAFE_PLAN, *self.plans))
        check_shares(self.hysteresis, self.probe_share, self.tpot_limit_s)

    def map_plans(self, change: Callable[[Plan], Plan]) -> Worth:
        """The same with every plan changed; what becomes equal is one."""
        plans = tuple(dict.fromkeys(map(change, self.plans)))
        return self if plans == self.plans else replace(self, plans=plans)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` reads it."""
        return {
            "plans": [str(plan) for plan in self.plans],
            "profile": self.profile.to_dict(),
            "chances": list(self.chances),
            "diffusion": {str(length): ratio for length, ratio in self.diffusion.items()},
            "corrections": {str(plan): factor for plan, factor in self.corrections.items()},
            "tpot_limit_s": self.tpot_limit_s,
            "hysteresis": self.hysteresis,
            "probe_share": self.probe_share,
            "learns": self.learns,
        }

    def summary(self) -> dict[str, Any]:
        """JSON-safe, for people: tokens per step and sequence stand for the chances."""
        acceptance = Acceptance(self.chances, diffusion=self.diffusion)
        yields = acceptance.yields()
        return {
            "profile": self.profile.name,
            "tokens_per_step": {str(plan): round(yields.tokens(plan), 3) for plan in self.plans},
            "tpot_limit_s": self.tpot_limit_s,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Worth:
        values = dict(fields)
        values["plans"] = tuple(map(Plan.parse, fields["plans"]))
        values["profile"] = Profile.from_dict(fields["profile"])
        values["chances"] = tuple(fields["chances"])
        values["diffusion"] = {int(n): ratio for n, ratio in fields["diffusion"].items()}
        values["corrections"] = {Plan.parse(p): f for p, f in fields["corrections"].items()}
        return cls(**values)


def check_shares(hysteresis: float, probe_share: float, tpot_limit_s: float | None) -> None:
    """Raises ValueError where one is outside its range."""
    if not 0.0 <= hysteresis < 1.0 or not 0.0 <= probe_share < 0.5:
        raise ValueError(
            f"hysteresis {hysteresis} must lie in [0, 1) and probe_share {probe_share} in [0, 0.5)"
        )
    if tpot_limit_s is not None and not tpot_limit_s > 0:
        raise ValueError(f"tpot limit {tpot_limit_s} s must be above 0")
