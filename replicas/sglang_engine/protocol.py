"""What crosses between a replica and the plugin inside its SGLang process. No SGLang import here.

Both sides share a private directory, named by `TRIMODE_CONTROL_DIR`, and two files in it:

    schedule.json   replica -> plugin   `Schedule.to_dict()`; looked at before every step
    report.json     plugin -> replica   `PluginReport.to_dict()`; every `REPORT_INTERVAL_S`

Each file is replaced as a whole, so a reader never sees half of one. Reading or writing them takes
microseconds and no scheduler step, works while a step is long or none is running, and outlives the
process: a restarted SGLang finds its schedule. Writing the same schedule again is a refresh: it
restarts the time to live.

No report, or one whose `age_s` grows, means that the plugin does not run: SGLang goes on without a
plugin that failed to load, so a health check must look.

A request carries its plan, quality and seed in `sampling_params.custom_params` (`RequestOptions`),
and each output token's plan comes back in `meta_info[PLAN_KEY]` (None: yielded by prefill).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.vocabulary import BLOCK_LENGTHS, Plan, Quality, Schedule
from replicas.engine import PlanCounters

SGLANG_VERSION = "0.5.23"
"""The release whose seams the plugin uses; any other is refused at start."""

ALGORITHM = "TRIMODE"
ATTENTION_BACKENDS = ("triton", "torch_native")
"""Those that the plugin can tell which keys a block sees."""
CONTROL_DIR_VARIABLE = "TRIMODE_CONTROL_DIR"
GRAPHS_VARIABLE = "TRIMODE_CUDA_GRAPHS"
"""1: the plugin records its passes and replays them."""
SCHEDULE_FILE = "schedule.json"
REPORT_FILE = "report.json"
REPORT_INTERVAL_S = 0.2
PLAN_KEY = "trimode_plan"
"""Key of `meta_info` under which each output token's plan comes back, one string or None each."""

_OPTIONS_KEY = "trimode"
_FORMAT = 1


class ProtocolError(ValueError):
    """Something that crossed cannot be understood; the message names the value and the remedy."""


def launch_flags(max_block_length: int = max(BLOCK_LENGTHS)) -> list[str]:
    """What `sglang.launch_server` needs for the plugin; longer blocks than this cannot be used."""
    if max_block_length not in BLOCK_LENGTHS:
        raise ProtocolError(f"block length {max_block_length} is not one of {BLOCK_LENGTHS}")
    return [
        *("--speculative-algorithm", ALGORITHM),
        *("--speculative-num-draft-tokens", str(max_block_length)),
        *("--speculative-num-steps", "1"),
        *("--speculative-eagle-topk", "1"),
        "--disable-overlap-schedule",
        # SGLang would capture one width.
        "--disable-cuda-graph",
    ]


def gpu_flags() -> list[str]:
    """What else it needs on a GPU. Not run on one."""
    return ["--device", "cuda", "--attention-backend", "triton"]


def cpu_flags() -> list[str]:
    """What else it needs where there is no GPU; `CPU_ENVIRONMENT` goes with it."""
    return [
        *("--device", "cpu", "--dtype", "float32"),
        *("--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
        *("--grammar-backend", "none"),
        "--disable-cuda-graph",
        "--sleep-on-idle",  # an idle scheduler would keep a core busy asking for work
    ]


CPU_ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK": "1"}


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a request says to the plugin. `seed` None: its noise is drawn at random."""

    plan: Plan | None = None
    quality: Quality = Quality.ANY
    seed: int | None = None

    def to_custom_params(self) -> dict[str, Any]:
        """The value of `sampling_params.custom_params`."""
        plan = None if self.plan is None else str(self.plan)
        return {_OPTIONS_KEY: {"plan": plan, "quality": self.quality.value, "seed": self.seed}}

    @classmethod
    def from_custom_params(cls, params: Mapping[str, Any] | None) -> RequestOptions:
        """Reads what `to_custom_params` writes; a request that says nothing follows the schedule.

        Raises:
            ProtocolError: an unknown key, plan or quality, or a plan that breaks the quality.
        """
        fields = (params or {}).get(_OPTIONS_KEY)
        if fields is None:
            return cls()
        if not isinstance(fields, Mapping) or fields.keys() - {"plan", "quality", "seed"}:
            raise ProtocolError(
                f"custom_params.trimode {fields!r} must hold plan, quality and seed only"
            )
        plan, seed = fields.get("plan"), fields.get("seed")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise ProtocolError(f"seed {seed!r} must be an integer")
        try:
            options = cls(
                None if plan is None else Plan.parse(plan),
                Quality(fields.get("quality", Quality.ANY)),
                seed,
            )
        except (ValueError, AttributeError) as error:
            raise ProtocolError(f"custom_params.trimode {fields!r}: {error}") from None
        if options.plan is not None and not options.plan.serves(options.quality):
            raise ProtocolError(
                f"plan {options.plan} does not keep to quality {options.quality.value}; ask for "
                f"quality {Quality.ANY.value}, or for another plan"
            )
        return options


@dataclass(frozen=True, slots=True)
class Switches:
    """How often the governor changed from one plan to another for one reason."""

    before: Plan
    after: Plan
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class PluginReport:
    """The plugin's view of its scheduler process; counters are totals since that process started.

    `epoch` and `version` name the schedule in force, and `refusal` says why the last one that came
    was not taken, if so. `written_at` is wall-clock time. `decoding`, `context_tokens` and the like
    are as of the last step; the rest, from `steps` on, means what it means in `EngineReport`.
    """

    plugin_version: str
    sglang_version: str
    pid: int
    written_at: float
    max_block_length: int
    plan: Plan
    epoch: int
    version: int
    schedule_age_s: float
    refusal: str | None = None
    decoding: int = 0
    prefilling: int = 0
    waiting: int = 0
    context_tokens: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    switches: tuple[Switches, ...] = ()
    plans: Mapping[Plan, PlanCounters] = field(default_factory=dict)
    probes: Mapping[Plan, int] = field(default_factory=dict)
    predicted: Mapping[Plan, float] = field(default_factory=dict)
    distrusts: int = 0

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - self.written_at)

    def to_dict(self) -> dict[str, Any]:
        fields = _fields(self)
        fields["format"] = _FORMAT
        fields["plan"] = str(self.plan)
        fields["switches"] = [
            {**_fields(s), "before": str(s.before), "after": str(s.after)} for s in self.switches
        ]
        fields["plans"] = {str(plan): _fields(c) for plan, c in self.plans.items()}
        for name in ("probes", "predicted"):
            fields[name] = {str(plan): value for plan, value in fields[name].items()}
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PluginReport:
        values = dict(fields)
        if (found := values.pop("format", None)) != _FORMAT:
            raise ProtocolError(f"report format {found!r} is not {_FORMAT}; install one version")
        values["plan"] = Plan.parse(values["plan"])
        values["switches"] = tuple(
            Switches(Plan.parse(s["before"]), Plan.parse(s["after"]), s["reason"], s["count"])
            for s in values["switches"]
        )
        values["plans"] = {
            Plan.parse(plan): PlanCounters(**{**c, "accepted": tuple(c["accepted"])})
            for plan, c in values["plans"].items()
        }
        for name in ("probes", "predicted"):
            values[name] = {Plan.parse(plan): value for plan, value in values[name].items()}
        return cls(**values)


def write_schedule(directory: Path, schedule: Schedule) -> None:
    """Puts a schedule where the plugin finds it before its next step."""
    _replace(directory / SCHEDULE_FILE, schedule.to_dict())


def read_schedule(directory: Path) -> Schedule | None:
    """The schedule last written, None if there is none yet.

    Raises:
        ProtocolError: the file holds something else.
    """
    fields = _read(directory / SCHEDULE_FILE)
    try:
        return None if fields is None else Schedule.from_dict(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"{directory / SCHEDULE_FILE}: not a schedule: {error}") from None


def write_report(directory: Path, report: PluginReport) -> None:
    _replace(directory / REPORT_FILE, report.to_dict())


def read_report(directory: Path) -> PluginReport | None:
    """The plugin's latest report, None as long as the plugin has not started.

    Raises:
        ProtocolError: the file holds something else, another version's report for one.
    """
    fields = _read(directory / REPORT_FILE)
    try:
        return None if fields is None else PluginReport.from_dict(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"{directory / REPORT_FILE}: not a report: {error!r}") from None


def _fields(value: PluginReport | Switches | PlanCounters) -> dict[str, Any]:
    """Like `asdict`, whose copies of everything would be most of what a report costs."""
    return {name: getattr(value, name) for name in value.__slots__}


def _replace(path: Path, fields: Mapping[str, Any]) -> None:
    # The process id keeps two writers' drafts apart; readers only ever open the final name.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(fields), encoding="utf-8")
    draft.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ProtocolError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"{path}: expected a JSON object")
    return value
