"""Small worlds for the tests: a machine with simple step times, and requests that are all alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.step_time import Curve, Fingerprint, Profile
from replay.load import ClosedLoop, OpenLoop, steps_of_load
from replay.simulator import Setting
from replay.trace import Trace
from replay.traffic import Traffic
from replay.world import World

MACHINE = Profile(
    name="machine",
    fingerprint=Fingerprint("test", "test", "float32", "test"),
    source="measured",
    curve=Curve(6e-3, 20e-6, 60e-9, 1e-9, 3e-6, 0.5e-3, 0.2e-3),
    switch_s=0.002,
    max_sequences=64,
    kv_tokens=100_000,
)
"""About an H100 with an 8B model."""


def alike(count: int = 200, prompt: int = 500, output: int = 200, every_s: float = 0.05) -> Trace:
    """Requests of one length at one rate."""
    ones = np.ones(count, dtype=np.int64)
    return Trace("alike", np.arange(count) * every_s, ones * prompt, ones * output, ones * 0)


def varied(count: int = 200, seed: int = 0) -> Trace:
    """Poisson arrivals, lengths of all sizes, some of them 1."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(0.05, count))
    prompts = rng.integers(1, 2000, count)
    outputs = rng.integers(1, 300, count)
    return Trace("varied", arrivals, prompts, outputs, prompts // 3)


def constant(level: int, seconds: float, trace: Trace | None = None) -> ClosedLoop:
    return steps_of_load(trace or alike(), [level], seconds, replicas=1)


def setting(load: OpenLoop | ClosedLoop, **fields: Any) -> Setting:
    """On a machine whose profile is right and whose steps do not scatter."""
    given = {"profile": MACHINE, "world": World(MACHINE, noise=0.0), "traffic": Traffic(0)}
    return Setting(load, **{**given, **fields})
