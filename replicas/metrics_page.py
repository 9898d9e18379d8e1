"""A process's own metrics page.

Serve spreads HTTP over the replicas, so a scrape needs an address that belongs to one of them.
"""

from __future__ import annotations

import errno
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server


class MetricsPortTaken(OSError):
    """Another process on this node has the port; the message says what to do."""


def serve_page(host: str, port: int, registry: CollectorRegistry, option: str) -> WSGIServer:
    """Serves `registry` at `host`:`port` (0: any), on a thread, until `shutdown()`.

    `option` is what the port was configured as, for the message.

    Raises:
        MetricsPortTaken: the port is not free.
    """
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise MetricsPortTaken(
            error.errno,
            f"{option}={port} is taken on {host}: of the processes that share a node only one can "
            f"have it; give each a node or pod of its own, or set {option}=0 (any port) and let "
            "Prometheus discover the pages at /control/v1/targets",
        ) from None
    return server
