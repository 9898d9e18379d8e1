"""One command for a machine with one NVIDIA GPU: exactness, step times, crossovers, utilisation.

    python -m benchmarks.gpu [--quick] [--json FILE] [--model-shape 8b 3b] [--budget-s 520]

Needs Python 3.12, torch, transformers and what they bring; no Ray, no network, no checkpoint beyond
the demo model in the repository. Large models are random weights in the released shapes, made on
the device. The run keeps to its time budget and says what it left out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import gpu_analysis as analysis
from benchmarks import gpu_report as report
from benchmarks.common import (
    Bar,
    add_output_arguments,
    make_console,
    print_bars,
    print_provenance,
    provenance,
    write_json,
)
from benchmarks.gpu_cards import Peak, measured_peak, sheet_peak
from benchmarks.gpu_exact import Check, check_exactness
from benchmarks.gpu_kernels import KernelShare
from benchmarks.gpu_shapes import SHAPES
from benchmarks.gpu_steps import Effort, StepTime
from benchmarks.gpu_sweep import Budget, Sweep, SweepPlan
from benchmarks.workload import DEMO_CHECKPOINT, held_out_mix
from policies.vocabulary import AR, Mode, Plan, all_plans
from replicas.torch_engine.checkpoint import load_checkpoint
from replicas.torch_engine.cuda_graphs import capture_cuda_graph, replay_eagerly

_WALL_BAR_S = 540.0
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128)
# The middle context first: what the budget cuts off is cut off at the end.
_CONTEXTS = (1024, 256, 4096)


@dataclass(slots=True)
class Findings:
    checks: list[Check] = field(default_factory=list)
    steps: list[StepTime] = field(default_factory=list)
    kernels: list[KernelShare] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    sheet: Peak | None = None
    measured: Peak | None = None


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    budget = Budget(args.budget_s)
    device = _device(args.device)
    console, facts = make_console(), provenance(device)
    print_provenance(console, facts)
    if device.type == "cpu":
        console.print("No CUDA device: a rehearsal of the command, none of its figures a GPU's.")
    findings = Findings()
    _exactness(args, device, console, findings)
    _peaks(args, device, findings)
    _sweep(args, device, budget, console, findings)
    _finish(args, console, facts, budget, findings)
    return 1 if findings.failed else 0


def _exactness(
    args: argparse.Namespace, device: torch.device, console: Console, findings: Findings
) -> None:
    checkpoint = load_checkpoint(args.checkpoint)
    workload = held_out_mix(
        checkpoint, 3 if args.quick else 13, max_tokens=24 if args.quick else 64
    )
    capture = capture_cuda_graph if device.type == "cuda" else replay_eagerly
    quick = (AR, Plan(Mode.SELF_SPECULATION, 8))
    plans = {"plans": quick} if args.quick else {}
    findings.checks = check_exactness(checkpoint, workload, device, capture, **plans)
    report.show_exactness(console, findings.checks, str(device))


def _peaks(args: argparse.Namespace, device: torch.device, findings: Findings) -> None:
    small = args.quick or device.type == "cpu"
    side, megabytes = (256, 16) if small else (8192, 2048)
    findings.measured = measured_peak(device, _dtype(device), side=side, megabytes=megabytes)
    if device.type == "cuda":
        findings.sheet = sheet_peak(torch.cuda.get_device_properties(device).name)


def _sweep(
    args: argparse.Namespace,
    device: torch.device,
    budget: Budget,
    console: Console,
    findings: Findings,
) -> None:
    what = SweepPlan(
        plans=all_plans(),
        sequences=(1, 2) if args.quick else _SEQUENCES,
        contexts=(64, 128) if args.quick else _CONTEXTS,
        effort=Effort(1, 2, 2) if args.quick else Effort(),
    )
    for done, name in enumerate(args.model_shape):
        share = budget.share_of_rest(len(args.model_shape) - done)
        sweep = Sweep(name, SHAPES[name], _dtype(device), device, share, what, console.log)
        sweep.run()
        findings.steps += sweep.steps
        findings.kernels += sweep.kernels
        findings.skipped += sweep.skipped
        findings.failed += sweep.failed


def _finish(
    args: argparse.Namespace,
    console: Console,
    facts: dict[str, Any],
    budget: Budget,
    findings: Findings,
) -> None:
    assert findings.measured is not None
    found = analysis.throughputs(findings.steps)
    graphed = [s for s in findings.steps if s.graphs]
    element = torch.finfo(_dtype(_device(args.device))).bits // 8
    used = [analysis.utilisation(s, element) for s in analysis.telling_cells(graphed)]
    parts = analysis.breakdowns(findings.steps)
    report.show_steps(console, findings.steps)
    report.show_throughput(console, found)
    report.show_crossover(console, found)
    report.show_utilisation(console, used, findings.sheet, findings.measured)
    report.show_breakdown(console, parts)
    report.show_kernels(console, findings.kernels)
    for line in findings.skipped:
        console.print(f"[yellow]skipped[/] {line}")
    for line in findings.failed:
        console.print(f"[red]failed[/] {line}")
    bars = [
        Bar("runs whose tokens differ from AR's", _wrong(findings.checks), 0.0, at_least=False),
        Bar("cells that failed", float(len(findings.failed)), 0.0, at_least=False),
        Bar("seconds in all", budget.spent(), _WALL_BAR_S, at_least=False),
    ]
    print_bars(console, bars)
    figures = {
        "benchmark": "gpu",
        **facts,
        "rehearsal": facts["machine"].get("gpu") is None,
        "exactness": [c.to_dict() for c in findings.checks],
        "steps": [s.to_dict() for s in findings.steps],
        "throughput": [t.to_dict() for t in found],
        "utilisation": [u.to_dict() for u in used],
        "breakdown": [b.to_dict() for b in parts],
        "kernels": [k.to_dict() for k in findings.kernels],
        "skipped": findings.skipped,
        "failed": findings.failed,
        "bars": [bar.to_dict() for bar in bars],
    }
    write_json(args.json, figures)


def _wrong(checks: list[Check]) -> float:
    return float(sum(not check.ok for check in checks))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_output_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:n or cpu (a rehearsal)")
    parser.add_argument(
        "--model-shape", nargs="+", choices=list(SHAPES), default=["8b", "3b"], help="in this order"
    )
    parser.add_argument("--budget-s", type=float, default=520.0, help="seconds the run may take")
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT)
    return parser


if __name__ == "__main__":
    sys.exit(main())
