"""Whatever the signals say: no exception, no plan outside the allowed set, no change without a
reason. Run with: pytest tests/policies/test_properties.py"""

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.bandit import Bandit
from policies.base import BUILT_IN, load_policy
from policies.decisions import Decision, PlanSignals, Reading, Reason, Signals
from policies.guard import Guard, GuardState, Pin, Rules
from policies.predictive import Predictive
from policies.threshold import Threshold
from policies.vocabulary import SAFE_PLAN, Band, Schedule, all_plans
from tests.policies.synthetic import H100

OTHER = replace(H100, name="other", fingerprint=replace(H100.fingerprint, hardware="other"))
ANY_NUMBER = st.one_of(
    st.none(),
    st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e308]),
    st.floats(0, 100),
)
READINGS = st.builds(Reading, ANY_NUMBER, ANY_NUMBER)
PLANS = st.sampled_from(all_plans())
SIGNALS = st.builds(
    Signals,
    replica=st.just("r1"),
    decoding=READINGS,
    prefilling=READINGS,
    waiting=READINGS,
    tokens_per_s=READINGS,
    ttft_p50_s=READINGS,
    ttft_p95_s=READINGS,
    tpot_p50_s=READINGS,
    tpot_p95_s=READINGS,
    context_tokens=READINGS,
    kv_use=READINGS,
    plan=st.none() | PLANS,
    plans=st.dictionaries(
        PLANS,
        st.builds(
            PlanSignals,
            tokens_per_forward=READINGS,
            accepted_length=READINGS,
            step_s=READINGS,
            sequences=READINGS,
            acceptance=st.lists(st.floats(0, 1), max_size=40).map(tuple),
        ),
    ),
    profile=st.sampled_from([None, H100, replace(H100, max_positions=64), OTHER]),
)
TICKS = st.lists(
    st.tuples(SIGNALS, st.floats(0, 40), st.none() | st.tuples(PLANS, st.floats(0, 20))),
    min_size=1,
    max_size=12,
)


class Erratic:
    """A hostile policy: any schedule, any reason, sometimes an exception."""

    needs = ("decoding",)

    def __init__(self, answers):
        self.answers = answers

    def decide(self, signals, state, now):
        index = (state or 0) + 1
        answer = self.answers[index % len(self.answers)]
        if answer is None:
            raise ZeroDivisionError("no tokens")
        plans, reason = answer
        bands = [Band(4 * i + 4, plan) for i, plan in enumerate(plans[:-1])]
        return Decision(Schedule((*bands, Band(None, plans[-1]))), reason), index


POLICIES = st.one_of(
    st.sampled_from(sorted(BUILT_IN)).map(load_policy),
    st.just(Threshold(local=False)),
    st.builds(
        Predictive,
        local=st.booleans(),
        tpot_target_s=st.none() | st.floats(1e-4, 1.0),
        hysteresis=st.floats(0, 0.9),
        learns=st.booleans(),
    ),
    st.builds(
        Bandit,
        tpot_target_s=st.none() | st.floats(1e-4, 1.0),
        explore_every=st.integers(2, 5),
        most_loss=st.floats(0, 0.9),
    ),
    st.lists(
        st.none() | st.tuples(st.lists(PLANS, min_size=1, max_size=4), st.sampled_from(Reason)),
        min_size=1,
    ).map(Erratic),
)
RULES = st.builds(
    Rules,
    allowed=st.frozensets(PLANS),
    ttft_target_s=st.none() | st.floats(0.01, 10),
    tpot_target_s=st.none() | st.floats(0.01, 10),
    dwell_s=st.floats(0, 30),
    hold_s=st.floats(1, 60),
)


@settings(max_examples=200, deadline=None)
@given(POLICIES, RULES, TICKS)
def test_every_policy_stays_within_the_rules_whatever_the_signals_say(policy, rules, ticks):
    guard, state, now, last = Guard(policy, rules), None, 0.0, None
    for signals, wait_s, pin in ticks:
        now += wait_s
        if pin is not None:
            state = state or GuardState()
            state.pin = Pin(pin[0], now + pin[1])
        if len(signals.plans) % 2:
            state = guard.merge({"r1": state or GuardState()}, now)["r1"]
        decision, state = guard.decide(signals, state, now)
        assert "the policy raised" not in decision.detail or isinstance(policy, Erratic)
        assert set(decision.schedule.plans) <= rules.allowed | {SAFE_PLAN}
        assert decision.plan in decision.schedule.plans
        if last is None or decision.schedule != last.schedule:
            assert not decision.reason.is_hold
        assert all(value > 0.0 for value in decision.predicted.values())
        last = decision
