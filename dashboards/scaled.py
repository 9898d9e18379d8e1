"""The rules at another pace: every duration divided by a factor, nothing else changed.

An alert that waits ten minutes can then be watched live within one. Scaled are a group's
`interval`, `for`, windows (`[5m]`), offsets, ages (a number that `time() - ...` is compared with)
and counts over a window (`increase(...[5m]) > 30`), so that these ask for the same rate. Names and
texts keep the durations they were written for.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

SHORTEST_MS = 1000
"""No duration becomes shorter than this, unless it was; scrapes are no closer together."""
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = r"(\d+)(ms|s|m|h|d)"
_WINDOW = re.compile(rf"\[{_DURATION}\]")
_OFFSET = re.compile(rf"\boffset {_DURATION}")
_AGE = re.compile(r"(time\(\) -[^<>]*[<>]=? )(\d+)")
_COUNT = re.compile(r"(increase\([^\[]*\[\w+\]\)\) > )([1-9]\d*)")


def scaled(rules: str, factor: float) -> str:
    """A rule file with its durations divided by `factor`.

    Raises:
        ValueError: a factor that is not above 0, or a duration that is none.
    """
    if not factor > 0:
        raise ValueError(f"factor {factor} must be above 0")
    document = yaml.safe_load(rules)
    for group in document["groups"]:
        _scale(group, "interval", factor)
        for rule in group["rules"]:
            _scale(rule, "for", factor)
            rule["expr"] = _expression(rule["expr"], factor)
    return yaml.safe_dump(document, sort_keys=False, width=1000)


def _scale(holder: dict[str, Any], key: str, factor: float) -> None:
    if key not in holder:
        return
    match = re.fullmatch(_DURATION, holder[key])
    if match is None:
        raise ValueError(f"{key}: {holder[key]!r} is no duration; write a number and ms, s, m, h")
    holder[key] = _shorter(match, factor)


def _expression(expr: str, factor: float) -> str:
    expr = _WINDOW.sub(lambda match: f"[{_shorter(match, factor)}]", expr)
    expr = _OFFSET.sub(lambda match: f"offset {_shorter(match, factor)}", expr)
    for numbers in (_AGE, _COUNT):
        expr = numbers.sub(lambda match: f"{match[1]}{int(match[2]) / factor:g}", expr)
    return expr


def _shorter(match: re.Match[str], factor: float) -> str:
    was_ms = int(match[1]) * _UNITS_MS[match[2]]
    return f"{max(min(was_ms, SHORTEST_MS), round(was_ms / factor))}ms"
