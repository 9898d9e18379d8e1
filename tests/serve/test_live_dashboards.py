"""Boards, alerts and marks of switches against an application under load: pytest tests/serve -s"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

pytest.importorskip(
    "grafana_foundation_sdk", reason="the dashboards extra is not installed: pip install .[dev]"
)

from dashboards import promql
from dashboards.checks import Json, Queries, check_board
from dashboards.kit import Kit
from dashboards.throwaway import is_installed
from dashboards.verify import MISSING
from tests.serve.cluster import App
from tests.serve.incident import FACTOR, Incident, lived_through

pytestmark = pytest.mark.skipif(not is_installed(), reason=MISSING)
KIT = Kit.load()
PROVOKED = (
    "TrimodeSLOFastBurn",
    "TrimodeModeFlapping",
    "TrimodePredictionDrift",
    "TrimodeSignalsStale",
    "TrimodeControllerGone",
)
NEEDS_A_WORTH = {"trimode-mode-switching / Probes / A"}
"""Panels that have data only where governors know what plans are worth; this one follows bands."""


@pytest.fixture(scope="module")
def incident(
    deploy: Callable[..., App], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Incident]:
    with lived_through(deploy, tmp_path_factory.mktemp("incident")) as seen:
        yield seen


@pytest.mark.parametrize("alert", PROVOKED)
def test_an_alert_fires_when_it_should_and_clears(incident: Incident, alert: str) -> None:
    now = incident.watcher.api("query", query="time()")["result"][0]
    first, last = incident.fired(incident.trouble_at, now)[alert]
    print(
        f"\n{alert}: fired {first - incident.trouble_at:.0f} s into the trouble, for "
        f"{last - first + 1:.0f} s, at {FACTOR} times the pace"
    )
    assert last < now
    assert alert not in incident.firing()


def test_no_alert_fires_while_all_is_well(incident: Incident) -> None:
    assert incident.fired(incident.since, incident.trouble_at) == {}


@pytest.mark.parametrize("board", KIT.boards, ids=lambda board: board["uid"])
def test_every_query_of_a_board_finds_live_data(incident: Incident, board: Json) -> None:
    end = incident.calm_again_at
    queries = Queries(
        incident.watcher, incident.since, end, shown_s=round(end - incident.since), step_s=1
    )
    found = dict(check_board(board, queries))
    assert {where: problem for where, problem in found.items() if problem}.keys() <= NEEDS_A_WORTH
    print(f"\n{board['uid']}: {len(found)} panels' queries, variables and annotations have data")


def test_the_marks_are_the_switches_that_were_made_at_their_moments(incident: Incident) -> None:
    (annotation,) = (
        annotation
        for board in KIT.boards
        for annotation in board["annotations"]["list"]
        if annotation["name"] == "Switches of plan" and annotation["enable"]
    )
    marks, pins = _marks(incident, annotation), incident.pins
    assert len(pins) >= 8
    assert len(marks) == len(pins) == incident.switches
    for sent, seen in pins:
        assert len([at for at in marks if sent <= at <= seen]) == 1, (sent, seen, marks)


def _marks(incident: Incident, annotation: Json) -> list[float]:
    """Events, in Unix seconds, that Grafana makes of the annotation while plans were pinned: times
    of one series that are at most a step apart are one."""
    begin, end = incident.pins[0][0], incident.pins[-1][1]
    step_s = int(annotation["step"].removesuffix("s"))
    values = Queries(incident.watcher, step_s=step_s).values
    # Two steps more, so that one of them lies after the scrape of the last switch.
    window = {"start": begin, "end": end + 2 * step_s, "step": step_s}
    expr = promql.substitute(annotation["expr"], values)
    marks: list[float] = []
    for row in incident.watcher.api("query_range", query=expr, **window)["result"]:
        times = sorted({float(value) / 1000 for _, value in row["values"]})
        pairs = zip(times, [float("-inf"), *times], strict=False)
        marks += [at for at, before in pairs if at - before > step_s and begin <= at <= end]
    return sorted(marks)
