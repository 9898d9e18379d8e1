"""What is verified: the boards, the rules, and what the rules lean on; as values, to be mutated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dashboards.build import GENERATED, PROMETHEUS_RULE, ROOT, RULES

REPOSITORY = ROOT.parent
RUNBOOK = REPOSITORY / "docs/runbook.md"
UNIT_TESTS = REPOSITORY / "tests/dashboards/rules"
Json = dict[str, Any]


@cache
def parse_yaml(text: str) -> Any:
    """For reading only: the same text gives the same objects, since parsing is slow."""
    return yaml.safe_load(text)


@dataclass(frozen=True, slots=True)
class Kit:
    """`files` are the committed texts of everything generated; `rules` the rule files by name."""

    boards: tuple[Json, ...]
    rules: Mapping[str, str]
    runbook: str
    files: Mapping[Path, str]

    @classmethod
    def load(cls) -> Kit:
        paths = [*sorted(GENERATED.glob("*.json")), PROMETHEUS_RULE]
        files = {path: path.read_text(encoding="utf-8") for path in paths}
        boards = tuple(json.loads(text) for path, text in files.items() if path.suffix == ".json")
        rules = {path.name: path.read_text(encoding="utf-8") for path in RULES}
        return cls(boards, rules, RUNBOOK.read_text(encoding="utf-8"), files)

    @property
    def groups(self) -> list[Json]:
        return [group for text in self.rules.values() for group in parse_yaml(text)["groups"]]

    @property
    def recording(self) -> list[Json]:
        return [rule for group in self.groups for rule in group["rules"] if "record" in rule]

    @property
    def alerts(self) -> list[Json]:
        return [rule for group in self.groups for rule in group["rules"] if "alert" in rule]

    @property
    def recorded(self) -> set[str]:
        return {rule["record"] for rule in self.recording}

    @property
    def expressions(self) -> list[str]:
        """Everything that is shown or alerted on."""
        of_panels = [
            t["expr"] for b in self.boards for p in b["panels"] for t in p.get("targets", ())
        ]
        of_marks = [a["expr"] for board in self.boards for a in board["annotations"]["list"]]
        return of_panels + of_marks + [rule["expr"] for rule in (*self.recording, *self.alerts)]
