"""All wiring on one page: configuration in, Serve application out.

    serve run orchestrator:app                      the demo model, or what TRIMODE_* variables say
    serve run orchestrator:build_app model=... num_replicas=4

No `from __future__ import annotations` here: Serve takes the builder's parameter type from its
annotation, which has to be the class itself.
"""

import logging
import os
from dataclasses import dataclass
from functools import partial

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.schema import ApplicationStatusOverview

from orchestrator.api import ApiSettings, build_api
from orchestrator.app_config import AppConfig
from orchestrator.control_proxy import ControlProxy
from orchestrator.controller import ControllerDeployment
from replicas.deployment import Replica, ReplicaDeployment, ReplicaOptions
from replicas.tiny import CHECKPOINT

NAME = "trimode"
SPARE_REQUESTS = 64
"""Calls besides generation that a full replica still answers: health, metrics, control."""


def build_app(args: AppConfig) -> Application:
    """The application: a controller, and replicas that take HTTP requests themselves."""
    return bind(args, replica_options(args))


def bind(args: AppConfig, options: ReplicaOptions) -> Application:
    """`build_app` with other options for the replicas."""
    args.make_guard()  # a wrong policy is refused here, not in the controller's third start
    controller = ControllerDeployment.bind(args)
    deployment = ReplicaDeployment.options(
        num_replicas=args.num_replicas,
        # Full is for the engine to say: it answers 429, where Serve would let requests wait.
        max_ongoing_requests=args.max_sequences + args.max_waiting + SPARE_REQUESTS,
        graceful_shutdown_timeout_s=args.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        health_check_timeout_s=30,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.gpus},
        logging_config={"enable_access_log": args.access_log},
    )
    return deployment.bind(options, partial(replica_api, args.api_settings), controller)


def replica_options(args: AppConfig) -> ReplicaOptions:
    """What each replica runs."""
    return ReplicaOptions(
        model=str(CHECKPOINT) if args.is_demo else args.model,
        served_model_name=args.model_name,
        engine=args.engine,
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        cuda_graphs=args.cuda_graphs,
        max_model_len=args.max_context_tokens,
        max_num_seqs=args.max_sequences,
        max_num_batched_tokens=args.max_step_tokens,
        max_waiting=args.max_waiting,
        kv_tokens=args.kv_tokens,
        metrics_host=args.metrics_host,
        metrics_port=args.metrics_port,
        ttft_target_s=args.ttft_target_s,
        tpot_target_s=args.tpot_target_s,
        profile=args.profile,
        sglang_python=args.sglang_python or "",
        sglang_args=args.sglang_args,
    )


def replica_api(settings: ApiSettings, replica: Replica) -> FastAPI:
    """The HTTP surface of one replica, built in its process."""
    return build_api(
        replica.engine,
        replica.tokenizer,
        settings,
        observer=replica.metrics.requests,
        registry=replica.metrics.registry,
        control=ControlProxy(replica.controller),
        is_ready=replica.is_ready,
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a launched application is; `failure` is what Serve says went wrong, or empty."""

    ready: int
    wanted: int
    is_running: bool
    failure: str


def connect(address: str | None, *, quiet: bool = True) -> bool:
    """Joins the Ray cluster at `address`, or the one that runs here; else starts one of this
    process's own. True if it was started."""
    options = {"namespace": "serve", "log_to_driver": not quiet, "logging_level": "warning"}
    try:
        ray.init(address=address or "auto", **options)
    except ConnectionError:
        if address is not None:
            raise
        # Ray's default of 15 lets everything else on the machine go before a token.
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(address="local", **options)
        return True
    return False


def launch(config: AppConfig, host: str, port: int) -> None:
    """Starts Serve, if it does not run yet, and the application; returns at once."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # the summary says it all
    serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
    target = serve.RunTarget(build_app(config), name=NAME, route_prefix=config.route_prefix)
    serve.run_many([target], wait_for_applications_running=False)


def progress(config: AppConfig) -> Progress:
    """What has become of `launch`."""
    known = serve.status().applications.get(NAME)
    if known is None:
        return Progress(0, config.num_replicas, False, "")
    replicas = known.deployments.get("replica")
    ready = 0 if replicas is None else replicas.replica_states.get("RUNNING", 0)
    failed = known.status in ("DEPLOY_FAILED", "UNHEALTHY")
    is_running = known.status == "RUNNING"
    failure = f"{known.message} {_cause(known)}".strip() if failed else ""
    return Progress(ready, config.num_replicas, is_running, failure)


def _cause(application: ApplicationStatusOverview) -> str:
    """What a replica's constructor raised: the last line of what Serve says of the deployment."""
    texts = (known.message.strip() for known in application.deployments.values())
    return next((text.splitlines()[-1].strip() for text in texts if "Error" in text), "")


def shut_down(*, is_own: bool) -> None:
    """Ends the application; the whole cluster where it is this process's own."""
    if is_own:
        serve.shutdown()
    else:
        serve.delete(NAME)
    ray.shutdown()


app = build_app(AppConfig.from_environment(os.environ))
