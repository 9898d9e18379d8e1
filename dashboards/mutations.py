"""Faults that the verifier must find: each breaks one thing, the way an edit would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dashboards.kit import Kit

Json = dict[str, Any]
Mutation = Callable[[Kit], Kit]


def _panel(title: str, change: Callable[[Json], None]) -> Mutation:
    def mutate(kit: Kit) -> Kit:
        boards = copy.deepcopy(kit.boards)
        panels = [p for board in boards for p in board["panels"] if p["title"] == title]
        change(panels[0])
        return replace(kit, boards=boards)

    return mutate


def _expr(title: str, old: str, new: str) -> Mutation:
    def change(panel: Json) -> None:
        target = panel["targets"][0]
        assert old in target["expr"], f"the panel {title!r} no longer has {old!r}"
        target["expr"] = target["expr"].replace(old, new)

    return _panel(title, change)


def _annotation(old: str, new: str) -> Mutation:
    def mutate(kit: Kit) -> Kit:
        boards = copy.deepcopy(kit.boards)
        annotation = boards[0]["annotations"]["list"][0]
        assert old in annotation["expr"], f"the annotation no longer has {old!r}"
        annotation["expr"] = annotation["expr"].replace(old, new)
        return replace(kit, boards=boards)

    return mutate


def _rules(file: str, old: str, new: str) -> Mutation:
    def mutate(kit: Kit) -> Kit:
        name = f"trimode.{file}.yml"
        assert old in kit.rules[name], f"{name} no longer has {old!r}"
        return replace(kit, rules={**kit.rules, name: kit.rules[name].replace(old, new, 1)})

    return mutate


def _unit(unit: str) -> Callable[[Json], None]:
    return lambda panel: panel["fieldConfig"]["defaults"].update(unit=unit)


def _without_panel(title: str) -> Mutation:
    def mutate(kit: Kit) -> Kit:
        boards = copy.deepcopy(kit.boards)
        for board in boards:
            board["panels"] = [p for p in board["panels"] if p["title"] != title]
        return replace(kit, boards=boards)

    return mutate


def _recolour(panel: Json) -> None:
    panel["fieldConfig"]["overrides"][0]["properties"][0]["value"]["fixedColor"] = "#FF0000"


def _edited_by_hand(kit: Kit) -> Kit:
    path, text = next(iter(kit.files.items()))
    return replace(
        kit, files={**kit.files, path: text.replace('"refresh": "10s"', '"refresh": "5s"')}
    )


MUTATIONS: dict[str, Mutation] = {
    "a metric name in a panel": _expr("Step time", "plan_seconds_total", "plan_second_total"),
    "a label that is summed by": _expr("Throughput by plan", "by (plan)", "by (plans)"),
    "a label in a selector": _expr("Pins", 'replica=~"', 'replicas=~"'),
    "a label's value": _expr("Acceptance by draft position", '"self_spec', '"self-spec'),
    "a unit that is missing": _panel("KV cache", _unit("")),
    "a unit that is wrong": _panel("Age of schedules", _unit("ms")),
    "a variable": _expr("Concurrency", "$replica", "$replicas"),
    "a rate's window": _expr("Prefill", "$__rate_interval", "5m"),
    "a rate of a gauge": _expr(
        "Prompts being read",
        "trimode_prefilling_sequences",
        "rate(trimode_kv_use_ratio[$__range])*",
    ),
    "a mode's colour": _panel("Throughput by plan", _recolour),
    "a field that Grafana does not know": _panel(
        "Plan in use", lambda panel: panel["options"].update(mergeValuez=True)
    ),
    "a panel's place": _panel("Concurrency", lambda panel: panel["gridPos"].update(y=0)),
    "a panel's data source": _panel("Pins", lambda panel: panel["datasource"].update(uid="mine")),
    "a description": _panel("Pins", lambda panel: panel.update(description="")),
    "a panel taken away": _without_panel("Models served"),
    "an edit by hand": _edited_by_hand,
    "annotations in seconds": _annotation("1000 * ", ""),
    "an annotation's metric": _annotation("plan_switched_", "plan_switching_"),
    "a recording rule's name": _rules("recording", "_plan:forgone_ratio", "_plan:forgone_share"),
    "a recording rule's metric": _rules("recording", "seconds_total[5m]", "second_total[5m]"),
    "a recording rule's label": _rules("recording", "max by (job, replica) (", "max by (job) ("),
    "a plan's code": _rules("recording", "7 * trimode_plan_active", "8 * trimode_plan_active"),
    "a plan's name in a rule": _rules("recording", 'plan="diffusion/8"', 'plan="diffusion-8"'),
    "an alert's metric": _rules("alerts", "trimode_schedule_expired", "trimode_schedule_expiry"),
    "an alert's comparison": _rules("alerts", "trimode_kv_use_ratio) >", "trimode_kv_use_ratio) <"),
    "an alert's threshold": _rules("alerts", "14.4 * 0.05", "20 * 0.05"),
    "an alert's patience": _rules("alerts", "for: 10m", "for: 1h"),
    "an alert's runbook": lambda kit: replace(
        kit, runbook=kit.runbook.replace("## TrimodeQueueing", "## Queueing")
    ),
}
"""What is broken, and how."""
