"""Rules at another pace. Run with: pytest tests/dashboards/test_scaled.py"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dashboards.build import RULES
from dashboards.scaled import scaled
from dashboards.throwaway import is_installed, promtool

UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
DURATION = re.compile(r"(?<![\w.])(\d+)(ms|s|m|h)\b")


def seconds(text: str) -> list[float]:
    return [int(number) * UNITS_S[unit] for number, unit in DURATION.findall(text)]


def without_durations(text: str) -> str:
    ages = re.sub(r"(time\(\) -[^<>]*[<>]=? )[\d.]+", r"\1AGE", text)
    counts = re.sub(r"(increase\(.*> )[\d.]+", r"\1COUNT", ages)
    return DURATION.sub("DURATION", counts)


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_every_duration_is_divided_and_nothing_else_changes(path: Path) -> None:
    text = path.read_text("utf-8")
    before, after = yaml.safe_load(text), yaml.safe_load(scaled(text, 10))
    pairs = [
        (str(was.get(key)), str(now.get(key)))
        for old, new in zip(before["groups"], after["groups"], strict=True)
        for was, now in [(old, new), *zip(old["rules"], new["rules"], strict=True)]
        for key in ("record", "alert", "labels", "annotations", "interval", "for", "expr")
    ]
    assert any(was != now for was, now in pairs)
    for was, now in pairs:
        assert without_durations(now) == without_durations(was)
        assert seconds(now) == [max(1.0, s / 10) for s in seconds(was)]


def alert(name: str) -> dict[str, str]:
    groups = yaml.safe_load(scaled(RULES[1].read_text("utf-8"), 10))["groups"]
    (rule,) = (r for group in groups for r in group["rules"] if r["alert"] == name)
    return rule


def test_the_age_of_the_last_round_is_a_duration_too() -> None:
    rule = alert("TrimodeControllerGone")
    assert rule["expr"].rstrip().endswith("< 3")
    assert rule["for"] == "3000ms"


def test_a_count_over_a_window_asks_for_the_same_rate() -> None:
    assert alert("TrimodeModeFlapping")["expr"].endswith("[30000ms])) > 15")
    assert alert("TrimodePolicyError")["expr"].endswith("[30000ms])) > 0")


@pytest.mark.parametrize("factor", [0, -1, float("nan")])
def test_a_factor_that_is_not_above_zero_is_an_error(factor: float) -> None:
    with pytest.raises(ValueError, match=r"factor .* must be above 0"):
        scaled("groups: []", factor)


def test_a_duration_in_another_notation_is_an_error_and_not_left_as_it_is() -> None:
    rules = "groups: [{name: g, rules: [{alert: A, expr: up, for: 1h30m}]}]"
    with pytest.raises(ValueError, match="1h30m"):
        scaled(rules, 10)


@pytest.mark.skipif(not is_installed(), reason="promtool is not installed")
def test_prometheus_accepts_the_scaled_rules(tmp_path: Path) -> None:
    for path in RULES:
        copy = tmp_path / path.name
        copy.write_text(scaled(path.read_text("utf-8"), 10), "utf-8")
        promtool("check", "rules", copy)
