"""A recorded-looking hour of two replicas and their controller, the same at every run.

The numbers are made up; everything else is the product's own: the governor picks the plans, and the
exporters of the replicas and of the controller write the series. So a name, a label or a reason
that changes there changes here, and a dashboard that still asks for the old one comes back empty.
replica-0's governor knows what plans are worth, replica-1's follows bands.

What happens, in minutes: load rises and falls throughout; 20 to 25 an operator pins replica-1; at
32 the controller dies, schedules expire, and a new one starts; 40 to 46 acceptance collapses on
replica-0; 50 to 53 replica-1 is overloaded.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from dashboards.simulation import STEP_S, Hardware, SimulatedEngine, calibrated
from orchestrator.loop import LoopState, ReplicaState
from orchestrator.metrics import ControllerMetrics
from orchestrator.signals import ERROR_KINDS
from policies.decisions import Decision, Reading, Reason, Signals
from policies.guard import GuardState
from policies.vocabulary import AR, Schedule, all_plans
from replicas.engine import Delta, Request, SamplingParams
from replicas.governor import Governor
from replicas.metrics import ReplicaMetrics

SPAN_S, SCRAPE_S = 3900, 15
JOB = "trimode"
TARGETS = {"ttft": 0.5, "tpot": 0.05}
TTL_S = 30.0
BANDS = {
    "replica-0": "4=self_speculation/32,12=self_speculation/16,28=self_speculation/4,ar",
    "replica-1": "6=diffusion/16,16=diffusion/8,28=self_speculation/8,ar",
}
WORTH = {"replica-0": calibrated()}
PIN = (1200, 1500)
OUTAGE = (1920, 2000)
COLLAPSE = (2400, 2760)
OVERLOAD = (3000, 3180)

Sample = tuple[str, Mapping[str, str], float]


def _during(span: tuple[int, int], at: float) -> bool:
    return span[0] <= at < span[1]


@dataclass(slots=True)
class Trace:
    """Runs the hour; `scrapes` yields the series of every scrape, in order of time."""

    start: float
    random: random.Random = field(default_factory=lambda: random.Random(7))
    engines: dict[str, SimulatedEngine] = field(default_factory=dict)
    exporters: dict[str, ReplicaMetrics] = field(default_factory=dict)
    controller: ControllerMetrics | None = None
    epoch: int = 0
    version: int = 0
    served: int = 0
    errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ERROR_KINDS, 0))

    def __post_init__(self) -> None:
        for name in BANDS:
            engine = SimulatedEngine(name, Governor(self._schedule(name, 0.0), self.start))
            self.engines[name] = engine
            self.exporters[name] = ReplicaMetrics(
                name,
                "demo",
                engine,  # type: ignore[arg-type]  # only what the exporter asks for
                switched=lambda governor=engine.governor: governor.switched,  # type: ignore[misc]
                switched_at=lambda governor=engine.governor: governor.switched_at,  # type: ignore[misc]
                ttft_target_s=TARGETS["ttft"],
                tpot_target_s=TARGETS["tpot"],
            )

    def scrapes(self) -> Iterator[tuple[float, list[Sample]]]:
        for at in range(0, SPAN_S + 1, STEP_S):
            self._step(float(at))
            if at % SCRAPE_S == 0:
                yield self.start + at, list(self._pages(float(at)))

    def _step(self, at: float) -> None:
        now = self.start + at
        if _during(OUTAGE, at):
            self.controller = None
        elif self.controller is None:
            self.epoch, self.version = int(now * 1e9), 0
            self.controller = ControllerMetrics("predictive", lambda: self.errors)
        for index, (name, engine) in enumerate(self.engines.items()):
            collapsed = index == 0 and _during(COLLAPSE, at)
            engine.hardware.acceptance = 0.3 if collapsed else 0.8
            engine.step(now, self._load(index, at))
            self._serve(engine, self.exporters[name])
        if self.controller is not None:
            self._decide(at, self.controller)

    def _load(self, index: int, at: float) -> int:
        if index == 1 and _during(OVERLOAD, at):
            return 70
        wave = 18 + 17 * math.sin(at / 260 + 2 * index) + 4 * math.sin(at / 41)
        return max(0, round(wave + self.random.gauss(0, 1)))

    def _schedule(self, name: str, at: float) -> Schedule:
        fields = {"ttl_s": TTL_S, "epoch": self.epoch, "version": self.version, "hysteresis": 2}
        if name == "replica-1" and _during(PIN, at):
            return Schedule.pinned(AR, **fields)
        rows = [band.rpartition("=") for band in BANDS[name].split(",")]
        bands = [{"up_to": int(up_to) if up_to else None, "plan": p} for up_to, _, p in rows]
        return replace(Schedule.from_dict({"bands": bands, **fields}), worth=WORTH.get(name))

    def _serve(self, engine: SimulatedEngine, exporter: ReplicaMetrics) -> None:
        """Some requests from arrival to end, and now and then one that is refused."""
        requests, plan = exporter.requests, engine.governor.plan
        per_token = engine.decoding / engine.hardware.tokens_per_s(plan, engine.decoding or 1)
        for _ in range(1 + engine.decoding // 12 if engine.decoding else 0):
            self.served += 1
            request = Request(f"r{self.served}", (1,), SamplingParams())
            queued = 0.02 * engine.waiting * self.random.random()
            first = queued + self.random.lognormvariate(-2.6, 0.5)
            gap = per_token * self.random.lognormvariate(0, 0.25)
            tokens, block = self.random.randint(20, 120), plan.block_length
            requests.queued(request)
            requests.first_token(request, first)
            requests.commit(request, Delta("", (1,), "", None, queued_s=queued), first)
            for _ in range(3):
                requests.commit(request, Delta("", (1,) * block, "", plan), gap * block)
            cause = "stop" if self.random.random() < 0.6 else "length"
            requests.finished(request, cause, first + gap * (tokens - 1), tokens)
            engine.finished = {**engine.finished, cause: engine.finished.get(cause, 0) + 1}
            engine.prompt_tokens += 200
        if engine.waiting:
            request = Request("refused", (1,), SamplingParams())
            requests.queued(request)
            requests.finished(request, "overloaded", 0.0, 0)

    def _decide(self, at: float, controller: ControllerMetrics) -> None:
        now = self.start + at
        decisions, signals, states = {}, {}, {}
        self.errors["timeout"] += self.random.random() < 0.02
        for name, engine in self.engines.items():
            schedule = self._schedule(name, at)
            if schedule.bands != engine.governor.schedule.bands or not self.version:
                self.version += 1
            engine.governor.receive(replace(schedule, version=self.version), now)
            decisions[name] = self._decision(name, engine, schedule, at)
            signals[name] = _signals(name, engine, self.random.uniform(0.2, 1.4))
            states[name] = ReplicaState("", now, GuardState(), schedule)
        state = LoopState(self.epoch, self.version, replicas=states)
        seconds = self.random.lognormvariate(-5.0, 0.4)
        controller.observe_tick(decisions, signals, state, now, seconds)

    def _decision(
        self, name: str, engine: SimulatedEngine, schedule: Schedule, at: float
    ) -> Decision:
        # The cost model knows the usual acceptance, so a collapse shows as a drift.
        plans = [p for p in all_plans() if p.is_exact or name == "replica-1"]
        predicted = {
            plan: Hardware().tokens_per_s(plan, engine.decoding) * self.random.uniform(0.96, 1.04)
            for plan in plans
            if engine.decoding
        }
        if name == "replica-1" and _during(PIN, at):
            reason = Reason.PINNED
        elif not engine.decoding:
            reason = Reason.HOLD_IDLE
        else:
            reason = self.random.choices(
                [Reason.HOLD_STEADY, Reason.HOLD_HYSTERESIS, Reason.PREDICTED_GAIN], [8, 2, 1]
            )[0]
        plan = schedule.plan_at(engine.decoding)
        return Decision(schedule, reason, predicted=predicted, plan=plan, policy="predictive")

    def _pages(self, at: float) -> Iterator[Sample]:
        for index, exporter in enumerate(self.exporters.values()):
            target = {"job": JOB, "component": "replica", "instance": f"127.0.0.1:910{index + 1}"}
            yield "up", target, 1.0
            yield from _samples(exporter, target)
        if self.controller is not None:
            target = {"job": JOB, "component": "controller", "instance": "127.0.0.1:9100"}
            yield "up", target, 1.0
            yield from _samples(self.controller, target)


def _samples(
    exporter: ReplicaMetrics | ControllerMetrics, target: Mapping[str, str]
) -> Iterator[Sample]:
    for family in exporter.collect():
        if family.name.startswith("vllm:"):
            return  # the same numbers again; no board or rule reads them
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                yield sample.name, {**sample.labels, **target}, sample.value


def _signals(name: str, engine: SimulatedEngine, age_s: float) -> Signals:
    known = {
        "decoding": float(engine.decoding),
        "prefilling": 0.0,
        "waiting": float(engine.waiting),
        "tokens_per_s": 1000.0,
        "context_tokens": engine.decoding * 900.0,
        "kv_use": 0.5,
        "ttft_p50_s": 0.1,
        "ttft_p95_s": 0.2,
        "tpot_p50_s": 0.01 if engine.decoding else None,
        "tpot_p95_s": 0.02 if engine.decoding else None,
    }
    readings = {key: Reading(value, age_s) for key, value in known.items()}
    return Signals(name, plan=engine.governor.plan, **readings)  # type: ignore[arg-type]


def openmetrics(start: float) -> list[str]:
    """The trace as lines of OpenMetrics text."""
    body: list[str] = []
    keys: dict[tuple[str, tuple[str, ...]], str] = {}
    for now, samples in Trace(start).scrapes():
        for name, labels, value in samples:
            identity = (name, tuple(labels.values()))
            key = keys.get(identity)
            if key is None:
                text = ",".join(f'{label}="{labels[label]}"' for label in labels)
                key = keys[identity] = f"{name}{{{text}}}"
            body.append(f"{key} {value:.10g} {now:.0f}")
    return [*body, "# EOF"]
