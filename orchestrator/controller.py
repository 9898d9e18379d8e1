"""The controller as a Serve deployment: a thin shell around `ControlService`.

One replica of it. Its state is soft: when Serve restarts it, the replicas' next calls tell it which
schedules they follow and which pins hold, and it goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve

from orchestrator.app_config import AppConfig
from orchestrator.control_service import ControlService, decision_log
from policies.vocabulary import Plan
from replicas.control_link import Answer, Call
from replicas.deployment import metrics_url
from replicas.metrics_page import serve_page


class Controller:
    """Collects signals, decides, answers the replicas' long polls and the operators."""

    async def __init__(self, config: AppConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        _log_decisions(config.decision_log)
        self._service = ControlService(
            config.make_guard(),
            config.make_source(),
            interval_s=config.interval_s,
            advisory=config.advisory,
            describe_policy={
                "signals": "direct scrape" if config.prometheus_url is None else "prometheus",
                "bands": config.model_dump(mode="json")["bands"],
                "options": dict(config.policy_options),
            },
        )
        host = config.metrics_host
        registry = self._service.metrics.registry
        port = config.controller_metrics_port
        self._metrics_server = serve_page(host, port, registry, "controller_metrics_port")
        self._service.extra_targets = (metrics_url(host, self._metrics_server.server_port),)
        self._rounds = asyncio.get_running_loop().create_task(self._service.run())

    async def check_health(self) -> None:
        """Serve asks every second, and restarts the controller when this raises."""
        if self._rounds.done():
            raise RuntimeError("the control loop has ended") from self._rounds.exception()
        self._service.check_health()

    async def __del__(self) -> None:
        if not hasattr(self, "_rounds"):
            return  # ended while it was starting
        self._rounds.cancel()
        self._metrics_server.shutdown()
        await self._service.close()

    async def poll(self, call: Call) -> Answer:
        return await self._service.poll(call)

    async def leave(self, replica: str) -> None:
        await self._service.leave(replica)

    async def replicas(self) -> Sequence[Mapping[str, Any]]:
        return await self._service.replicas()

    async def decisions(self, replica: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
        return await self._service.decisions(replica, limit)

    async def policy(self) -> Mapping[str, Any]:
        return await self._service.policy()

    async def pin(self, replica: str | None, plan: Plan, ttl_s: float) -> Mapping[str, Any]:
        return await self._service.pin(replica, plan, ttl_s)

    async def unpin(self, replica: str | None) -> Mapping[str, Any]:
        return await self._service.unpin(replica)

    async def targets(self) -> Sequence[Mapping[str, Any]]:
        return await self._service.targets()


ControllerDeployment = serve.deployment(
    name="controller",
    num_replicas=1,
    max_ongoing_requests=10_000,  # every replica always has a call that is being held
    health_check_period_s=1,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=2,
    graceful_shutdown_wait_loop_s=0.1,
    ray_actor_options={"num_cpus": 0},
    logging_config={"enable_access_log": False},  # a line for every poll says nothing
)(Controller)


def _log_decisions(path: str | None) -> None:
    """One JSON object a line, on standard output and, where asked for, in a file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if path is not None:
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
    decision_log.handlers = handlers
    decision_log.setLevel(logging.INFO)
    decision_log.propagate = False
