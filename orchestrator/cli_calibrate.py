"""`trimode calibrate`: how long steps take here, and which plan that makes the best one."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from orchestrator import calibration_report as report
from orchestrator.app_config import DEMO_MODEL
from policies.step_time import Profile, read_profile
from replay.figures import commit, host, make_console, print_bars, write_json

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Measure step times and show which plan is best when.")
@click.option("--model", default=DEMO_MODEL, show_default=True, help="Checkpoint folder or id.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--dtype", default="auto", help="auto, float32 or bfloat16.")
@click.option("--threads", default=1, show_default=True, help="CPU threads; 0 leaves it to torch.")
@click.option("--max-num-seqs", default=64, show_default=True, help="As trimode serve has it.")
@click.option("--max-model-len", default=2048, show_default=True, help="As trimode serve has it.")
@click.option("--budget-s", type=click.FloatRange(0.1, 3600), help="Seconds; by model, 6 to 120.")
@click.option("--acceptance", type=click.FloatRange(0, 1), help="Chance of a drafted token.")
@click.option("--quality", type=click.Choice(["exact", "any"]), default="exact")
@click.option("--show", metavar="PROFILE", help="Show a file or a shipped profile; no measuring.")
@click.option("--against", metavar="PROFILE", help="Compare with an earlier profile of this kind.")
@click.option("--output", type=_FILE, help="Profile; by default where trimode serve looks for it.")
@click.option("--json", "json_path", type=_FILE, help="Profile and crossovers, as JSON.")
@click.option("--plot", type=_FILE, help="Tokens/s by sequences (needs matplotlib).")
def calibrate(
    model: str,
    device: str,
    dtype: str,
    threads: int,
    max_num_seqs: int,
    max_model_len: int,
    budget_s: float | None,
    acceptance: float | None,
    quality: str,
    show: str | None,
    against: str | None,
    output: Path | None,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Measure how long steps of every plan take on this machine, and write a profile.

    Which plan is best also depends on how many drafted tokens are accepted, which the traffic
    decides: the tables say what they assume, and a replica measures it as it runs.
    """
    console = make_console()
    earlier = None if against is None else read_profile(against)
    if show is not None:
        profile = read_profile(show)
    else:
        what = _What(model, device, dtype, threads, max_num_seqs, max_model_len)
        profile = _measure(what, budget_s, output, console)
    if earlier is not None:
        profile.check(earlier.fingerprint)
    assumed = report.Assumed.of(acceptance)
    report.show(console, profile, assumed, diffusion=quality == "any")
    figures: dict[str, Any] = _traced() | report.to_dict(profile, assumed)
    if earlier is not None:
        figures |= _compare(console, earlier, profile, assumed)
    write_json(json_path, figures)
    if plot is not None:
        report.plot(plot, profile, assumed)


@dataclass(frozen=True, slots=True)
class _What:
    model: str
    device: str
    dtype: str
    threads: int
    max_sequences: int
    max_context_tokens: int


def _measure(what: _What, budget_s: float | None, output: Path | None, console: Console) -> Profile:
    # torch and transformers take seconds to import, so --help and usage errors do without them.
    from replicas.profiles import cache_path, calibrate, write_profile
    from replicas.tiny import CHECKPOINT
    from replicas.torch_engine.checkpoint import load_checkpoint, resolve
    from replicas.torch_engine.engine import EngineLimits
    from replicas.torch_engine.loader import LoadOptions, build_engine

    model = str(CHECKPOINT) if what.model == DEMO_MODEL else what.model
    limits = EngineLimits(
        max_context_tokens=what.max_context_tokens, max_sequences=what.max_sequences, kv_tokens=0
    )
    options = LoadOptions(what.device, what.dtype, what.threads, limits=limits)
    engine = build_engine(load_checkpoint(resolve(model)), options)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        profile = calibrate(
            engine,
            model,
            budget_s,
            lambda share, words: bar.update(task, completed=share, description=words),
        )
    path = output or cache_path(profile.fingerprint)
    write_profile(profile, path)
    console.print(f"profile written to {path}")
    return profile


def _compare(
    console: Console, earlier: Profile, profile: Profile, assumed: report.Assumed
) -> dict[str, Any]:
    pairs = report.paired(earlier, profile, assumed)
    bars = [report.compare(console, pairs)]
    print_bars(console, bars)
    return {
        "against": earlier.to_dict(),
        "moved": [
            {
                "was": report.crossover_dict(was),
                "is": report.crossover_dict(now),
                "within_noise": was.agrees(now),
            }
            for was, now in pairs
        ],
        "bars": [bar.to_dict() for bar in bars],
    }


def _traced() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"command": "calibrate", "machine": host(), "commit": commit(), "date": now}
