"""Writes the boards that users import: `python -m dashboards.build`; `--check` compares them.

The committed JSON needs no edits: the data source is a variable and the uids are fixed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dashboards import latency, mode_switching
from dashboards.kubernetes import prometheus_rule
from dashboards.shell import render

ROOT = Path(__file__).resolve().parent
GENERATED = ROOT / "generated"
RULES = (ROOT / "rules/trimode.recording.yml", ROOT / "rules/trimode.alerts.yml")
PROMETHEUS_RULE = ROOT.parent / "deploy/prometheus/kubernetes/prometheusrule.yml"


def built() -> dict[Path, str]:
    """Everything that is generated, by where it is committed."""
    return {
        GENERATED / f"{mode_switching.UID}.json": render(mode_switching.mode_switching()),
        GENERATED / f"{latency.UID}.json": render(latency.latency()),
        PROMETHEUS_RULE: prometheus_rule(RULES),
    }


def stale() -> list[Path]:
    """Committed files that are not what the code builds."""
    return [path for path, text in built().items() if _committed(path) != text]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dashboards.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a file is out of date")
    if parser.parse_args(arguments).check:
        for path in stale():
            print(f"{path} is out of date: run python -m dashboards.build", file=sys.stderr)
        return bool(stale())
    for path, text in built().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


def _committed(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
