"""Figures that can be traced: bars, the machine and commit they belong to, how they are printed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and what it must reach. `value` None means that this run did not measure it."""

    name: str
    value: float | None
    bar: float
    at_least: bool = True

    @property
    def ok(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "bar": self.bar,
            "at_least": self.at_least,
            "ok": self.ok,
        }


def make_console() -> Console:
    """A console whose tables keep their columns also where output is not a terminal."""
    console = Console(log_path=False)
    return console if console.is_terminal else Console(width=180, log_path=False)


def host() -> dict[str, Any]:
    """The computer that a figure was made on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg()[0],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The commit a figure belongs to; `+changes` where tracked files differ from it."""

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", *arguments], cwd=_REPOSITORY, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def print_bars(console: Console, bars: Iterable[Bar]) -> None:
    table = Table("bar", "value", "must be", "")
    words = {True: "[green]met[/]", False: "[red]missed[/]", None: "[yellow]not measured[/]"}
    for bar in bars:
        value = "-" if bar.value is None else f"{bar.value:.3g}"
        limit = f"{'≥' if bar.at_least else '≤'} {bar.bar:g}"
        table.add_row(bar.name, value, limit, words[bar.ok])
    if table.row_count:  # some are held to none: an operator's own policy, or any in open loop
        console.print()
        console.print(table)


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
