"""Runs every query of every board and rule against a real Prometheus, and fails on what is empty.

`python -m dashboards.verify`: a made-up hour (`trace.py`, the product's own exporters) is
backfilled into a throw-away server, so there is nothing to wait for and every run is the same. Then
each mutation breaks one thing, and must be found. Needs `prometheus` and `promtool` (Debian:
`apt-get install --no-install-recommends prometheus`).
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from dashboards import trace
from dashboards.build import RULES
from dashboards.checks import END, START, Queries, check
from dashboards.kit import Kit
from dashboards.mutations import MUTATIONS
from dashboards.throwaway import PrometheusError, Server, is_installed, promtool, serving

EVALUATION_S = 5
MISSING = "prometheus and promtool are not installed (Debian: apt-get install prometheus)"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dashboards.verify", description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="show what is good, too")
    parser.add_argument("--keep", type=float, default=0, metavar="SECONDS", help="serve on after")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    if not is_installed():
        print(MISSING, file=sys.stderr)
        return 2
    try:
        return _verify(options.verbose, options.keep)
    except PrometheusError as error:
        print(error, file=sys.stderr)
        return 1


def _verify(verbose: bool, keep_s: float) -> int:
    began, kit = time.monotonic(), Kit.load()
    with backfilled() as server:
        filled_s = time.monotonic() - began
        queries = Queries(server)
        findings = list(check(kit, queries))
        for where, problem in findings:
            if problem or verbose:
                print(f"{'FAIL' if problem else 'ok  '} {where}{': ' * bool(problem)}{problem}")
        asked, problems = queries.asked, sum(bool(problem) for _, problem in findings)
        missed = [] if problems else list(_unnoticed(kit, queries, verbose))
        for name in missed:
            print(f"FAIL the verifier does not notice {name} broken")
        caught = 0 if problems else len(MUTATIONS) - len(missed)
        print(
            f"{asked} queries, {len(kit.recording)} recording rules, {len(kit.alerts)} alerts, "
            f"{caught} of {len(MUTATIONS)} mutations caught, {problems} problems, "
            f"{time.monotonic() - began:.1f} s ({filled_s:.1f} s of it backfilling)"
        )
        if keep_s:
            print(f"serving at {server.url} for {keep_s:g} s; the hour ends at {END}", flush=True)
            time.sleep(keep_s)
    return bool(problems or missed)


def _unnoticed(kit: Kit, queries: Queries, verbose: bool) -> Iterator[str]:
    """Mutations that no check finds."""
    for name, mutate in MUTATIONS.items():
        found = next((f for f in check(mutate(kit), queries) if f[1]), None)
        if found is None:
            yield name
        elif verbose:
            print(f"caught {name}: {found[0]}: {found[1][:200]}")


@contextmanager
def backfilled() -> Iterator[Server]:
    """A server with the trace and everything that the recording rules make of it."""
    with tempfile.TemporaryDirectory(prefix="trimode-prometheus-") as name:
        folder = Path(name)
        page = folder / "trace.om"
        page.write_text("\n".join(trace.openmetrics(START)) + "\n", encoding="utf-8")
        data = folder / "data"
        promtool("tsdb", "create-blocks-from", "openmetrics", page, data)
        with serving(folder) as server:
            for rules in _passes(folder):
                _backfill(rules, server)
                server.restart()  # blocks are found at the start
            yield server


def _passes(folder: Path) -> Iterator[Path]:
    """The recording rules in two files: those that read others' series need these on disk."""
    groups = yaml.safe_load(RULES[0].read_text(encoding="utf-8"))["groups"]
    for index, chosen in enumerate((groups[:-1], groups[-1:])):
        path = folder / f"pass-{index}.yml"
        path.write_text(yaml.safe_dump({"groups": chosen}), encoding="utf-8")
        yield path


def _backfill(rules: Path, server: Server) -> None:
    promtool(
        *("tsdb", "create-blocks-from", "rules"),
        *(f"--start={START}", f"--end={END}", f"--eval-interval={EVALUATION_S}s"),
        *(f"--url={server.url}", f"--output-dir={server.data}", rules),
    )


if __name__ == "__main__":
    sys.exit(main())
