"""Step times and the profiles that carry them. Run with: pytest tests/policies/test_step_time.py"""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.step_time import (
    Profile,
    ProfileMismatch,
    interpolate_log,
    read_profile,
    shipped_profile,
    shipped_profiles,
)
from policies.vocabulary import AR, all_plans
from tests.policies.synthetic import H100, SPEC_8

PLANS = st.sampled_from(all_plans())


@settings(deadline=None)
@given(PLANS, st.integers(1, 500), st.integers(1, 500), st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_sequences_or_more_context_never_make_a_step_shorter(plan, less, more, few, many):
    (less, more), (few, many) = sorted((less, more)), sorted((few, many))
    assert 0.0 < H100.step_s(plan, less, few) <= H100.step_s(plan, more, few) * (1 + 1e-12)
    assert H100.step_s(plan, less, few) <= H100.step_s(plan, less, many) * (1 + 1e-12)


def test_self_speculation_runs_two_forwards_a_step():
    diffusion = next(p for p in all_plans() if str(p) == "diffusion/8")
    assert H100.step_s(SPEC_8, 4, 4096) == pytest.approx(2 * H100.step_s(diffusion, 4, 4096))


def test_a_measured_ratio_scales_its_plan_and_no_other():
    slow = replace(H100, ratios={SPEC_8: ((1.0, 2.0), (16.0, 1.0))})
    assert slow.step_s(SPEC_8, 1, 512) == pytest.approx(2.0 * H100.step_s(SPEC_8, 1, 512))
    assert slow.step_s(SPEC_8, 4, 512) == pytest.approx(1.5 * H100.step_s(SPEC_8, 4, 512))
    assert slow.step_s(AR, 1, 512) == H100.step_s(AR, 1, 512)


def test_interpolation_is_constant_outside_its_points():
    points = ((2.0, 1.0), (8.0, 3.0))
    assert [interpolate_log(points, x) for x in (1.0, 2.0, 4.0, 8.0, 99.0)] == [1, 1, 2, 3, 3]


def test_a_profile_survives_json():
    profile = replace(H100, ratios={SPEC_8: ((1.0, 1.5),), AR: ((1.0, 0.9), (4.0, 1.1))})
    again = Profile.from_dict(json.loads(json.dumps(profile.to_dict(), allow_nan=False)))
    assert again == profile


@pytest.mark.parametrize("name", ["hardware", "model", "dtype", "engine"])
def test_a_profile_of_another_set_up_is_refused_by_name(name):
    here = replace(H100.fingerprint, **{name: "something else"})
    with pytest.raises(ProfileMismatch, match=rf"{name} is 'something else' here .*calibrate"):
        H100.check(here)
    H100.check(H100.fingerprint)


@pytest.mark.parametrize("damage", [{"format": 99}, {"curve": {}}, {"fingerprint": None}])
def test_what_is_no_profile_says_so_and_what_to_do(damage):
    with pytest.raises(ValueError, match="run trimode calibrate"):
        Profile.from_dict({**H100.to_dict(), **damage})


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_reads_and_says_where_it_is_from(name):
    profile = shipped_profile(name)
    assert profile.source in ("measured", "published", "roofline")
    assert profile.note
    assert all(math.isfinite(profile.step_s(p, 64, 65536)) for p in all_plans())


def test_a_profile_is_read_from_a_file_or_by_name(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(H100.to_dict()), encoding="utf-8")
    assert read_profile(str(path)) == read_profile("h100") == H100
    with pytest.raises(ValueError, match="h100"):
        read_profile("no-such-gpu")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"profile\.json"):
        read_profile(str(path))
