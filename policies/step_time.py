"""How long a step takes: a fitted curve, and what was measured on top of it.

Step time belongs to the machine, tokens per step to the traffic (`acceptance.py`); their quotient
is what a plan is worth (`cost_model.py`). The curve is a roofline with a soft knee: reading the
weights against multiplying them, reading the K/V against scoring them, and what every position and
every forward costs besides. Source of the form: Williams et al., "Roofline" (CACM 2009); the soft
knee was fitted to published H100 kernel times with 1 % mean error (data/profiles).
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from policies.vocabulary import Mode, Plan

FORMAT = 1
"""Of the profile file; another one is refused."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of one forward pass.

    `weights_s`: reading every weight once. `position_s`: multiplying one position by them.
    `kv_token_s`: reading one cached token. `score_s`: one position attending to one cached token.
    `activation_s`: what a position costs besides. `overhead_s`: what a forward costs besides, and
    `block_overhead_s` what one over blocks adds. `sharpness`: exponent of the soft maximum of
    reading and computing; 1 is their sum, infinity the larger.
    """

    weights_s: float
    position_s: float
    kv_token_s: float
    score_s: float
    activation_s: float
    overhead_s: float
    block_overhead_s: float = 0.0
    sharpness: float = 1.9

    def forward_s(self, sequences: float, width: int, context_tokens: float) -> float:
        """One forward over `sequences` rows of `width` positions; `context_tokens` is the sum of
        cached tokens over the rows."""
        positions = sequences * width
        linear = self._soft_max(self.weights_s, self.position_s * positions)
        reads = self.kv_token_s * (context_tokens + positions)
        scores = self.score_s * width * (context_tokens + positions / 2)
        overhead_s = self.overhead_s + (self.block_overhead_s if width > 1 else 0.0)
        return linear + self._soft_max(reads, scores) + self.activation_s * positions + overhead_s

    def prefill_s(self, tokens: float, context_tokens: float = 0.0) -> float:
        """One forward over `tokens` prompt tokens of one sequence, `context_tokens` cached."""
        linear = self._soft_max(self.weights_s, self.position_s * tokens)
        reads = self.kv_token_s * (context_tokens + tokens)
        scores = self.score_s * tokens * (context_tokens + tokens / 2)
        return linear + self._soft_max(reads, scores) + self.activation_s * tokens + self.overhead_s

    def added_s(self, positions: float, tokens: float) -> float:
        """What `tokens` prompt tokens add to a forward over `positions`, their attention aside."""
        alone = self._soft_max(self.weights_s, self.position_s * positions)
        linear = self._soft_max(self.weights_s, self.position_s * (positions + tokens))
        return linear - alone + self.activation_s * tokens

    def _soft_max(self, a: float, b: float) -> float:
        low, high = (a, b) if a < b else (b, a)
        if low <= 0.0:
            return high
        soft: float = high * (1.0 + (low / high) ** self.sharpness) ** (1.0 / self.sharpness)
        return soft


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a profile was measured on. Each field is a text that names one thing."""

    hardware: str
    model: str
    dtype: str
    engine: str

    def difference(self, other: Fingerprint) -> str:
        """The first field in which two fingerprints differ, with both values; empty if none."""
        for name, mine in asdict(self).items():
            theirs = getattr(other, name)
            if mine != theirs:
                return f"{name} is {mine!r} here and {theirs!r} there"
        return ""


class ProfileMismatch(ValueError):
    """A profile is of other hardware, model, precision or engine; the message names which."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Step times of every plan on one machine with one model.

    `source` is `measured`, `published` or `roofline`, `note` where the figures come from. `ratios`
    hold measured over fitted step time by plan at ascending numbers of sequences; between them it
    is interpolated in the logarithm. `switch_s` is what a change of plan costs. `max_sequences` and
    `kv_tokens` are the replica's limits. `max_positions` bounds sequences times block length, where
    larger shapes are not captured as graphs (None: no bound). `noise` is the root mean square of
    the relative differences between the profile and what it was made from.
    """

    name: str
    fingerprint: Fingerprint
    source: str
    curve: Curve
    ratios: Mapping[Plan, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    switch_s: float = 0.0
    max_sequences: int = 64
    kv_tokens: int = 32768
    max_positions: int | None = None
    created: str = ""
    note: str = ""
    noise: float = 0.0

    def __hash__(self) -> int:
        return hash((self.name, self.fingerprint, self.created))

    def step_s(self, plan: Plan, sequences: float, context_tokens: float) -> float:
        """Seconds of one decoding step with `sequences` rows that have `context_tokens` cached
        between them."""
        forwards = forwards_per_step(plan)
        forward_s = self.curve.forward_s(sequences, plan.block_length, context_tokens)
        return forwards * forward_s * self.ratio(plan, sequences)

    def ratio(self, plan: Plan, sequences: float) -> float:
        """Measured over fitted step time."""
        points = self.ratios.get(plan)
        return interpolate_log(points, sequences) if points else 1.0

    def check(self, fingerprint: Fingerprint) -> None:
        """Raises ProfileMismatch unless this profile is of the same machine and model."""
        difference = fingerprint.difference(self.fingerprint)
        if difference:
            raise ProfileMismatch(
                f"profile {self.name!r} is of another set-up: {difference}; run trimode calibrate"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` reads it."""
        fields = asdict(replace(self, ratios={}))  # plans are keys there, which asdict would undo
        fields["ratios"] = {str(plan): [list(p) for p in at] for plan, at in self.ratios.items()}
        return {"format": FORMAT, **fields}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Profile:
        """Reads what `to_dict` writes.

        Raises:
            ValueError: another format, or something missing.
        """
        values = dict(fields)
        found = values.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"profile format {found!r} is not {FORMAT}; run trimode calibrate")
        try:
            values["fingerprint"] = Fingerprint(**values["fingerprint"])
            values["curve"] = Curve(**values["curve"])
            values["ratios"] = {
                Plan.parse(plan): tuple((float(n), float(r)) for n, r in points)
                for plan, points in values.get("ratios", {}).items()
            }
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a profile: {error!r}; run trimode calibrate") from error


def forwards_per_step(plan: Plan) -> int:
    """Self-speculation drafts and verifies; the other modes run one forward a step."""
    return 2 if plan.mode is Mode.SELF_SPECULATION else 1


def interpolate_log(points: tuple[tuple[float, float], ...], at: float) -> float:
    """Piecewise linear in log(x) through ascending (x, y); constant outside."""
    index = bisect_left(points, (at,))
    if index == 0:
        return points[0][1]
    if index == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (y1 - y0) * math.log(at / x0) / math.log(x1 / x0)


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with Trimode."""
    folder = files("policies") / "profiles"
    names = (path.name for path in folder.iterdir() if path.name.endswith(".json"))
    return tuple(sorted(name.removesuffix(".json") for name in names))


@cache
def shipped_profile(name: str) -> Profile:
    """The shipped profile of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    known = shipped_profiles()
    if name not in known:
        raise ValueError(f"profile {name!r} is neither a file nor one of {', '.join(known)}")
    text = (files("policies") / "profiles" / f"{name}.json").read_text(encoding="utf-8")
    return Profile.from_dict(json.loads(text))


def read_profile(name_or_path: str) -> Profile:
    """A profile file, or a shipped profile by its name.

    Raises:
        ValueError: neither; or the file holds no profile.
    """
    path = Path(name_or_path)
    if not path.is_file():
        return shipped_profile(name_or_path)
    try:
        return Profile.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
