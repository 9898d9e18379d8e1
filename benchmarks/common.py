"""What every benchmark shares: where it ran, its bars, its JSON, and robust statistics."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from replay.figures import Bar, commit, host, make_console, print_bars, write_json

__all__ = ["Bar", "commit", "make_console", "print_bars", "write_json"]  # they live below

_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median of repeated measurements, with the lowest and the highest."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        seen = list(values)
        return cls(statistics.median(seen), min(seen), max(seen), len(seen))

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high, "n": self.n}


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a short run, for trying things out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every figure")


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware a figure belongs to."""
    facts = host() | {"threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
        facts["cuda"] = torch.version.cuda
    return facts


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def provenance(device: torch.device) -> dict[str, Any]:
    """What makes a figure traceable: machine, commit, date, versions."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "machine": machine(device),
        "commit": commit(),
        "date": now.isoformat(timespec="seconds"),
        "versions": versions(),
    }


def print_provenance(console: Console, facts: Mapping[str, Any]) -> None:
    where, used = facts["machine"], facts["versions"]
    gpu = f"{where['gpu']}, CUDA {where['cuda']}; " if "gpu" in where else ""
    libraries = ", ".join(f"{name} {version}" for name, version in used.items())
    console.print(
        f"{gpu}{where['cpu']}, {where['cores']} cores, {where['threads']} threads, "
        f"load {where['load_average']:.1f}; {libraries}; commit {facts['commit']}, {facts['date']}"
    )
