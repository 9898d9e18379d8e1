"""`pytest tests/benchmarks/test_decide.py`"""

from __future__ import annotations

import pytest

from benchmarks import decide
from policies.base import BUILT_IN


def test_every_built_in_policy_is_timed() -> None:
    assert {name for name, _ in decide.CONTENDERS} == set(BUILT_IN)


@pytest.mark.parametrize(("name", "options"), decide.CONTENDERS)
def test_a_round_of_the_whole_fleet_is_timed(name: str, options: dict[str, object]) -> None:
    timing = decide.decide(name, options, rounds=3)
    assert len(timing.wall) == len(timing.cpu) == 3
    figures = timing.to_dict()
    assert 0.0 < figures["least_ms"] <= figures["median_ms"] <= figures["p95_ms"]
    assert figures["merge_ms"] > 0.0
