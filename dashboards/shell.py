"""What every board shares: variables, links, annotations; and how a board becomes JSON."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from dashboards.panels import APP, SELECT, SOURCE
from dashboards.plans import SWITCH_COLOUR

TAG = "trimode"
WIDTH = 24
"""Columns of Grafana's grid."""
MARKED = {"Plan in use", "Concurrency", "Throughput by plan", "Plan decided"}
"""Panels that show the marks of switches."""
SWITCHES, STARTS = "Switches of plan", "Controller starts"
# Grafana makes one region of marks of one series (a direction and reason) that are at most a step
# apart, and sees the latest of each step. The step is all that it leaves to choose.
_ANNOTATION_OPTIONS = {
    SWITCHES: {
        "titleFormat": "{{replica}}: {{from_plan}} → {{to_plan}}",
        "textFormat": "{{reason}}",
        "tagKeys": "reason",
    },
    STARTS: {"titleFormat": "Controller started", "textFormat": "{{job}}", "tagKeys": "job"},
}


def board(title: str, uid: str, description: str) -> dashboard.Dashboard:
    made = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG])
    made = made.readonly().timezone("browser").refresh("10s").time("now-1h", "now")
    made = made.tooltip(model.DashboardCursorSync.CROSSHAIR)
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    made = made.with_variable(source)
    made = made.with_variable(_choice("job", "Application", "trimode_engine_up"))
    made = made.with_variable(_choice("replica", "Replica", f"trimode_engine_up{{{APP}}}"))
    link = dashboard.DashboardLink("Trimode").type(model.DashboardLinkType.DASHBOARDS)
    link = link.tags([TAG]).as_dropdown(True).include_vars(True).keep_time(True)
    switched = f"trimode_plan_switched_timestamp_seconds{{{SELECT}}}"
    # A controller's epoch is the nanosecond at which it started.
    return (
        made.link(link)
        .annotation(_marks(SWITCHES, f"1000 * {switched}"))
        .annotation(_marks(STARTS, f"trimode_controller_epoch{{{APP}}} / 1e6", colour="#8AB8FF"))
    )


def render(builder: dashboard.Dashboard) -> str:
    """The JSON that Grafana imports."""
    document = json.loads(JSONEncoder(sort_keys=True).encode(builder.build()))
    for number, panel in enumerate(document["panels"], 1):
        panel["id"] = number  # the SDK leaves them out, and links to a panel need them
    _lay_out(document["panels"])
    marked = [panel["id"] for panel in document["panels"] if panel["title"] in MARKED]
    for annotation in document["annotations"]["list"]:
        if annotation["name"] == SWITCHES:
            # Plans follow the load, so marks are many: on every chart they would hide the lines.
            # A board without these panels has them switched off, to be switched on.
            annotation["enable"] = bool(marked)
            annotation |= {"filter": {"exclude": False, "ids": marked}} if marked else {}
        options = _ANNOTATION_OPTIONS.get(annotation["name"])
        if options:  # the data source's own options, for which the SDK has no fields
            annotation |= {"useValueForTime": True, "step": "5s", **options}
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _lay_out(panels: list[dict[str, Any]]) -> None:
    """Each panel as high up as it fits, then as far left; a row goes below all before it."""
    filled = [0] * WIDTH  # height of every column
    for panel in panels:
        place, is_row = panel["gridPos"], panel["type"] == "row"
        width = WIDTH if is_row else place["w"]
        tops = [max(filled[x : x + width]) for x in range(WIDTH - width + 1)]
        y = min(tops)
        x = tops.index(y)
        panel["gridPos"] = {"x": x, "y": y, "w": width, "h": 1 if is_row else place["h"]}
        filled[x : x + width] = [y + panel["gridPos"]["h"]] * width


def _choice(name: str, label: str, series: str) -> dashboard.QueryVariable:
    everything = model.VariableOption(text="All", value="$__all")
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE)
    variable = variable.query(f"label_values({series}, {name})")
    variable = variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.multi(True).include_all(True).all_value(".*").current(everything)


def _marks(name: str, expr: str, colour: str = SWITCH_COLOUR) -> dashboard.AnnotationQuery:
    made = dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True)
    return made.icon_color(colour).expr(expr)
