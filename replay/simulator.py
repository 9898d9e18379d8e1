"""The event loop: arrivals, routing, replicas, controller.

arrive     a request comes and goes to the replica with the fewest in flight
advance    a replica is due: steps are done, sequences have finished, the next ones start
refill     closed loop: as many requests are added as the target has grown
tick       the controller decides for every replica
deliver    a new schedule reaches its replica
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from policies.guard import Guard, Rules
from policies.step_time import Profile
from policies.vocabulary import SAFE_PLAN, Plan, Schedule, all_plans
from replay.audit import Audited
from replay.batch import Request
from replay.contenders import Contender
from replay.controller import DELAY_S, Controller, Managed
from replay.governed import Governed
from replay.load import GRID_S, ClosedLoop, OpenLoop
from replay.oracle import Oracle
from replay.outcome import Outcome, summarise
from replay.replica import Chooser, Replica
from replay.traffic import Requests
from replay.world import World

DRAIN_S = 600.0  # after the last arrival, for what is still in flight


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contenders meet alike. `profile` is what policies are told, `world` what is true."""

    load: OpenLoop | ClosedLoop
    profile: Profile
    world: World
    traffic: Requests
    replicas: int = 1
    prefills: bool = True
    allowed: frozenset[Plan] = frozenset(plan for plan in all_plans() if plan.is_exact)
    seed: int = 0
    is_audited: bool = False

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What an oracle may choose from."""
        return tuple(p for p in all_plans() if p in self.allowed or p == SAFE_PLAN)


def run(setting: Setting, contender: Contender) -> Outcome:
    """One contender through one load."""
    simulation = _Simulation(setting, contender)
    simulation.run()
    return summarise(
        contender.label,
        simulation.replicas,
        simulation.choosers,
        simulation.finished,
        simulation.submitted,
        simulation.measured_s,
    )


class _Simulation:
    def __init__(self, setting: Setting, contender: Contender) -> None:
        self.setting = setting
        self.events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self.pushed = 0
        self.finished: list[Request] = []
        self.submitted = 0
        self.choosers: list[Chooser] = []
        self.replicas: list[Replica] = []
        self.loads = [0] * setting.replicas
        self.target = 0
        self.managed: list[Managed] = []
        self.controller: Controller | None = None
        self._add_replicas(contender)
        if contender.policy is not None:
            rules = Rules(allowed=setting.allowed, stale_after_s=max(5.0, 2 * contender.interval_s))
            guard = Guard(contender.policy, rules, contender.label)
            self.controller = Controller(guard, setting.profile, contender.interval_s, self.managed)
        self.arrivals_end_s = setting.load.duration_s
        self.measured_s = self.arrivals_end_s

    def run(self) -> None:
        load = self.setting.load
        self._tick(0.0, None)
        if isinstance(load, OpenLoop):
            self._push(float(load.trace.arrivals_s[0]), self._arrive, 0)
            self._run_until(load.duration_s + DRAIN_S)
        else:
            self._push(0.0, self._refill, 0)
            self._run_until(load.duration_s)

    def _run_until(self, end_s: float) -> None:
        events, pop = self.events, heapq.heappop
        while events and events[0][0] < end_s:
            now, _, handle, what = pop(events)
            handle(now, what)

    def _push(self, at: float, handle: Callable[[float, Any], None], what: Any) -> None:
        self.pushed += 1
        heapq.heappush(self.events, (at, self.pushed, handle, what))

    # -- events ---------------------------------------------------------------------------------

    def _arrive(self, now: float, number: int) -> None:
        trace = self.setting.load.trace
        self._submit(number, now)
        if number + 1 < len(trace):
            self._push(float(trace.arrivals_s[number + 1]), self._arrive, number + 1)

    def _refill(self, now: float, cell: int) -> None:
        load = self.setting.load
        assert isinstance(load, ClosedLoop)
        self.target = int(load.targets[cell])
        self._top_up(now)
        later = cell + 1
        while later < len(load.targets) and load.targets[later] == self.target:
            later += 1
        if later < len(load.targets):
            self._push(later * GRID_S, self._refill, later)

    def _advance(self, now: float, what: tuple[int, int]) -> None:
        index, version = what
        replica = self.replicas[index]
        if version != replica.version:
            return
        self._expect(index, replica.advance(now))
        self._collect(index)
        self._top_up(now)

    def _tick(self, now: float, _: None) -> None:
        if self.controller is None:
            return
        for managed, schedule in self.controller.tick(now):
            if now > 0.0:
                self._push(now + DELAY_S, self._deliver, (managed, schedule))
            else:  # replicas have registered before there is traffic
                self._deliver(now, (managed, schedule))
        if now < self.arrivals_end_s or any(self.loads):
            self._push(now + self.controller.interval_s, self._tick, None)

    def _deliver(self, now: float, what: tuple[Managed, Schedule]) -> None:
        managed, schedule = what
        managed.governed.governor.receive(schedule, now)

    # -- the parts ------------------------------------------------------------------------------

    def _add_replicas(self, contender: Contender) -> None:
        setting = self.setting
        for index in range(setting.replicas):
            governed = Governed(Schedule.pinned(SAFE_PLAN))
            chooser: Chooser = Oracle(setting.plans) if contender.is_oracle else governed
            if setting.is_audited:
                chooser = Audited(chooser, setting.plans)
            replica = Replica(
                f"replica-{index}",
                setting.world,
                chooser,
                setting.traffic,
                (setting.seed, index),
                prefills=setting.prefills,
            )
            self.replicas.append(replica)
            self.choosers.append(chooser)
            self.managed.append(Managed(replica, governed))

    def _top_up(self, now: float) -> None:
        while self.submitted - len(self.finished) < self.target:
            self._submit(self.submitted, now)

    def _submit(self, number: int, now: float) -> None:
        trace = self.setting.load.trace
        row = number % len(trace)
        request = Request(
            number, now, int(trace.prompts[row]), int(trace.outputs[row]), int(trace.cached[row])
        )
        self.submitted += 1
        index = self._route(number)
        self.loads[index] += 1
        if self.controller is not None:
            self.controller.wake(index, now)
        self._expect(index, self.replicas[index].submit(request, now))
        self._collect(index)

    def _route(self, number: int) -> int:
        """The replica with the fewest in flight; of several the next in turn."""
        loads, count = self.loads, len(self.loads)
        fewest, turn = min(loads), number % count
        try:
            return loads.index(fewest, turn)
        except ValueError:
            return loads.index(fewest)

    def _expect(self, index: int, due: float | None) -> None:
        if due is not None:
            self._push(due, self._advance, (index, self.replicas[index].version))

    def _collect(self, index: int) -> None:
        replica = self.replicas[index]
        if replica.finished:
            self.loads[index] -= len(replica.finished)
            self.finished += replica.finished
            replica.finished = []
