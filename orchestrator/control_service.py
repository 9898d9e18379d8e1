"""The controller without Ray: collects signals, ticks, answers long polls and operators.

All state is in one `LoopState` value and is soft: what a controller that has just started must
know, the replicas tell it within a second. One event loop owns it; other threads may only read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from orchestrator import loop
from orchestrator.loop import Entry, LoopState, ReplicaState
from orchestrator.metrics import ControllerMetrics
from orchestrator.signals import SignalSource
from policies.decisions import Signals
from policies.guard import Guard
from policies.vocabulary import Plan
from replicas.control_link import Answer, Call

HOLD_POLL_S = 2.0  # how long a call with nothing to answer is held; also a sign of life's period
LONGEST_ROUND_S = 30.0  # a round that takes longer is stuck: the source bounds its requests

decision_log = logging.getLogger("trimode.decisions")


@dataclass(frozen=True, slots=True)
class Told:
    """What a replica said last."""

    call: Call
    at: float


class ControlService:
    """Implements `orchestrator.api.Control` and the replicas' long poll.

    Args:
        policy: the guarded policy.
        source: where signals come from.
        interval_s: seconds between two rounds.
        advisory: decide and show, but do not apply.
        describe_policy: what `policy()` answers besides its name.
        extra_targets: metrics pages besides the replicas', for service discovery.
        clock: Unix time.
    """

    def __init__(
        self,
        policy: Guard,
        source: SignalSource,
        *,
        interval_s: float = 1.0,
        advisory: bool = False,
        describe_policy: Mapping[str, Any] | None = None,
        extra_targets: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state = LoopState(epoch=time.time_ns(), advisory=advisory)
        self.signals: Mapping[str, Signals] = {}
        self.metrics = ControllerMetrics(policy.name, lambda: source.errors)
        self._policy, self._source, self._interval_s = policy, source, interval_s
        self._describe_policy = dict(describe_policy or {})
        self.extra_targets = tuple(extra_targets)
        self._clock = clock
        self._told: dict[str, Told] = {}
        self._changed = asyncio.Event()
        self._round_began = clock()

    # -- the loop -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Rounds for ever."""
        while True:
            began = time.perf_counter()
            self._round_began = self._clock()
            self.state = loop.forget_silent(self.state, self._clock())
            urls = {name: replica.url for name, replica in self.state.replicas.items()}
            self.signals = self._profiled(await self._source.collect(urls, self._clock()))
            self._decide(began)
            took_s = time.perf_counter() - began
            await asyncio.sleep(max(0.0, self._interval_s - took_s))

    def check_health(self) -> None:
        """Raises if rounds no longer end."""
        if self._clock() - self._round_began > LONGEST_ROUND_S + self._interval_s:
            raise RuntimeError(f"a round of the control loop takes over {LONGEST_ROUND_S:g} s")

    async def close(self) -> None:
        await self._source.close()

    def _decide(self, began: float | None = None) -> None:
        """Decides on what is known now; `began` is when collecting it did."""
        before, now = self.state, self._clock()
        start = time.perf_counter() if began is None else began
        decisions, self.state = loop.tick(self.signals, self._policy, before, now)
        took_s = time.perf_counter() - start
        self.metrics.observe_tick(decisions, self.signals, self.state, now, took_s)
        self._told = {n: told for n, told in self._told.items() if n in self.state.replicas}
        for name, replica in self.state.replicas.items():
            known = before.replicas.get(name)
            if replica.history and (known is None or _is_news(known, replica)):
                issued = replica.issued.order if replica.issued is not None else None
                row = replica.history[-1].decision.to_dict() | {"issued": issued}
                decision_log.info(json.dumps(row))
        self._wake_polls()

    def _profiled(self, signals: Mapping[str, Signals]) -> dict[str, Signals]:
        """With what a replica has told of its machine, which is no metric."""
        told = self._told
        return {
            name: replace(known, profile=told[name].call.profile) if name in told else known
            for name, known in signals.items()
        }

    def _wake_polls(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # -- the replicas' side ---------------------------------------------------------------------

    async def poll(self, call: Call) -> Answer:
        """A replica's call: answered at once if the replica is behind, else when there is news."""
        name, now = call.replica, self._clock()
        is_new = name not in self.state.replicas
        self.state = loop.heartbeat(
            self.state, self._policy, name, call.metrics_url, call.schedule, now, call.pin
        )
        self._told[name] = Told(self._with_known_profile(call), now)
        if is_new:
            known = self.signals.get(name) or Signals(name)
            self.signals = {**self.signals, **self._profiled({name: known})}
            self._decide()
        deadline = time.monotonic() + HOLD_POLL_S
        while self._is_current(call) and (left_s := deadline - time.monotonic()) > 0:
            changed = self._changed
            try:
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                break
        return self._answer(name)

    def _with_known_profile(self, call: Call) -> Call:
        """The call with the profile object of the last one, if it is the same: what has been
        multiplied out for a profile is found by its identity."""
        for told in self._told.values():
            if call.profile is not None and told.call.profile == call.profile:
                return replace(call, profile=told.call.profile)
        return call

    async def leave(self, name: str) -> None:
        """A replica ends; it will not call again."""
        self.state = loop.forget(self.state, name)
        self._told.pop(name, None)

    def _answer(self, name: str) -> Answer:
        replica = self.state.replicas.get(name)
        return Answer(None, None) if replica is None else Answer(replica.issued, replica.pin)

    def _is_current(self, call: Call) -> bool:
        answer = self._answer(call.replica)
        if answer.schedule is None:
            return True
        return answer.schedule.order == call.schedule.order and answer.pin == call.pin

    # -- the operators' side (orchestrator.api.Control) -----------------------------------------

    async def replicas(self) -> Sequence[Mapping[str, Any]]:
        now = self._clock()
        return [self._row(name, replica, now) for name, replica in self.state.replicas.items()]

    async def decisions(self, replica: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
        names = list(self.state.replicas) if replica is None else [replica]
        entries = [entry for name in names for entry in loop.explain(self.state, name)]
        entries.sort(key=lambda entry: entry.until_s, reverse=True)
        return [_entry_row(entry) for entry in entries[:limit]]

    async def policy(self) -> Mapping[str, Any]:
        rules = self._policy.rules
        return {
            "policy": self._policy.name,
            "advisory": self.state.advisory,
            "epoch": self.state.epoch,
            "interval_s": self._interval_s,
            "needs": list(self._policy.needs),
            "allowed": sorted(map(str, rules.allowed)),
            "ttft_target_s": rules.ttft_target_s,
            "tpot_target_s": rules.tpot_target_s,
            "dwell_s": rules.dwell_s,
            "stale_after_s": rules.stale_after_s,
            "hold_s": rules.hold_s,
            "ttl_s": rules.ttl_s,
            **self._describe_policy,
        }

    async def pin(self, replica: str | None, plan: Plan, ttl_s: float) -> Mapping[str, Any]:
        now = self._clock()
        names = self._names(replica)
        for name in names:
            self.state = loop.pin(self.state, self._policy, name, plan, now, ttl_s)
        self._decide()  # not at the next round: an operator waits for it
        return {"plan": str(plan), "replicas": names, "expires_at": now + ttl_s}

    async def unpin(self, replica: str | None) -> Mapping[str, Any]:
        names = self._names(replica)
        for name in names:
            self.state = loop.unpin(self.state, name)
        self._decide()
        return {"replicas": names}

    async def targets(self) -> Sequence[Mapping[str, Any]]:
        # No `replica` label: the series have one, which a target's would push aside.
        rows = [(replica.url, "replica") for replica in self.state.replicas.values()]
        rows += [(url, "controller") for url in self.extra_targets]
        return [
            {"targets": [urlsplit(url).netloc], "labels": {"component": component}}
            for url, component in rows
        ]

    def _names(self, replica: str | None) -> list[str]:
        return list(self.state.replicas) if replica is None else [replica]

    def _row(self, name: str, replica: ReplicaState, now: float) -> dict[str, Any]:
        told, signals = self._told[name], self.signals.get(name, Signals(name))
        report, issued, last = told.call.report, replica.issued, replica.last
        return {
            "replica": name,
            "metrics_url": replica.url,
            "seen_s_ago": now - told.at,
            "plan": str(_plan_in_use(told.call, signals)),
            "is_current": issued is not None and replica.acknowledged == issued.order,
            "schedule": told.call.schedule.summary(),
            "pin": _pin_row(replica, now),
            "decision": None if last is None else last.to_dict(),
            "switches": report.switches,
            "signals": {
                key: {"value": reading.value, "age_s": reading.age_s}
                for key, reading in signals.readings().items()
            },
            "plans": _plan_rows(signals),
        }


def _plan_in_use(call: Call, signals: Signals) -> Plan:
    """An idle replica takes no steps and so picks no plan; it would use its schedule's first."""
    decoding = signals.decoding.value
    if not (call.report.decoding if decoding is None else decoding):
        return call.schedule.plan_at(0)
    return signals.plan or call.report.plan


def _pin_row(replica: ReplicaState, now: float) -> dict[str, Any] | None:
    pin = replica.pin
    if pin is None:
        return None
    expires = {"expires_at": pin.expires_at, "expires_in_s": max(0.0, pin.expires_at - now)}
    return {"plan": str(pin.plan), **expires}


def _plan_rows(signals: Signals) -> dict[str, dict[str, float | None]]:
    return {
        str(plan): {
            "tokens_per_forward": used.tokens_per_forward.value,
            "accepted_length": used.accepted_length.value,
            "step_s": used.step_s.value,
            "sequences": used.sequences.value,
        }
        for plan, used in signals.plans.items()
    }


def _entry_row(entry: Entry) -> dict[str, Any]:
    return {**entry.decision.to_dict(), "until_s": entry.until_s, "count": entry.count}


def _is_news(before: ReplicaState, after: ReplicaState) -> bool:
    """Whether the last decision is a new one, not a repeated one counted up."""
    return after.history[-1].count == 1 and (
        not before.history or after.history[-1].decision is not before.history[-1].decision
    )
