"""One real cluster for the whole folder; applications are deployed on it as tests need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.cluster import ADMIN, App, ray_cluster

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.serve)


@pytest.fixture(scope="session")
def cluster() -> Iterator[int]:
    """Serve's HTTP port."""
    pytest.importorskip("ray.serve")
    with ray_cluster() as port:
        yield port


@pytest.fixture(scope="session")
def deploy(cluster: int) -> Callable[..., App]:
    """Deploys an application under a name, with options of its configuration."""

    def run(name: str, **options: Any) -> App:
        from ray import serve

        from orchestrator.app import build_app
        from orchestrator.app_config import AppConfig

        config = AppConfig(admin_key=ADMIN, interval_s=0.5, stale_after_s=3, **options)
        serve.run(build_app(config), name=name, route_prefix=f"/{name}")
        app = App(cluster, f"/{name}")
        app.wait_for_replicas(config.num_replicas)
        return app

    return run


@pytest.fixture(scope="session")
def app(deploy: Callable[..., App]) -> App:
    """Two replicas that may use every plan, under bands: tests know which plan to expect."""
    return deploy("main", policy="threshold", quality="any", max_sequences=16)
