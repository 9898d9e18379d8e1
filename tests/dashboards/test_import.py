"""`trimode dashboards import` against a double of Grafana. Run: pytest tests/dashboards"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli_dashboards import boards, dashboards
from tests.dashboards.grafana_double import TOKEN, VIEWER, GrafanaDouble, running


@pytest.fixture
def grafana() -> Iterator[GrafanaDouble]:
    with running() as double:
        yield double


def run(*arguments: str) -> Result:
    environment = {"GRAFANA_TOKEN": None, "GRAFANA_URL": None}
    return CliRunner().invoke(dashboards, ["import", *arguments], env=environment)


def fails(result: Result, *words: str) -> None:
    assert result.exit_code != 0
    assert result.output.count("Error:") == 1
    for word in words:
        assert word in result.output


def test_both_boards_arrive_as_committed(grafana: GrafanaDouble) -> None:
    result = run("--grafana", grafana.url + "/", "--token", TOKEN, "--folder", "Team")
    assert result.exit_code == 0, result.output
    assert f"{grafana.url}/d/trimode-latency/x" in result.output
    for board in boards():
        sent = grafana.boards[board["uid"]]
        assert sent["folderUid"] == "f1"
        assert sent["dashboard"] == {**board, "id": None}


def test_a_second_import_replaces_the_first(grafana: GrafanaDouble) -> None:
    for _ in range(2):
        assert run("--grafana", grafana.url, "--token", TOKEN).exit_code == 0
    assert len(grafana.boards) == 2


def test_a_folder_is_found_by_uid_and_made_on_demand(grafana: GrafanaDouble) -> None:
    where = ("--grafana", grafana.url, "--token", TOKEN)
    assert run(*where, "--folder", "f1").exit_code == 0
    assert run(*where, "--folder", "New", "--create-folder").exit_code == 0
    assert {sent["folderUid"] for sent in grafana.boards.values()} == {"f9"}


def test_a_wrong_folder_is_named_with_those_there_are(grafana: GrafanaDouble) -> None:
    result = run("--grafana", grafana.url, "--token", TOKEN, "--folder", "Teem")
    fails(result, "'Teem'", "Team", "--create-folder")
    assert not grafana.boards


def test_a_missing_token_says_where_to_get_one(grafana: GrafanaDouble) -> None:
    fails(run("--grafana", grafana.url), "no token", "Service accounts", "GRAFANA_TOKEN")


def test_a_wrong_token_is_told_from_one_with_too_few_rights(grafana: GrafanaDouble) -> None:
    fails(run("--grafana", grafana.url, "--token", "old"), "refuses the token", "Invalid API key")
    fails(run("--grafana", grafana.url, "--token", VIEWER), "may not do this", "Editor")


def test_a_wrong_address_is_told_from_a_wrong_token(grafana: GrafanaDouble) -> None:
    grafana.plain = True
    fails(run("--grafana", grafana.url, "--token", TOKEN), "--grafana is wrong")
    fails(run("--grafana", "http://127.0.0.1:9", "--token", TOKEN), "does not answer")
    fails(run("--grafana", "grafana:3000", "--token", TOKEN), "is no address")


def test_a_grafana_without_prometheus_is_pointed_out(grafana: GrafanaDouble) -> None:
    grafana.sources.clear()
    result = run("--grafana", grafana.url, "--token", TOKEN)
    assert result.exit_code == 0
    assert "no Prometheus data source" in result.output
