"""What runs through a replay: the oracle, a fixed plan, or a policy with options and a period.

Written as text: `oracle`; a plan (`ar`, `self_speculation/8`); a policy's name, with options after
colons and the control period after an at sign (`predictive`, `predictive:local=false@5`,
`mypackage:MyPolicy`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from policies.base import BUILT_IN, Policy, load_policy
from policies.static import Static
from policies.vocabulary import Plan, all_plans

ORACLE = "oracle"
BASELINE = "self_speculation/8"
"""The fixed plan that is the one to beat."""
REFRESH_S = 20.0  # a fixed plan is told again only so that it does not expire


@dataclass(frozen=True, slots=True)
class Contender:
    """`policy` None: the oracle."""

    label: str
    policy: Policy | None
    interval_s: float = 1.0

    @property
    def is_oracle(self) -> bool:
        return self.policy is None

    @property
    def is_fixed(self) -> bool:
        return isinstance(self.policy, Static)


def parse(text: str) -> Contender:
    """The contender that a text stands for.

    Raises:
        ValueError: it stands for none.
    """
    if text == ORACLE:
        return Contender(ORACLE, None)
    if re.match(r"(ar|diffusion|self_speculation)\b", text):
        return Contender(text, Static(Plan.parse(text)), REFRESH_S)
    head, _, period = text.partition("@")
    name, options = _options(head)
    try:
        interval_s = float(period) if period else 1.0
    except ValueError:
        raise ValueError(f"{text!r}: {period!r} is no control period; write seconds") from None
    if not 0.0 < interval_s <= 30.0:
        raise ValueError(f"{text!r}: a control period of {interval_s:g} s is not in (0, 30]")
    return Contender(text, load_policy(name, options), interval_s)


def _options(text: str) -> tuple[str, dict[str, object]]:
    parts = text.split(":")
    count = 2 if parts[0] not in BUILT_IN and len(parts) > 1 and "=" not in parts[1] else 1
    options: dict[str, object] = {}
    for part in parts[count:]:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: option {part!r} needs a value; write {part}=...")
        options[key] = yaml.safe_load(value)
    return ":".join(parts[:count]), options


def every(allowed: frozenset[Plan]) -> list[str]:
    """The comparison: all policies, deciding in the replica and centrally, and all fixed plans."""
    central = [f"predictive:local=false@{period}" for period in (1, 5, 15)]
    policies = [name for name in ("predictive", "bandit", "threshold") if name in BUILT_IN]
    fixed = [str(plan) for plan in all_plans() if plan in allowed]
    return [*policies, *central, *fixed]
