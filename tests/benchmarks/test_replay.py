"""The parts of benchmarks.replay that need no model. Run: pytest tests/benchmarks/test_replay.py"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.replay import Prompts, _chance, in_replay
from policies.vocabulary import BLOCK_LENGTHS, Plan, Schedule
from policies.worth import Worth
from replay.trace import Trace
from replay.traffic import Kinds
from tests.replay.builders import MACHINE


def test_a_round_accepted_to_its_end_rejects_nothing_and_the_last_one_neither() -> None:
    # 3 + 0 + 1 accepted; the second and third round of four were ended by a rejection.
    assert _chance([4, 1, 2], 4) == pytest.approx(4 / 5)
    assert 0.0 < _chance([1, 1, 1], 4) < 0.01
    assert 0.99 < _chance([4, 4, 4], 4) < 1.0


@pytest.mark.parametrize("governed", [False, True])
def test_replay_is_given_what_was_measured_and_finds_the_formula(governed: bool) -> None:
    count, plan = 4, Plan.parse("self_speculation/8")
    ones = np.ones(count, dtype=np.int64)
    trace = Trace("held-out", np.arange(count) * 1.0, ones * 100, ones * 2000, ones * 0)
    known = Prompts(trace, Kinds(dict.fromkeys(BLOCK_LENGTHS, (0.8,) * count)))
    worth = Worth((plan,), MACHINE) if governed else None
    seen = in_replay(known, MACHINE, Schedule.pinned(plan, worth=worth), 2)
    tokens = (1 - 0.8**8) / (1 - 0.8)
    assert seen.tokens == pytest.approx(tokens, rel=0.03)
    assert seen.step_s == pytest.approx(MACHINE.step_s(plan, 2, 2 * 1100), rel=0.03)
    assert seen.rate == pytest.approx(2 * tokens / seen.step_s, rel=0.03)
