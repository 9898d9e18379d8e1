"""Adaptive against every fixed plan, on the real stack: demo model, Ray Serve, HTTP, this CPU.

    python -m benchmarks.adaptive [--quick] [--haproxy] [--quality any] [--json FILE] [--plot PNG]

One replica; a fixed plan is an operator's pin, adaptive is no pin. In every scenario all arms take
turns, round by round and in another order each round, over the same requests; the first half second
after each change of arm is not counted. Tokens are the replica's own count. The pinned arms run on
the replica that adaptive runs on, and its governor sees their steps too, so it knows other plans'
step times better than where nobody pins; `--separate` gives adaptive a replica of its own that is
never pinned.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import adaptive_reaction as reaction
from benchmarks.adaptive_analysis import Measured
from benchmarks.adaptive_bench import Bench, Settings, run, timelines, warm_up
from benchmarks.adaptive_load import Answer, Ask, Load, answers, pools
from benchmarks.adaptive_plot import draw
from benchmarks.adaptive_report import show, to_dict
from benchmarks.adaptive_scenarios import MOST
from benchmarks.adaptive_stack import Stack
from benchmarks.common import (
    add_output_arguments,
    make_console,
    print_provenance,
    provenance,
    write_json,
)
from benchmarks.overhead import ADMIN, serving
from orchestrator.app_config import AppConfig
from policies.vocabulary import AR, Quality

CHAT = "/v1/chat/completions"
SHARED, OWN, REMOTE = "adaptive", "unpinned", "remote"
REMOTE_WINDOW_S = 2.0  # two rounds: what configuration.md advises where the controller chooses


async def measure(
    port: int,
    names: Sequence[str],
    settings: Settings,
    args: argparse.Namespace,
    log: Callable[[str], None],
) -> Measured:
    """All scenarios and the replica's own reaction."""
    asks, measured = pools(), Measured()
    async with AsyncExitStack() as entered:
        apps = [await entered.enter_async_context(Stack(port, n, ADMIN)) for n in names]
        references = await _references(port, apps[0], asks, args.quality)
        measured.texts_compared = references is not None
        loads = [
            await entered.enter_async_context(Load(port, app.prefix + CHAT, asks, references))
            for app in apps
        ]
        before = [(await app.page()).tokens for app in apps]
        bench = Bench(
            {False: apps[0], True: apps[-1]}, {False: loads[0], True: loads[-1]}, measured, log
        )
        await warm_up(bench)
        await run(bench, settings)
        measured.local = await reaction.local(apps[-1], loads[-1], settings.trials)
        log("local reaction done")
        if args.plot is not None:
            await timelines(bench, settings)
        for app, load, tokens in zip(apps, loads, before, strict=True):
            await load.idle()
            _add_received(measured, load, (await app.page()).tokens - tokens)
    return measured


async def _references(
    port: int, app: Stack, asks: dict[str, list[Ask]], quality: Quality
) -> dict[Ask, Answer] | None:
    """AR's answers; none where diffusion may answer otherwise."""
    if quality is Quality.ANY:
        return None
    every = [ask for pool in asks.values() for ask in pool]
    return await answers(port, app.prefix + CHAT, every, AR)


def _add_received(measured: Measured, load: Load, generated: float) -> None:
    total, seen = measured.received, load.received
    total.requests += seen.requests
    total.tokens += seen.tokens
    total.failed += seen.failed
    total.wrong += seen.wrong
    total.errors += seen.errors
    measured.lost_tokens += generated - seen.tokens


async def _controller(port: int, settings: Settings) -> reaction.Reaction:
    """Reaction where the controller chooses at every round."""
    asks = pools()
    path = f"/{REMOTE}{CHAT}"
    async with Stack(port, REMOTE, ADMIN) as stack, Load(port, path, asks, None) as load:
        return await reaction.through_controller(stack, load, settings.trials)


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    if args.rounds is not None and args.rounds < 1:
        _parser().error(f"--rounds {args.rounds} must be at least 1")
    settings, console = Settings.of(args.quick), make_console()
    if args.rounds is not None:
        settings = replace(settings, rounds=args.rounds)
    torch.set_num_threads(1)
    facts = provenance(torch.device("cpu"))
    print_provenance(console, facts)
    options: dict[str, Any] = {"num_replicas": 1, "max_sequences": MOST, "quality": args.quality}
    names = [SHARED, OWN] if args.separate else [SHARED]
    began = time.monotonic()
    with serving("torch", args.haproxy) as (port, deploy):
        for name in names:
            deploy(name, **options)
        measured = asyncio.run(measure(port, names, settings, args, console.log))
        config = AppConfig.model_validate(options)
        measured.engine = reaction.on_engine(config, settings.trials)
        console.log("the engine's reaction done")
        from ray import serve

        for name in names:
            serve.delete(name)
        deploy(REMOTE, **options, policy_options={"local": False}, signal_window_s=REMOTE_WINDOW_S)
        measured.controller = asyncio.run(_controller(port, settings))
    took_s = time.monotonic() - began
    show(console, measured)
    console.print(f"took {took_s / 60:.1f} minutes")
    if args.plot is not None:
        draw(args.plot, measured, facts)
    used = {
        "quick": args.quick,
        "quality": args.quality.value,
        "separate": args.separate,
        "haproxy": args.haproxy,
        "fixed_s": settings.fixed_s,
        "fixed_rounds": settings.rounds * settings.fixed_to_moving,
        "moving_s": settings.moving_s,
        "moving_rounds": settings.rounds,
        "took_s": took_s,
    }
    figures = {"benchmark": "adaptive", **facts, "settings": used, **to_dict(measured)}
    write_json(args.json, figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adaptive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_output_arguments(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="where to draw the plot")
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="of moving loads, 4 by default; fixed ones have 3N, or N if quick",
    )
    parser.add_argument("--quality", type=Quality, choices=list(Quality), default=Quality.EXACT)
    parser.add_argument("--haproxy", action="store_true", help="HAProxy in place of Serve's proxy")
    parser.add_argument(
        "--separate", action="store_true", help="a replica of its own for adaptive, never pinned"
    )
    return parser


if __name__ == "__main__":
    main()
