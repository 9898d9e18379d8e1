"""One round of the control loop: signals in, decisions and schedules out. Pure.

State is soft. A replica announces itself with the schedule it follows; a controller that has just
started adopts that and goes on from there. `now` is in seconds and must be Unix time where pins are
to outlive a controller. (epoch, version) orders schedules and changes only when their content does;
sending the same one again is a refresh.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.errors import PlanNotAllowed, UnknownReplica
from policies.decisions import Decision, Reason, Signals
from policies.guard import Guard, GuardState, Pin
from policies.vocabulary import SAFE_PLAN, Plan, Schedule

HISTORY_LENGTH = 128  # entries a replica; repeated holds share one
UNISSUED = (0, 0)  # the order of a schedule that a replica started with
MERGE_S = 15.0  # between two exchanges of what replicas have learned
FORGET_AFTER_S = 15.0  # several long polls: what is gone should not be shown as there


@dataclass(frozen=True, slots=True)
class Entry:
    """A decision as `policy explain` shows it: repeated ones are one entry with a count."""

    decision: Decision
    until_s: float
    count: int = 1


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What the loop knows of one replica."""

    url: str
    seen_at: float
    guard: GuardState
    baseline: Schedule
    """What it followed when it announced itself: where advisory mode leaves it."""
    wanted: Schedule | None = None
    issued: Schedule | None = None
    """What it should follow now (`wanted` with epoch and version); None before the first tick."""
    acknowledged: tuple[int, int] = (0, 0)
    history: tuple[Entry, ...] = ()

    @property
    def pin(self) -> Pin | None:
        return self.guard.pin

    @property
    def last(self) -> Decision | None:
        return self.history[-1].decision if self.history else None


@dataclass(frozen=True, slots=True)
class LoopState:
    """Everything the controller remembers between rounds. `epoch` names this incarnation."""

    epoch: int
    version: int = 0
    advisory: bool = False
    merged_at: float = -math.inf
    replicas: Mapping[str, ReplicaState] = field(default_factory=dict)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """What each replica should follow; a replica without an entry keeps what it has."""
        return {name: r.issued for name, r in self.replicas.items() if r.issued is not None}


def tick(
    signals: Mapping[str, Signals], policy: Guard, state: LoopState, now: float
) -> tuple[dict[str, Decision], LoopState]:
    """One round: a decision for every replica, and the state whose `schedules` are to be sent."""
    # 1. Forget replicas that no longer call.
    replicas, version = dict(forget_silent(state, now).replicas), state.version
    decisions: dict[str, Decision] = {}
    # 2. Let replicas learn from each other.
    if is_merging := now - state.merged_at >= MERGE_S:
        guards = policy.merge({name: replica.guard for name, replica in replicas.items()}, now)
        replicas = {n: replace(replica, guard=guards[n]) for n, replica in replicas.items()}
    for name, replica in replicas.items():
        # 3. Decide; a replica without signals is decided on, too.
        decision, guard = policy.decide(signals.get(name) or Signals(name), replica.guard, now)
        decisions[name] = decision = _marked(decision, state.advisory)
        # 4. Issue a new version where the schedule to follow has changed.
        wanted = _to_follow(decision, replica)
        issued, version = _stamp(wanted, replica, state.epoch, version)
        # 5. Remember what was decided, and why.
        history = _remember(replica.history, decision)
        replicas[name] = replace(
            replica, guard=guard, wanted=wanted, issued=issued, history=history
        )
    merged_at = now if is_merging else state.merged_at
    return decisions, replace(state, version=version, replicas=replicas, merged_at=merged_at)


def heartbeat(
    state: LoopState,
    policy: Guard,
    name: str,
    url: str,
    schedule: Schedule,
    now: float,
    pin: Pin | None = None,
) -> LoopState:
    """Takes a replica's call: registration at first, sign of life and acknowledgement after that.

    `schedule` is what the replica follows, `pin` the pin it was last told of, so that a controller
    that has just started knows of it. The epoch is raised above any that a replica reports: what
    this controller issues must be newer.
    """
    known = state.replicas.get(name)
    if known is None:
        guard = policy.adopt(schedule) if schedule.order > UNISSUED else GuardState()
        guard.pin = pin if pin is not None and now < pin.expires_at else None
        # What a pin left behind is no state to go back to.
        baseline = schedule if pin is None else Schedule.pinned(SAFE_PLAN)
        known = ReplicaState(url, now, guard, baseline)
        state = replace(state, epoch=max(state.epoch, schedule.epoch + 1))
    known = replace(known, url=url, seen_at=now, acknowledged=schedule.order)
    return _with(state, name, known)


def pin(
    state: LoopState, policy: Guard, name: str, plan: Plan, now: float, ttl_s: float
) -> LoopState:
    """Pins a replica to a plan for `ttl_s` seconds, from the next tick on.

    Raises:
        UnknownReplica: no replica of that name has registered.
        PlanNotAllowed: the plan is not among those that the configuration allows.
    """
    replica = _known(state, name)
    if not policy.allows(plan):
        raise PlanNotAllowed.of(plan, policy.rules.allowed)
    pinned = replace(replica.guard, pin=Pin(plan, now + ttl_s))
    return _with(state, name, replace(replica, guard=pinned))


def unpin(state: LoopState, name: str) -> LoopState:
    """Ends a pin from the next tick on; without a pin it does nothing.

    Raises:
        UnknownReplica: no replica of that name has registered.
    """
    replica = _known(state, name)
    return _with(state, name, replace(replica, guard=replace(replica.guard, pin=None)))


def forget(state: LoopState, name: str) -> LoopState:
    """Drops a replica that has said goodbye."""
    return replace(state, replicas={n: r for n, r in state.replicas.items() if n != name})


def forget_silent(state: LoopState, now: float) -> LoopState:
    """Drops replicas that have not called for `FORGET_AFTER_S`."""
    silent = {n for n, r in state.replicas.items() if now - r.seen_at > FORGET_AFTER_S}
    if not silent:
        return state
    return replace(state, replicas={n: r for n, r in state.replicas.items() if n not in silent})


def explain(state: LoopState, name: str, limit: int = HISTORY_LENGTH) -> tuple[Entry, ...]:
    """The latest decisions for a replica, newest first.

    Raises:
        UnknownReplica: no replica of that name has registered.
    """
    return _known(state, name).history[::-1][:limit]


def _known(state: LoopState, name: str) -> ReplicaState:
    try:
        return state.replicas[name]
    except KeyError:
        raise UnknownReplica.named(name, state.replicas) from None


def _with(state: LoopState, name: str, replica: ReplicaState) -> LoopState:
    return replace(state, replicas={**state.replicas, name: replica})


def _marked(decision: Decision, advisory: bool) -> Decision:
    # A pin is an operator's order, not a policy's opinion: advisory mode carries it out.
    if advisory and decision.reason is not Reason.PINNED:
        return decision._replace(advisory=True)
    return decision


def _to_follow(decision: Decision, replica: ReplicaState) -> Schedule | None:
    """The schedule to issue; None leaves a replica alone that no controller has touched yet."""
    if not decision.advisory:
        return decision.schedule
    is_untouched = replica.issued is None and replica.baseline.order == UNISSUED
    return None if is_untouched else replica.baseline


def _stamp(
    wanted: Schedule | None, replica: ReplicaState, epoch: int, version: int
) -> tuple[Schedule | None, int]:
    """The schedule to issue and the last version used: a new one only for new content."""
    if wanted is None:
        return None, version
    issued = replica.issued
    if issued is not None and issued.epoch == epoch and wanted == replica.wanted:
        return issued, version
    return replace(wanted, epoch=epoch, version=version + 1), version + 1


def _remember(history: tuple[Entry, ...], decision: Decision) -> tuple[Entry, ...]:
    if history and _is_repeat(history[-1].decision, decision):
        last = history[-1]
        # The run keeps when it began; what was seen and predicted is the latest.
        latest = decision._replace(time_s=last.decision.time_s)
        return (*history[:-1], Entry(latest, decision.time_s, last.count + 1))
    return (*history, Entry(decision, decision.time_s))[-HISTORY_LENGTH:]


def _is_repeat(last: Decision, decision: Decision) -> bool:
    return (
        last.reason is decision.reason
        and last.plan == decision.plan
        and last.schedule == decision.schedule
        and last.advisory == decision.advisory
    )
