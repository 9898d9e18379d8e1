"""Boards and rules: generated, well-formed, and every query answered by a real Prometheus."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

pytest.importorskip(
    "grafana_foundation_sdk", reason="the dashboards extra is not installed: pip install .[dev]"
)

from dashboards import build, checks, roundtrip, verify
from dashboards.kit import REPOSITORY, UNIT_TESTS, Kit
from dashboards.lint import lint_board, lint_rules
from dashboards.plans import PLAN_CODES
from dashboards.throwaway import is_installed, promtool, serving
from tests.dashboards.live_application import KEY, running

needs_prometheus = pytest.mark.skipif(not is_installed(), reason=verify.MISSING)
KIT = Kit.load()


def test_committed_files_are_what_the_code_builds() -> None:
    assert build.stale() == []


@pytest.mark.parametrize("board", KIT.boards, ids=lambda board: board["uid"])
def test_a_board_has_no_faults_and_survives_grafanas_own_models(board: checks.Json) -> None:
    assert list(lint_board(board, KIT.recorded)) == []
    assert list(roundtrip.lost(board)) == []


def test_rules_have_no_faults_and_every_alert_has_a_runbook_entry() -> None:
    assert list(lint_rules(KIT.groups, KIT.runbook)) == []


def test_every_catalogued_metric_is_shown_or_alerted_on() -> None:
    assert list(checks._coverage(KIT)) == []


def test_every_plan_has_its_code_in_the_recording_rules() -> None:
    (rule,) = (r for r in KIT.recording if r["record"] == "replica:trimode_plan:code")
    for plan, code in PLAN_CODES.items():
        assert f'{code} * trimode_plan_active{{plan="{plan}"}}' in rule["expr"]


def test_the_prometheus_rule_object_carries_the_same_groups() -> None:
    document = yaml.safe_load(build.PROMETHEUS_RULE.read_text("utf-8"))
    assert document["spec"]["groups"] == KIT.groups


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "deploy").rglob("*.yml")), ids=lambda p: p.name
)
def test_configuration_is_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text("utf-8"))


@needs_prometheus
def test_prometheus_accepts_its_configuration() -> None:
    promtool("check", "config", "--syntax-only", REPOSITORY / "deploy/prometheus/prometheus.yml")


@needs_prometheus
def test_the_shipped_configuration_finds_scrapes_and_records_an_application(tmp_path: Path) -> None:
    config = (REPOSITORY / "deploy/prometheus/prometheus.yml").read_text("utf-8")
    (tmp_path / "admin-key").write_text(KEY)
    with running() as address:
        for old, new in {
            "http://127.0.0.1:8000": address,
            "../../dashboards": str(REPOSITORY / "dashboards"),
            "scrape_interval: 5s": "scrape_interval: 1s",
            "refresh_interval: 5s": "refresh_interval: 1s",
        }.items():
            assert old in config
            config = config.replace(old, new)
        headers = {"authorization": f"Bearer {KEY}"}
        with serving(tmp_path, config) as server:

            def ask(expr: str) -> dict[str, float]:
                # Every look at the replicas is a second of work for them.
                httpx.get(f"{address}/control/v1/replicas", headers=headers)
                rows = server.api("query", query=expr)["result"]
                return {" ".join(row["metric"].values()): float(row["value"][1]) for row in rows}

            assert _eventually(lambda: ask("count by (job, component) (up == 1)")) == {
                "replica trimode": 2.0,
                "controller trimode": 1.0,
            }
            codes = _eventually(lambda: ask("max by (replica) (replica:trimode_plan:code)"))
            assert codes.keys() == {"replica-0", "replica-1"}
            assert _eventually(lambda: ask("sum by (job) (trimode_decisions_total) > 0"))


def _eventually(answer: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The first answer that is the same twice and not empty, or the last one."""
    deadline, last = time.monotonic() + 45, answer()
    while time.monotonic() < deadline:
        time.sleep(2.5)
        last, before = answer(), last
        if last and last.keys() == before.keys():
            break
    return last


@needs_prometheus
def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", *build.RULES)


@needs_prometheus
@pytest.mark.parametrize("path", sorted(UNIT_TESTS.glob("*.test.yml")), ids=lambda p: p.name)
def test_rules_do_what_their_unit_tests_say(path: Path) -> None:
    promtool("test", "rules", path)


@needs_prometheus
def test_every_query_has_data_and_every_mutation_is_noticed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert verify.main([]) == 0, capsys.readouterr().out
    finally:
        signal.signal(signal.SIGTERM, before)
    with capsys.disabled():
        print("\n" + capsys.readouterr().out.strip())


@needs_prometheus
def test_a_killed_verifier_leaves_no_server_behind(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from dashboards.throwaway import Server;"
        "s = Server(pathlib.Path(sys.argv[1]), '{}'); s.start();"
        "print(s._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
