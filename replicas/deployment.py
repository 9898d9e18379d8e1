"""The Serve deployment: HTTP in, token stream out, and a thread that follows the controller.

The replica is the HTTP ingress itself, so a token crosses one process boundary on its way out. What
its HTTP surface looks like is the caller's: `api` builds it once the engine is up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from policies.step_time import Profile, read_profile
from policies.vocabulary import Schedule
from replicas.control_link import Answer, Call, ControlLink
from replicas.engine import Engine
from replicas.governor import Change
from replicas.metrics import ReplicaMetrics
from replicas.metrics_page import serve_page
from replicas.switch_times import TellsSwitchTimes

_log = logging.getLogger(__name__)

_ENGINES = {
    "torch": "replicas.deployment:open_torch_engine",
    "sglang": "replicas.deployment:open_sglang_engine",
}
POLL_TIMEOUT_S = 10.0  # for a call that the controller holds for two seconds at most


class ServedEngine(Engine, Protocol):
    """An engine that can tell which changes of plan it made, and why."""

    def plan_changes(self) -> Mapping[Change, int]: ...


@runtime_checkable
class KnowsStepTimes(Protocol):
    """An engine that has measured its steps, or was told what they take."""

    def profile(self) -> Profile | None: ...


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """What one replica runs. `kv_tokens` 0 takes what fits, `threads` 0 leaves it to torch.
    `profile` are its step times: `auto` measures them unless they are known, `none` does without,
    anything else is a file or the name of a shipped profile. `cuda_graphs` None leaves them to
    the engine.

    `engine` is a known name, or `package.module:function` that takes these options and gives an
    engine, not started yet, and a tokenizer.
    """

    model: str
    served_model_name: str
    engine: str = "torch"
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    cuda_graphs: bool | None = None
    max_model_len: int = 2048
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_waiting: int = 1024
    kv_tokens: int = 0
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    ttft_target_s: float | None = None
    tpot_target_s: float | None = None
    initial_schedule: Schedule | None = None
    profile: str = "none"
    sglang_python: str = ""
    sglang_args: tuple[str, ...] = ()


class Replica:
    """One model behind HTTP.

    Args:
        options: what to run.
        api: builds the ASGI application over this replica's `engine`, `tokenizer`, `metrics`,
            `controller` and `is_ready`.
        controller: where to ask for schedules.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, options: ReplicaOptions, api: Callable[[Any], Any], controller: DeploymentHandle
    ) -> None:
        self.name = serve.get_replica_context().replica_tag
        self.controller = controller
        self._api = api
        started = time.monotonic()
        self.engine, self.tokenizer = await asyncio.to_thread(open_engine, options)
        await self.engine.start()
        self.load_s = time.monotonic() - started
        timed = self.engine if isinstance(self.engine, TellsSwitchTimes) else None
        self.metrics = ReplicaMetrics(
            self.name,
            options.served_model_name,
            self.engine,
            switched=self.engine.plan_changes,
            switched_at=None if timed is None else timed.plan_change_times,
            ttft_target_s=options.ttft_target_s,
            tpot_target_s=options.tpot_target_s,
        )
        self.metrics_url = self._serve_metrics(options.metrics_host, options.metrics_port)
        if isinstance(self.engine, KnowsStepTimes):
            profile = self.engine.profile()
        else:
            profile = unmeasured_profile(options)
        self._link = ControlLink(
            self.name, self.metrics_url, self.engine, self._poll, profile=profile
        )
        self._link.start()
        self._is_leaving = False  # last: what `__del__` ends is all there now

    def __serve_build_asgi_app__(self) -> Any:
        return self._api(self)

    def is_ready(self) -> bool:
        return not self._is_leaving

    def check_health(self) -> None:
        """Serve asks, and replaces the replica when this raises."""
        self.engine.check_health()
        if not self._link.is_alive():
            raise RuntimeError("the control thread has ended")

    async def __del__(self) -> None:
        # Serve awaits this once the replica's requests have ended, or their time to do so has.
        if not hasattr(self, "_is_leaving"):
            return  # ended while it was loading
        self._is_leaving = True
        self._link.stop()
        self.controller.leave.remote(self.name)
        self._metrics_server.shutdown()
        await self.engine.stop()

    def _serve_metrics(self, host: str, port: int) -> str:
        self._metrics_server = serve_page(host, port, self.metrics.registry, "metrics_port")
        return metrics_url(host, self._metrics_server.server_port)

    def _poll(self, call: Call) -> Answer:
        answer: Answer = self.controller.poll.remote(call).result(timeout_s=POLL_TIMEOUT_S)
        return answer


ReplicaDeployment = serve.deployment(name="replica")(serve.ingress()(Replica))


def metrics_url(host: str, port: int) -> str:
    """Where others reach a page bound to `host`: the node's address if it is bound to all."""
    reachable = ray.util.get_node_ip_address() if host in ("", "0.0.0.0", "::") else host
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}/metrics"


def open_engine(options: ReplicaOptions) -> tuple[ServedEngine, Any]:
    """The engine, not started yet, and the tokenizer."""
    name = _ENGINES.get(options.engine, options.engine)
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"engine {name!r} is not known; use {', '.join(_ENGINES)}")
    opened: tuple[ServedEngine, Any] = getattr(import_module(module), function)(options)
    return opened


def unmeasured_profile(options: ReplicaOptions) -> Profile | None:
    """Step times of an engine that does not measure itself: those of the profile that is named.
    Nobody can tell here whether that is of this machine, so it is taken as it is."""
    if options.profile == "auto":
        _log.info("engine %s measures no step times; name a profile to have some", options.engine)
    return None if options.profile in ("auto", "none") else read_profile(options.profile)


def open_torch_engine(options: ReplicaOptions) -> tuple[ServedEngine, Any]:
    """The embedded engine. torch takes seconds to import, and only replicas need it."""
    from replicas.profiles import profile_for
    from replicas.torch_engine import loader
    from replicas.torch_engine.engine import EngineLimits, TorchEngine

    def prepare(engine: TorchEngine) -> None:
        engine.profile = profile_for(engine, options.model, options.profile)

    limits = EngineLimits(
        max_context_tokens=options.max_model_len,
        max_sequences=options.max_num_seqs,
        kv_tokens=options.kv_tokens,
        max_step_tokens=options.max_num_batched_tokens,
        max_waiting=options.max_waiting,
    )
    load = loader.LoadOptions(
        options.device, options.dtype, options.threads, options.cuda_graphs is not False, limits
    )
    engine, checkpoint = loader.open_engine(options.model, load, options.initial_schedule, prepare)
    return engine, checkpoint.tokenizer


def open_sglang_engine(options: ReplicaOptions) -> tuple[ServedEngine, Any]:
    """An SGLang server as a child of the replica."""
    from replicas.sglang_engine import loader
    from replicas.sglang_engine.engine import Limits

    limits = Limits(options.max_model_len, options.max_num_seqs, options.max_waiting)
    launch = loader.LaunchOptions(
        model=options.model,
        limits=limits,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        max_step_tokens=options.max_num_batched_tokens,
        kv_tokens=options.kv_tokens,
        cuda_graphs=options.cuda_graphs is True,
        python=options.sglang_python,
        arguments=options.sglang_args,
    )
    return loader.open_engine(launch, options.initial_schedule)
