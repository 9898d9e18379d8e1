"""Just enough reading of PromQL: metrics, selectors, windows, variables. Not a parser.

Queries here are ours, so what matters is that nothing in them is overlooked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from replicas.catalogue import CATALOGUE, Metric

_METRIC = re.compile(r"(?<![\w\"])(trimode_\w+|\w+:trimode_\w+:\w+|up)\b(?!\s*\()")
_SELECTOR = re.compile(_METRIC.pattern + r"(\{[^}]*\})?")
_RANGE = re.compile(r"\b(rate|irate|increase)\(([^\[]*)\[([^\]]+)\]")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_SERIES = {name: metric for metric in CATALOGUE for name in metric.samples}


def metrics_in(expr: str) -> set[str]:
    """Names of series, as written: histograms with `_bucket`."""
    return set(_METRIC.findall(_without_strings(expr)))


def selectors_in(expr: str) -> list[str]:
    """`name{labels}` of every series that is read."""
    return [name + labels for name, labels in _SELECTOR.findall(expr)]


def windows_in(expr: str) -> list[tuple[str, str, str]]:
    """(function, argument, window) of every rate and increase."""
    return _RANGE.findall(expr)


def catalogued(series: str) -> Metric | None:
    return _SERIES.get(series)


def legend_labels(legend: str) -> set[str]:
    return set(_LEGEND.findall(legend))


def variables_in(text: str) -> set[str]:
    return set(_VARIABLE.findall(text))


def substitute(expr: str, values: Mapping[str, str]) -> str:
    """With variables replaced, as Grafana does.

    Raises:
        ValueError: a variable that has no value.
    """
    unknown = variables_in(expr) - values.keys() - {"1"}  # $1 is label_replace's
    if unknown:
        raise ValueError(f"unknown variable ${min(unknown)}")
    return _VARIABLE.sub(lambda match: values.get(match[1], match[0]), expr)


def short_name(series: str) -> str:
    metric = catalogued(series)
    return metric.name if metric is not None else series


def _without_strings(expr: str) -> str:
    return re.sub(r'"[^"]*"', '""', expr)
