"""A small vocabulary of panels and queries over the Grafana SDK's builders."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    dashboard,
    heatmap,
    piechart,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import piechart as piechart_model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.plans import MODE_COLOURS, MODE_NAMES, PLAN_CODES, plan_colour

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
APP = 'job=~"$job"'
"""Selects the application; the controller's own series have no `replica`."""
SELECT = f'{APP}, replica=~"$replica"'
RATE = "$__rate_interval"
TOKENS_PER_S = "suffix: tok/s"

Steps = list[tuple[float | None, str]]
Panel = Any  # the SDK's builders share their methods, but no base class that names them


def query(
    expr: str, legend: str, *, ref: str = "A", instant: bool = False, heat: bool = False
) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ref)
    made = made.instant() if instant else made.range()
    return made.format(PromQueryFormat.HEATMAP) if heat else made


def panel(kind: Any, title: str, why: str, *queries: Any, unit: str, w: int, h: int) -> Panel:
    made = kind().title(title).description(why).datasource(SOURCE).unit(unit).span(w).height(h)
    for each in queries:
        made = made.with_target(each)
    return made


def lines(title: str, why: str, *queries: Any, unit: str, w: int = 12, h: int = 8) -> Panel:
    tooltip = VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    return (
        panel(timeseries.Panel, title, why, *queries, unit=unit, w=w, h=h)
        .line_width(1)
        .fill_opacity(8)
        .show_points(common.VisibilityMode.NEVER)
        .axis_soft_min(0)
        .tooltip(tooltip.sort(common.SortOrder.DESCENDING))
        .legend(_legend().calcs(["lastNotNull"]))
    )


def names_only(made: Panel) -> Panel:
    """Many series: with their last values, the legend would not fit."""
    return made.legend(_legend())


def _legend() -> VizLegendOptions:
    listed, bottom = common.LegendDisplayMode.LIST, common.LegendPlacement.BOTTOM
    return VizLegendOptions().display_mode(listed).placement(bottom).show_legend(True)


def stacked(made: Panel, *, bars: bool = False) -> Panel:
    style = StackingConfig().mode(common.StackingMode.NORMAL).group("A")
    made = names_only(made.stacking(style).fill_opacity(60))
    return made.draw_style(common.GraphDrawStyle.BARS) if bars else made


def stat_panel(
    title: str,
    why: str,
    expr: str,
    *,
    unit: str,
    w: int = 4,
    h: int = 4,
    steps: Steps | None = None,
) -> Panel:
    """One number as of now; `steps` colour it."""
    made = panel(stat.Panel, title, why, query(expr, "", instant=True), unit=unit, w=w, h=h)
    made = made.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    made = made.graph_mode(common.BigValueGraphMode.NONE)
    return made.thresholds(thresholds(steps or [(None, "text")]))


def bars(title: str, why: str, expr: str, legend: str, *, unit: str, w: int, h: int = 8) -> Panel:
    """One horizontal bar a series, as of now."""
    made = panel(bargauge.Panel, title, why, query(expr, legend, instant=True), unit=unit, w=w, h=h)
    return made.orientation(common.VizOrientation.HORIZONTAL).min(0)


def pie(title: str, why: str, expr: str, legend: str, *, unit: str, w: int, h: int = 8) -> Panel:
    made = panel(piechart.Panel, title, why, query(expr, legend, instant=True), unit=unit, w=w, h=h)
    return made.display_labels([piechart_model.PieChartLabels.PERCENT])


def heat(title: str, why: str, metric: str, *, w: int = 8, h: int = 8) -> Panel:
    """Where the observations of a histogram in seconds lie."""
    expr = f"sum by (le) (increase({metric}_bucket{{{SELECT}}}[{RATE}]))"
    colours = heatmap.HeatmapColorOptions().mode(heatmap_model.HeatmapColorMode.SCHEME)
    axis = heatmap.YAxisConfig().unit("s").axis_placement(common.AxisPlacement.LEFT)
    made = panel(
        heatmap.Panel, title, why, query(expr, "{{le}}", heat=True), unit="short", w=w, h=h
    )
    made = made.calculate(False).color(colours.scheme("Oranges").steps(64)).y_axis(axis)
    return made.filter_values(heatmap.FilterValueRange().le(1e-9)).cell_gap(1)


def plan_timeline(title: str, why: str, expr: str, *, h: int = 7, w: int = 24) -> Panel:
    """One row a replica, coloured by plan; `expr` gives the codes of `PLAN_CODES`."""
    coded = query(expr, "{{replica}}")
    made = panel(statetimeline.Panel, title, why, coded, unit="short", w=w, h=h)
    options = {
        str(code): model.ValueMappingResult(text=str(plan), color=plan_colour(plan), index=code)
        for plan, code in PLAN_CODES.items()
    }
    options["0"] = model.ValueMappingResult(text="none", color="transparent", index=0)
    made = made.mappings([model.ValueMap(options=options)]).merge_values(True)
    made = made.show_value(common.VisibilityMode.AUTO).row_height(0.85)
    return made.line_width(0).fill_opacity(85)


def by_mode(made: Panel) -> Panel:
    """Series named as modes in their colours, under readable names."""
    for mode, colour in MODE_COLOURS.items():
        name = model.DynamicConfigValue(id_val="displayName", value=MODE_NAMES[mode])
        made = made.override_by_name(mode.value, [_colour(colour), name])
    return made


def by_plan(made: Panel) -> Panel:
    """Series named as plans in their shades."""
    for plan in PLAN_CODES:
        made = made.override_by_name(str(plan), [_colour(plan_colour(plan))])
    return names_only(made) if isinstance(made, timeseries.Panel) else made


def quantiles(title: str, why: str, metric: str, *, w: int = 8, h: int = 8) -> Panel:
    """p50 dashed and p95 solid of a histogram in seconds, by mode."""
    rates = f"sum by (le, mode) (rate({metric}_bucket{{{SELECT}}}[{RATE}]))"
    queries = [  # a mode that nobody used has no quantile: NaN, which legends would show
        query(f"histogram_quantile({q}, {rates}) >= 0", f"{name} {{{{mode}}}}", ref=ref)
        for ref, name, q in (("A", "p50", 0.5), ("B", "p95", 0.95))
    ]
    made = lines(title, why, *queries, unit="s", w=w, h=h).fill_opacity(0)
    for mode, colour in MODE_COLOURS.items():
        made = made.override_by_regexp(f"/ {mode.value}$/", [_colour(colour)])
    dashes = {"fill": "dash", "dash": [4, 4]}
    style = model.DynamicConfigValue(id_val="custom.lineStyle", value=dashes)
    return made.override_by_regexp("/^p50/", [style])


def coloured(made: Panel, colour: str) -> Panel:
    """All series alike."""
    fixed = dashboard.FieldColor().mode(model.FieldColorModeId.FIXED)
    return made.color_scheme(fixed.fixed_color(colour))


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [model.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(made)


def shaded(made: Panel, steps: Steps) -> Panel:
    """Areas behind the lines, where an alert would fire."""
    style = GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.AREA)
    return made.thresholds(thresholds(steps)).thresholds_style(style)


def _colour(value: str) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": value})
