"""Tokens/s of every plan at every concurrency on this CPU, beside Hugging Face `generate`.

    python -m benchmarks.modes [--quick] [--json FILE] [--plot FILE.png]

The demo model decodes the same held-out requests under every plan in a closed loop: a finished
request is replaced at once, and a window opens when the loop is full and steady. Repeats are
interleaved, the order of plans rotates from repeat to repeat, and figures are medians. Output
tokens/s come from the whole window, decode tokens/s from its steps that had nothing to prefill.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import modes_report as report
from benchmarks.closed_loop import LoopRun, limits_for, measure, set_threads
from benchmarks.common import (
    add_output_arguments,
    make_console,
    print_provenance,
    provenance,
    write_json,
)
from benchmarks.hf_baseline import HfModel, HfRun
from benchmarks.step_share import StepShare, step_share
from benchmarks.switch_cost import SwitchCost, switch_cost
from benchmarks.workload import DEMO_CHECKPOINT, Workload, held_out_mix
from policies.vocabulary import AR, Mode, Plan, all_plans
from replicas.torch_engine.checkpoint import Checkpoint, load_checkpoint
from replicas.torch_engine.engine import TorchEngine, positions_needed
from replicas.torch_engine.model import Model

_LEVELS = (1, 2, 4, 8, 16, 32)
_HF_LEVELS = (1, 16)
_SS8, _SS16 = Plan(Mode.SELF_SPECULATION, 8), Plan(Mode.SELF_SPECULATION, 16)
_SWITCH_PAIRS = ((_SS8, _SS16), (AR, _SS8))
_SWITCH_LEVELS = (1, 8, 32)


@dataclass(slots=True)
class Settings:
    levels: tuple[int, ...]
    plans: tuple[Plan, ...]
    requests: int
    repeats: int
    switch_seconds: float
    share_repeats: int


@dataclass(slots=True)
class Measured:
    """Everything one run saw."""

    loops: dict[tuple[Plan, int], list[LoopRun]] = field(default_factory=lambda: defaultdict(list))
    hf: dict[int, list[HfRun]] = field(default_factory=lambda: defaultdict(list))
    switches: list[SwitchCost] = field(default_factory=list)
    shares: list[StepShare] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    set_threads(args.threads)
    settings, dtype = _settings(args), getattr(torch, args.dtype)
    console = make_console()
    checkpoint = load_checkpoint(args.checkpoint)
    workload = held_out_mix(checkpoint, settings.requests)
    limits = limits_for(list(settings.levels))
    model = Model(
        checkpoint.config,
        checkpoint.weights,
        max_positions=positions_needed(limits),
        dtype=dtype,
        device=torch.device("cpu"),
    )
    facts = provenance(torch.device("cpu"))
    print_provenance(console, facts)
    measured = _measure(settings, model, checkpoint, workload, console.log)
    bars = report.bars(measured.loops, measured.hf, measured.switches)
    report.show(console, measured.loops, measured.hf, measured.switches, measured.shares, bars)
    if args.plot is not None:
        report.plot(args.plot, measured.loops, measured.hf, facts, args.dtype)
    figures = report.to_dict(measured.loops, measured.hf, measured.switches, measured.shares, bars)
    used = {"dtype": args.dtype, "requests": settings.requests, "repeats": settings.repeats}
    write_json(args.json, {"benchmark": "modes", **facts, "settings": used, **figures})


def _measure(
    settings: Settings,
    model: Model,
    checkpoint: Checkpoint,
    workload: Workload,
    log: Callable[[str], None],
) -> Measured:
    measured = Measured()
    hf = HfModel(checkpoint, model.dtype)
    _warm_up(settings, model, hf, workload)
    for repeat in range(settings.repeats):
        for level in settings.levels:
            _one_level(settings, model, workload, level, repeat, measured)
            if level in _HF_LEVELS:
                measured.hf[level].append(hf.run(workload, level))
        log(f"repeat {repeat + 1} of {settings.repeats} done")
    levels = [level for level in settings.levels if level in _SWITCH_LEVELS]
    for level in levels:
        for pair in _SWITCH_PAIRS:
            cost = switch_cost(model, workload, pair, level, settings.switch_seconds)
            measured.switches.append(cost)
        log(f"cost of changing the plan at {level} sequences done")
    measured.shares = _shares(model, measured.switches, settings.share_repeats)
    return measured


def _warm_up(settings: Settings, model: Model, hf: HfModel, workload: Workload) -> None:
    few = Workload(workload.prompts[:2], workload.max_tokens)
    for plan in settings.plans:
        _one_run(model, few, plan, 1, 1)
    hf.run(few, 2)


def _one_level(
    settings: Settings,
    model: Model,
    workload: Workload,
    level: int,
    repeat: int,
    measured: Measured,
) -> None:
    turn = repeat % len(settings.plans)
    for plan in settings.plans[turn:] + settings.plans[:turn]:
        run = _one_run(model, workload, plan, level, settings.requests)
        measured.loops[plan, level].append(run)


def _one_run(model: Model, workload: Workload, plan: Plan, level: int, requests: int) -> LoopRun:
    # A fresh engine each time, so that no plan inherits how another one left the KV pool cut.
    return measure(TorchEngine(model, None, limits_for([level])), workload, plan, level, requests)


def _shares(model: Model, switches: list[SwitchCost], repeats: int) -> list[StepShare]:
    """Where a step's time goes, for the fixed loops of the switch test."""
    steps = {
        (plan, s.concurrency): (seconds, s.context)
        for s in switches
        for plan, seconds in zip((s.first, s.second), s.fixed, strict=True)
    }
    return [
        step_share(model, plan, level, seconds, context, repeats)
        for (plan, level), (seconds, context) in steps.items()
    ]


def _settings(args: argparse.Namespace) -> Settings:
    settings = Settings(
        levels=tuple(args.levels or ((1, 8) if args.quick else _LEVELS)),
        plans=tuple(args.plans or all_plans()),
        requests=args.requests or (13 if args.quick else 65),
        repeats=args.repeats or (1 if args.quick else 5),
        switch_seconds=1.0 if args.quick else 30.0,
        share_repeats=20 if args.quick else 200,
    )
    if AR not in settings.plans:
        settings.plans = (AR, *settings.plans)
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.modes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_output_arguments(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="where to draw the plot")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT)
    parser.add_argument("--levels", type=_list_of(int), help="e.g. 1,2,4")
    parser.add_argument("--plans", type=_list_of(Plan.parse), help="e.g. ar,self_speculation/8")
    parser.add_argument("--requests", type=int, help="measured requests per plan and level")
    parser.add_argument("--repeats", type=int)
    return parser


def _list_of(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [parse(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
