"""The rules as the PrometheusRule object that the Prometheus operator reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from textwrap import indent

_HEAD = """# Generated from dashboards/rules/ by python -m dashboards.build.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: trimode
  labels:
    release: prometheus  # what kube-prometheus-stack selects by default
spec:
  groups:
"""


def prometheus_rule(files: Iterable[Path]) -> str:
    """The groups are copied as text, so that their comments stay."""
    groups = [path.read_text(encoding="utf-8").partition("groups:\n")[2] for path in files]
    return _HEAD + "".join(indent(text.rstrip() + "\n", "  ") for text in groups)
