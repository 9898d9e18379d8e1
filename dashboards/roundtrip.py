"""Decodes a board with Grafana's own models and encodes it again: what they do not know is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

ANNOTATION_OPTIONS = {"useValueForTime", "titleFormat", "textFormat", "tagKeys", "step"}
"""Prometheus' own options of an annotation, which Grafana's schema leaves open."""


def lost(board: dict[str, Any]) -> Iterator[str]:
    """What does not survive the round trip."""
    register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    for where, problem in _differences(board, again):
        if where.rpartition(".")[2] not in ANNOTATION_OPTIONS:
            yield f"{where}: {problem}"


def _differences(before: Any, after: Any, at: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key not in after:
                yield f"{at}.{key}", f"unknown to Grafana ({value!r})"
            else:
                yield from _differences(value, after[key], f"{at}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from _differences(*pair, f"{at}[{index}]")
    elif before != after:
        yield at, f"{before!r} became {after!r}"
