"""A replica's own metrics page. Run with: pytest tests/replicas/test_metrics_page.py"""

from __future__ import annotations

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from replicas.metrics_page import MetricsPortTaken, serve_page


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("mine", "A series.", registry=registry).set(7)
    return registry


def test_pages_on_any_port_do_not_collide() -> None:
    pages = [serve_page("127.0.0.1", 0, _registry(), "metrics_port") for _ in range(2)]
    try:
        assert len({page.server_port for page in pages}) == 2
        for page in pages:
            text = httpx.get(f"http://127.0.0.1:{page.server_port}/metrics", trust_env=False).text
            assert "mine 7.0" in text
    finally:
        for page in pages:
            page.shutdown()


def test_a_port_that_is_taken_is_an_error_that_names_option_port_and_remedy() -> None:
    first = serve_page("127.0.0.1", 0, _registry(), "metrics_port")
    try:
        with pytest.raises(MetricsPortTaken) as raised:
            serve_page("127.0.0.1", first.server_port, _registry(), "metrics_port")
    finally:
        first.shutdown()
    message = str(raised.value)
    assert f"metrics_port={first.server_port} is taken on 127.0.0.1" in message
    assert "metrics_port=0" in message
    assert "/control/v1/targets" in message
