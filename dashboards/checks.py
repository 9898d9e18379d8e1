"""Every check of a kit. Each yields (where, problem); an empty problem means that it is good."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from dashboards import promql, roundtrip
from dashboards.build import built
from dashboards.kit import UNIT_TESTS, Kit, parse_yaml
from dashboards.lint import lint_board, lint_rules, uncovered
from dashboards.throwaway import PrometheusError, Server, promtool
from dashboards.trace import SCRAPE_S, SPAN_S
from replicas.catalogue import BY_NAME

Json = dict[str, Any]
Finding = tuple[str, str]
EXEMPT: dict[str, str] = {}
"""Catalogued metrics that nobody shows or alerts on, and why."""
START = 1_700_000_000
END = START + SPAN_S
SHOWN_S = 3600
RULES_PATH = "../../../dashboards/rules/"
"""Where unit tests say that the rules are."""
LEVELS = {"replica": {"job", "replica"}, "replica_plan": {"job", "replica", "plan"}, "slo": {"job"}}
"""Labels that a recorded series has by the first part of its name."""


class Queries:
    """Asks Prometheus, and no question twice.

    Args:
        server: which.
        since, end: the time there is data for, in Unix seconds.
        shown_s: what a board shows of it, up to the end.
        step_s: seconds between scrapes, and between points.
    """

    def __init__(
        self,
        server: Server,
        since: float = START,
        end: float = END,
        shown_s: int = SHOWN_S,
        step_s: int = SCRAPE_S,
    ) -> None:
        self.since, self.end, self.step_s = since, end, step_s
        self.values = {
            "job": ".*",
            "replica": ".*",
            "datasource": "Prometheus",
            "__interval": f"{step_s}s",
            "__rate_interval": f"{4 * step_s}s",
            "__range": f"{shown_s}s",
        }
        """As Grafana would have them at one point a scrape."""
        self._server, self._shown_s = server, shown_s
        self._answers: dict[tuple[str, ...], Any] = {}
        self.asked = 0

    def ask(self, path: str, **params: str) -> Any:
        key = (path, *(f"{name}={value}" for name, value in params.items()))
        if key not in self._answers:
            self.asked += 1
            self._answers[key] = self._server.api(path, **params)
        return self._answers[key]

    def over_range(self, expr: str) -> list[Json]:
        start, end = self.end - self._shown_s, self.end
        window = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": str(self.step_s)}
        return list(self.ask("query_range", query=expr, **window)["result"])

    def at_end(self, expr: str) -> list[Json]:
        return list(self.ask("query", query=expr, time=f"{self.end:.3f}")["result"])


def check(kit: Kit, queries: Queries) -> Iterator[Finding]:
    """Everything, the cheap checks first."""
    for board in kit.boards:
        uid = board["uid"]
        yield from _found(f"{uid}: lint", lint_board(board, kit.recorded))
        yield from _found(f"{uid}: round trip", roundtrip.lost(board))
    yield from _found("rules: lint", lint_rules(kit.groups, kit.runbook))
    yield from _found("catalogue", _coverage(kit))
    yield from _found("build --check", _stale(kit))
    for board in kit.boards:
        yield from check_board(board, queries)
    for rule in kit.recording:
        yield rule["record"], _problem(_recording, rule, queries)
    for rule in kit.alerts:
        yield rule["alert"], _problem(_alert, rule, queries)
    for selector in sorted({s for expr in kit.expressions for s in promql.selectors_in(expr)}):
        yield f"selector {selector}", _problem(_selector, selector, queries)
    yield from _found("rules: unit tests", _unit_tests(kit))


def _found(where: str, problems: Iterator[str]) -> Iterator[Finding]:
    is_good = True
    for problem in problems:
        is_good = False
        yield where, problem
    if is_good:
        yield where, ""


def _problem(check_one: Any, subject: Any, queries: Queries) -> str:
    try:
        return str(check_one(subject, queries))
    except ValueError as error:
        return str(error)


def check_board(board: Json, queries: Queries) -> Iterator[Finding]:
    """Every panel, annotation and variable of a board against data."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield (
                f"{board['uid']} / {panel['title']} / {target['refId']}",
                _problem(_target, target, queries),
            )
    for annotation in board["annotations"]["list"]:
        yield f"{board['uid']} / {annotation['name']}", _problem(_annotation, annotation, queries)
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield f"{board['uid']} / ${variable['name']}", _problem(_variable, variable, queries)


def _target(target: Json, queries: Queries) -> str:
    expr = promql.substitute(target["expr"], queries.values)
    result = queries.at_end(expr) if target.get("instant") else queries.over_range(expr)
    if not _finite(result):
        return "no data"
    wanted = promql.legend_labels(target.get("legendFormat", ""))
    missing = {label for series in result for label in wanted - series["metric"].keys()}
    return f"the legend names labels that series lack: {sorted(missing)}" if missing else ""


def _annotation(annotation: Json, queries: Queries) -> str:
    result = queries.over_range(promql.substitute(annotation["expr"], queries.values))
    stamps = {float(value) for series in result for _, value in series["values"]}
    if not stamps:
        return "no events"
    earliest = (queries.since - queries.step_s) * 1000
    if not all(earliest <= stamp <= queries.end * 1000 for stamp in stamps):
        return "its values are no milliseconds of the time there is data for"
    wanted = promql.legend_labels(annotation["titleFormat"] + annotation["textFormat"])
    missing = {label for series in result for label in wanted - series["metric"].keys()}
    return f"its text names labels that series lack: {sorted(missing)}" if missing else ""


def _variable(variable: Json, queries: Queries) -> str:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
    if match is None:
        return f"{variable['query']!r} is no label_values(series, label)"
    window = {"start": f"{queries.since:.3f}", "end": f"{queries.end:.3f}"}
    selector = promql.substitute(match[1], queries.values)
    values = queries.ask(f"label/{match[2]}/values", **{"match[]": selector}, **window)
    return "" if values else "no values"


def _recording(rule: Json, queries: Queries) -> str:
    result = queries.over_range(rule["expr"])
    if not _finite(result):
        return "no data"
    wanted = LEVELS[rule["record"].partition(":")[0]]
    missing = {label for series in result for label in wanted - series["metric"].keys()}
    return f"its series lack {sorted(missing)}" if missing else ""


def _alert(rule: Json, queries: Queries) -> str:
    queries.over_range(rule["expr"])  # quiet is well; an error is not
    return ""


def _selector(selector: str, queries: Queries) -> str:
    """Catches what `or` and alerts hide: a part of an expression that never finds anything."""
    text = promql.substitute(selector, queries.values)
    found = queries.at_end(f"count(last_over_time({text}[{SPAN_S}s]))")
    return "" if found else "it matches no series"


@lru_cache
def _failure(test: Path, rules: tuple[tuple[str, str], ...]) -> str:
    """What promtool says of rules and one file of unit tests; the same is not run twice."""
    with tempfile.TemporaryDirectory(prefix="trimode-rules-") as folder:
        for name, text in rules:
            Path(folder, name).write_text(text, encoding="utf-8")
        copy = Path(folder, test.name)
        copy.write_text(test.read_text(encoding="utf-8").replace(RULES_PATH, ""), encoding="utf-8")
        try:
            promtool("test", "rules", copy)
        except PrometheusError as error:
            return str(error)
    return ""


def _unit_tests(kit: Kit) -> Iterator[str]:
    fired = set()
    for path in sorted(UNIT_TESTS.glob("*.test.yml")):
        page = parse_yaml(path.read_text(encoding="utf-8"))
        names = [name.removeprefix(RULES_PATH) for name in page["rule_files"]]
        problem = _failure(path, tuple((name, kit.rules[name]) for name in names))
        if problem:
            yield problem
        cases = [case for test in page["tests"] for case in test.get("alert_rule_test", ())]
        fired |= {case["alertname"] for case in cases if case["exp_alerts"]}
    for alert in kit.alerts:
        if alert["alert"] not in fired:
            yield f"no unit test makes {alert['alert']} fire"


def _coverage(kit: Kit) -> Iterator[str]:
    series = {name for expr in kit.expressions for name in promql.metrics_in(expr)}
    yield from uncovered({promql.short_name(name) for name in series}, EXEMPT, BY_NAME)


def _stale(kit: Kit) -> Iterator[str]:
    for path, text in built().items():
        if kit.files.get(path) != text:
            yield f"{path.name} is out of date: run python -m dashboards.build"


def _finite(result: list[Json]) -> bool:
    points = [v for series in result for v in series.get("values", [series.get("value")])]
    return any(math.isfinite(float(value)) for _, value in points)
