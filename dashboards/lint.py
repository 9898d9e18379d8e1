"""Static rules for boards and rules: the usual dashboard linter's, and ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dashboards import promql
from dashboards.plans import MODE_COLOURS, PLAN_CODES, plan_colour
from dashboards.shell import WIDTH

BUILT_IN = {"__rate_interval", "__interval", "__range", "__field", "__url_time_range"}
RANGES = {"$__rate_interval", "$__range"}
UNITS = {"seconds": "s", "ratio": "percentunit", "tokens/s": "suffix: tok/s"}
"""Grafana's unit for a catalogued unit; counts of anything are `short`."""
RATES = {"tokens": "suffix: tok/s", "requests": "reqps"}
_COLOURS = {mode.value: colour for mode, colour in MODE_COLOURS.items()} | {
    str(plan): plan_colour(plan) for plan in PLAN_CODES
}
Json = dict[str, Any]


def lint_board(board: Json, recorded: set[str]) -> Iterator[str]:
    """Problems of one board; `recorded` are the series that rules record."""
    variables = {variable["name"] for variable in board["templating"]["list"]}
    if "datasource" not in variables:
        yield "there is no data source variable"
    if board.get("editable", True):
        yield "a provisioned board must be read-only"
    if board.get("id") is not None or not board.get("uid"):
        yield "a board has a fixed uid and no id"
    yield from _layout(board["panels"])
    for panel in board["panels"]:
        if panel["type"] != "row":
            for problem in _panel(panel, variables, recorded):
                yield f"panel {panel.get('title')!r}: {problem}"
    for annotation in board["annotations"]["list"]:
        for problem in _expression(annotation["expr"], recorded):
            yield f"annotation {annotation['name']!r}: {problem}"
        if not annotation.get("useValueForTime"):
            yield f"annotation {annotation['name']!r}: it does not mark the exact moment"


def _layout(panels: list[Json]) -> Iterator[str]:
    cells: dict[tuple[int, int], str] = {}
    ids = [panel["id"] for panel in panels]
    if len(set(ids)) != len(ids):
        yield "panels share an id"
    for panel in panels:
        at, title = panel["gridPos"], str(panel["title"])
        if at["x"] + at["w"] > WIDTH:
            yield f"panel {title!r} goes beyond the right edge"
        area = [
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        ]
        other = next((cells[cell] for cell in area if cell in cells), None)
        if other is not None:
            yield f"panel {title!r} overlaps {other!r}"
        cells |= dict.fromkeys(area, title)


def _panel(panel: Json, variables: set[str], recorded: set[str]) -> Iterator[str]:
    if not panel.get("title") or not panel.get("description", "").rstrip().endswith("."):
        yield "it needs a title, and a sentence of description"
    if panel.get("datasource", {}).get("uid") != "${datasource}":
        yield "its data source is not the variable"
    unit = panel["fieldConfig"]["defaults"].get("unit")
    if not unit:
        yield "it has no unit"
    for target in panel["targets"]:
        yield from _expression(target["expr"], recorded)
        unknown = promql.variables_in(target["expr"]) - variables - BUILT_IN
        if unknown:
            yield f"unknown variable ${min(unknown)}"
        wanted = _unit_of(target["expr"])
        if unit and wanted and panel["type"] != "heatmap" and unit != wanted:
            yield f"its unit is {unit!r}, and {target['expr']} is in {wanted!r}"
    yield from _colours(panel)


def _expression(expr: str, recorded: set[str]) -> Iterator[str]:
    for name in promql.metrics_in(expr):
        if promql.catalogued(name) is None and name not in recorded | {"up"}:
            yield f"unknown series {name}"
    for function, argument, window in promql.windows_in(expr):
        if window not in RANGES:
            yield f"{function} over [{window}], which does not follow the zoom"
        for name in promql.metrics_in(argument):
            metric = promql.catalogued(name)
            if metric is not None and metric.type == "gauge":
                yield f"{function} of the gauge {name}"
    yield from unknown_labels(expr)


def unknown_labels(expr: str) -> Iterator[str]:
    """Labels in selectors of catalogued series that these do not have."""
    for selector in promql.selectors_in(expr):
        name, _, inside = selector.partition("{")
        metric = promql.catalogued(name)
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))
        if metric is not None:
            for label in sorted(labels - {*metric.labels, "job", "instance", "component", "le"}):
                yield f"{name} has no label {label!r}"


def _unit_of(expr: str) -> str | None:
    """Grafana's unit where the expression leaves no doubt; None otherwise."""
    names = promql.metrics_in(expr)
    metrics = [promql.catalogued(name) for name in names]
    if len(names) != 1:
        return None
    (name,), (metric,) = names, metrics
    if metric is None:
        return _recorded_unit(name)
    if "/" in expr or "*" in expr or "count by" in expr or "avg_over_time" in expr:
        return None
    if "histogram_quantile" in expr:
        return UNITS[metric.unit]
    if "rate(" in expr:
        return RATES.get(metric.unit, "ops")
    return UNITS.get(metric.unit, "short")


def _recorded_unit(name: str) -> str | None:
    level, what, operation = name.split(":")
    if "tokens_per_second" in what:
        return UNITS["tokens/s"]
    if "tokens_per_forward" in what or operation == "code":
        return "short"
    return "percentunit" if "ratio" in operation and level != "slo" else None


def _colours(panel: Json) -> Iterator[str]:
    for override in panel["fieldConfig"].get("overrides", []):
        named = str(override["matcher"].get("options", "")).removeprefix("/ ").removesuffix("$/")
        for each in override["properties"]:
            if each["id"] == "color" and _COLOURS.get(named) != each["value"]["fixedColor"]:
                yield f"{named!r} has a colour of its own"
    for mapping in panel["fieldConfig"]["defaults"].get("mappings", []):
        for code, result in mapping["options"].items():
            if code != "0" and _COLOURS.get(result["text"]) != result["color"]:
                yield f"{result['text']!r} has a colour of its own"


def lint_rules(groups: list[Json], runbook: str) -> Iterator[str]:
    """Problems of recording rules and alerts; `runbook` is the page's text."""
    rules = [rule for group in groups for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    headings = {line[3:].strip() for line in runbook.splitlines() if line.startswith("## ")}
    for rule in rules:
        name = rule.get("record") or rule["alert"]
        for series in promql.metrics_in(rule["expr"]):
            if promql.catalogued(series) is None and series not in recorded | {"up"}:
                yield f"{name}: unknown series {series}"
        for problem in unknown_labels(rule["expr"]):
            yield f"{name}: {problem}"
        if "alert" in rule:
            yield from (f"{name}: {problem}" for problem in _alert(rule, headings))


def _alert(rule: Json, headings: set[str]) -> Iterator[str]:
    name, notes = rule["alert"], rule.get("annotations", {})
    if rule.get("labels", {}).get("severity") not in ("page", "ticket"):
        yield "its severity is neither page nor ticket"
    if not {"summary", "description", "runbook_url"} <= notes.keys():
        yield "it needs a summary, a description and a runbook_url"
    if notes.get("runbook_url") != f"docs/runbook.md#{name.lower()}" or name not in headings:
        yield "docs/runbook.md has no such heading, or runbook_url does not name it"


def uncovered(
    used: set[str], exempt: Mapping[str, str], names: Mapping[str, object]
) -> Iterator[str]:
    """Catalogued metrics that nobody shows, and exemptions that are not needed."""
    for name in sorted(names.keys() - used - exempt.keys()):
        yield f"trimode_{name} is neither shown nor alerted on"
    for name in sorted(exempt.keys() & used):
        yield f"trimode_{name} is shown, so it needs no exemption"
