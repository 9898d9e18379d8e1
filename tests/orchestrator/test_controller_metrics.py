"""What the controller exports. Run with: pytest tests/orchestrator/test_controller_metrics.py"""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.loop import LoopState
from orchestrator.metrics import ControllerMetrics
from orchestrator.signals import ERROR_KINDS
from policies.decisions import Decision, Reading, Reason, Signals
from policies.vocabulary import AR, Plan, Schedule
from replicas.catalogue import CONTROLLER_METRICS

SPEC_8 = Plan.parse("self_speculation/8")


def decided(reason=Reason.LOAD_ROSE, plan=AR, **fields):
    return Decision(
        Schedule.pinned(plan), reason, plan=plan, replica="r1", policy="threshold", **fields
    )


def metrics(errors=None):
    return ControllerMetrics("threshold", lambda: errors or {})


def ticked(decision, signals=None, **state):
    exported = metrics({"timeout": 3})
    known = {"r1": signals or Signals("r1")}
    exported.observe_tick({"r1": decision}, known, LoopState(7, **state), 1234.0, 0.004)
    return exported.registry.get_sample_value


def test_every_reason_and_kind_of_error_starts_at_zero():
    sample = metrics().registry.get_sample_value
    for reason in Reason:
        labels = {"policy": "threshold", "reason": reason.value}
        assert sample("trimode_decisions_total", labels) == 0
    for kind in ERROR_KINDS:
        assert sample("trimode_scrape_errors_total", {"kind": kind}) == 0
    assert sample("trimode_tick_seconds_count") == 0
    assert sample("trimode_replicas_known") == 0


def test_decisions_are_counted_by_policy_and_reason():
    exported = metrics()
    for reason in (Reason.HOLD_STEADY, Reason.HOLD_STEADY, Reason.LOAD_FELL):
        exported.observe_tick({"r1": decided(reason)}, {}, LoopState(1), 0.0, 0.001)
    sample = exported.registry.get_sample_value
    name = "trimode_decisions_total"
    assert sample(name, {"policy": "threshold", "reason": "hold_steady"}) == 2
    assert sample(name, {"policy": "threshold", "reason": "load_fell"}) == 1


def test_a_round_shows_what_was_decided_and_predicted():
    sample = ticked(decided(predicted={AR: 80.0, SPEC_8: 120.0}), advisory=True, version=9)
    labels = {"replica": "r1", "mode": "ar", "plan": "ar"}
    assert sample("trimode_decided_plan", labels) == 1
    assert sample("trimode_predicted_tokens_per_second", labels) == 80.0
    assert sample("trimode_controller_epoch") == 7
    assert sample("trimode_controller_advisory") == 1
    assert sample("trimode_schedules_issued_total") == 9
    assert sample("trimode_last_tick_timestamp_seconds") == 1234.0
    assert sample("trimode_tick_seconds_sum") == 0.004
    assert sample("trimode_scrape_errors_total", {"kind": "timeout"}) == 3


def test_a_missing_signal_is_not_a_zero():
    signals = Signals("r1", decoding=Reading(3.0, 0.5), waiting=Reading(None, 9.0))
    sample = ticked(decided(), signals)

    def known_and_age(name):
        labels = {"replica": "r1", "signal": name}
        age_s = sample("trimode_signal_age_seconds", labels)
        return sample("trimode_signal_known", labels), age_s

    assert known_and_age("decoding") == (1, 0.5)
    assert known_and_age("waiting") == (0, 9.0)
    assert known_and_age("kv_use") == (0, None)


def test_a_pin_shows():
    sample = ticked(decided(Reason.PINNED, SPEC_8))
    assert sample("trimode_pinned", {"replica": "r1"}) == 1


def test_a_replica_that_is_gone_leaves_no_series():
    exported = metrics()
    exported.observe_tick({"r1": decided()}, {}, LoopState(1), 0.0, 0.001)
    exported.observe_tick({}, {}, LoopState(1), 1.0, 0.001)
    assert b'replica="r1"' not in generate_latest(exported.registry)


def test_the_page_has_every_catalogued_series():
    exported = metrics()
    decision = decided(predicted={AR: 1.0})
    signals = {"r1": Signals("r1", decoding=Reading(1.0, 0.0))}
    exported.observe_tick({"r1": decision}, signals, LoopState(1), 0.0, 0.001)
    page = generate_latest(exported.registry).decode()
    types = {f.name: f.type for f in text_string_to_metric_families(page)}
    assert types == {m.full_name.removesuffix("_total"): m.type for m in CONTROLLER_METRICS}
