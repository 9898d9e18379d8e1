"""`trimode policy replay`: what policies would have done with recorded traffic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from policies.step_time import read_profile
from policies.vocabulary import Quality
from replay import contenders, report, runner, scenarios, trace
from replay.figures import commit, host, make_console, print_bars, write_json
from replay.outcome import Outcome


@click.command(short_help="Run recorded traffic through policies, in simulation.")
@click.option("--trace", "traces", default="azure23_conv", help="CSV file, name, or all.")
@click.option("--profile", "profiles", default="h100", help="File or name; several with commas.")
@click.option(
    "--policy",
    "policies",
    default="predictive,self_speculation/8,ar",
    show_default=True,
    help="Policies (NAME[:option=value][@PERIOD_S]) and fixed plans, or all.",
)
@click.option("--replicas", default=1, show_default=True)
@click.option("--closed", is_flag=True, help="Fix the requests in flight instead of arrivals.")
@click.option("--speed", type=float, help="Compress time by this. Closed loop: to 40 minutes.")
@click.option("--prefill/--no-prefill", default=None, help="Default: only in open loop.")
@click.option("--quality", type=click.Choice(["exact", "any"]), default="exact")
@click.option("--wrong-by", default=1.0, help="Every true step time off by up to this factor.")
@click.option("--as-profiled", is_flag=True, help="Steps take exactly what the profile says.")
@click.option("--scenario", type=click.Choice(sorted(scenarios.SCENARIOS)), help="A test instead.")
@click.option("--ttft-slo", default=2.0, show_default=True, help="Seconds.")
@click.option("--tpot-slo", default=0.02, show_default=True, help="Seconds.")
@click.option("--quick", is_flag=True, help="Five minutes out of the middle of each trace.")
@click.option("--seed", default=0)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Every figure, as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="A picture (needs matplotlib).")
def replay(
    traces: str,
    profiles: str,
    policies: str,
    scenario: str | None,
    ttft_slo: float,
    tpot_slo: float,
    json_path: Path | None,
    plot: Path | None,
    **how: Any,
) -> None:
    """Run traces through the real policies and governor, on simulated replicas.

    Regret is the share of a clairvoyant's throughput that is missing (--closed), or by how much
    longer a request takes (otherwise).
    """
    options = _options(**how)
    names = contenders.every(options.allowed) if policies == "all" else policies.split(",")
    for name in names:
        contenders.parse(name)  # a mistake is told before the first run
    console = make_console()
    measured = [read_profile(name) for name in profiles.split(",")]
    if scenario is not None:
        found = scenarios.SCENARIOS[scenario](measured, names, options)
        console.print(found.table())
        print_bars(console, found.bars())
        write_json(json_path, {"machine": host(), "commit": commit(), **found.to_dict()})
        return
    sources = trace.shipped() if traces == "all" else traces.split(",")
    comparisons = []
    with console.status("") as status:
        for found_one in runner.over_traces(
            sources, measured, names, options, _progress(status.update)
        ):
            comparisons.append(found_one)
            console.print(report.table(found_one, ttft_slo, tpot_slo))
    for summary in report.summaries(comparisons):
        console.print(summary)
    for remark in report.remarks(comparisons):
        console.print(remark)
    if options.is_closed:
        print_bars(console, report.bars(comparisons))
    figures = report.figures(comparisons, ttft_slo, tpot_slo)
    write_json(json_path, {"machine": host(), "commit": commit(), **figures})
    if plot is not None:
        from replay.plot import write

        write(comparisons, plot)


def _options(
    replicas: int,
    closed: bool,
    speed: float | None,
    prefill: bool | None,
    quality: str,
    wrong_by: float,
    as_profiled: bool,
    quick: bool,
    seed: int,
) -> runner.Options:
    return runner.Options(
        replicas=replicas,
        is_closed=closed,
        speed=speed,
        is_quick=quick,
        prefills=not closed if prefill is None else prefill,
        quality=Quality(quality),
        wrong_by=wrong_by,
        as_profiled=as_profiled,
        seed=seed,
    )


def _progress(update: Callable[[str], None]) -> Callable[[Outcome], None]:
    return lambda outcome: update(f"{outcome.label}: {outcome.tokens_per_s:.0f} tokens/s")
