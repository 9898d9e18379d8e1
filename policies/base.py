"""The Policy protocol, and how a policy is found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from policies.decisions import Decision, Signals
from policies.vocabulary import Plan

BUILT_IN = {
    "bandit": "policies.bandit:Bandit",
    "predictive": "policies.predictive:Predictive",
    "static": "policies.static:Static",
    "threshold": "policies.threshold:Threshold",
}
"""Names an operator may write, and the class behind each."""


class Policy(Protocol):
    """Which schedule a replica should follow, as a function of its arguments.

    No clock, no input or output, no randomness but a seed in the state. `needs` names the signals
    (fields of `Signals`) without which the guard holds the last schedule instead of asking.
    """

    needs: tuple[str, ...]

    def decide(self, signals: Signals, state: Any, now: float) -> tuple[Decision, Any]:
        """The decision for one replica at `now` seconds.

        `state` is what this method returned for the same replica last time, None at first; treat it
        as a value, since the caller may keep older ones. Any signal may be missing. Leave the
        schedule's epoch, version and time to live alone: the controller stamps them.
        """
        ...


@runtime_checkable
class ChoosingPolicy(Policy, Protocol):
    """A policy that compares plans, and so should leave out those that are not allowed."""

    def among(self, plans: Collection[Plan]) -> Policy:
        """The same policy, which chooses among these plans only."""
        ...


@runtime_checkable
class MergingPolicy(Policy, Protocol):
    """A policy whose replicas learn from each other."""

    def merge(self, states: Mapping[str, Any], now: float) -> Mapping[str, Any]:
        """The states of all replicas, by name, each with what the others know; called once a round
        before the decisions. States are values here, too."""
        ...


class PolicyNotFound(ValueError):
    """No policy has that name; the message lists those that exist."""


def load_policy(name: str, options: Mapping[str, Any] | None = None) -> Policy:
    """Makes the policy that `name` stands for: a built-in name, or `package.module:Class`.

    Raises:
        PolicyNotFound: the name stands for nothing; the message lists the built-in names.
        ValueError: the class does not take these options, or is not a policy.
    """
    factory = _find(name)
    try:
        policy = factory(**(options or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy {name!r} does not take these options: {error}") from error
    if not callable(getattr(policy, "decide", None)) or not hasattr(policy, "needs"):
        raise ValueError(
            f"policy {name!r} is no policy: it needs a method decide(signals, state, now) and an "
            "attribute needs, a tuple of signal names (empty: none)"
        )
    checked: Policy = policy
    return checked


def _find(name: str) -> Any:
    module_name, _, class_name = BUILT_IN.get(name, name).partition(":")
    if class_name:
        try:
            return getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise PolicyNotFound(_unknown(name, f" ({error})")) from error
    raise PolicyNotFound(_unknown(name))


def _unknown(name: str, detail: str = "") -> str:
    names = ", ".join(sorted(BUILT_IN))
    return f"policy {name!r} is unknown{detail}; use {names}, or your own as package.module:Class"
