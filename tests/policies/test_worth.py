"""What travels to a replica. Run with: pytest tests/policies/test_worth.py"""

import json

import pytest

from policies.vocabulary import AR, SAFE_PLAN, Schedule, all_plans
from policies.worth import Worth
from tests.policies.synthetic import DIFFUSION_8, EXACT, H100, SPEC_4, SPEC_8, SPEC_16

FULL = Worth(
    all_plans(),
    H100,
    chances=(0.7,) * 31,
    diffusion={4: 0.5, 8: 0.4, 16: 0.3, 32: 0.2},
    corrections={SPEC_8: 1.2},
    tpot_limit_s=0.02,
    hysteresis=0.1,
    probe_share=0.01,
    learns=False,
)


def test_a_schedule_with_a_worth_survives_json():
    schedule = Schedule.pinned(AR, worth=FULL, epoch=3, version=4, dwell_s=0.5)
    again = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict(), allow_nan=False)))
    assert again == schedule
    assert again.worth == FULL


def test_the_safe_plan_is_always_among_the_plans():
    assert Worth((SPEC_8,), H100).plans == (SAFE_PLAN, SPEC_8)


def test_plans_that_become_equal_are_one():
    capped = FULL.map_plans(lambda plan: plan if plan in (AR, SPEC_4) else SPEC_4)
    assert capped.plans == (AR, SPEC_4)
    assert FULL.map_plans(lambda plan: plan) is FULL


def test_a_schedule_with_a_worth_names_the_worths_plans():
    schedule = Schedule.pinned(SPEC_16, worth=Worth(EXACT, H100))
    assert schedule.plans == EXACT
    assert DIFFUSION_8 not in schedule.plans


@pytest.mark.parametrize(
    ("name", "value"), [("hysteresis", 1.0), ("probe_share", 0.5), ("tpot_limit_s", -1.0)]
)
def test_a_figure_that_makes_no_sense_is_named(name, value):
    with pytest.raises(ValueError, match=name.split("_")[0] + rf".*{value}"):
        Worth(EXACT, H100, **{name: value})
