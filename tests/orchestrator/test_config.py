"""What an operator may choose. Run with: pytest tests/orchestrator/test_config.py"""

import pytest

from orchestrator.config import Config
from orchestrator.errors import ConfigError
from orchestrator.signals import DirectScrape, PrometheusServer
from policies.decisions import Reading, Signals
from policies.predictive import Predictive
from policies.threshold import DEFAULT_BANDS
from policies.vocabulary import AR, Band, Plan

SPEC_16 = Plan.parse("self_speculation/16")
DIFFUSION_8 = Plan.parse("diffusion/8")


def fault(**values):
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    return str(caught.value)


def test_the_defaults_are_a_demo_that_keeps_to_exact_plans():
    config = Config()
    assert (config.model_name, config.num_replicas, config.policy) == ("tiny", 2, "predictive")
    assert all(plan.is_exact for plan in config.plans)
    assert isinstance(config.make_guard().policy, Predictive)
    assert isinstance(config.make_source(), DirectScrape)


def test_the_threshold_policy_has_bands_of_its_own():
    assert Config(policy="threshold").make_guard().policy.bands == DEFAULT_BANDS


def test_the_predictive_policy_knows_the_tpot_target():
    policy = Config(tpot_target_s=0.05).make_guard().policy
    assert policy.tpot_limit_s == pytest.approx(0.03)


def test_values_may_be_text_as_a_command_line_has_them():
    config = Config(
        num_replicas="3",
        advisory="true",
        interval_s="0.5",
        api_keys="one, two",
        policy="threshold",
        bands="4=self_speculation/16,ar",
        allowed_plans="self_speculation/16",
    )
    assert config.num_replicas == 3
    assert config.advisory is True
    assert [key.get_secret_value() for key in config.api_keys] == ["one", "two"]
    assert config.bands == (Band(4, SPEC_16), Band(None, AR))
    assert config.plans == {SPEC_16, AR}


def test_bands_may_be_written_as_a_yaml_list():
    config = Config(
        policy="threshold", bands=[{"up_to": 4, "plan": "self_speculation/16"}, {"plan": "ar"}]
    )
    assert config.bands == (Band(4, SPEC_16), Band(None, AR))


def test_what_a_config_writes_it_reads_again():
    given = {"bands": "4=diffusion/8,ar", "quality": "any", "allowed_plans": "diffusion/8"}
    config = Config(policy="threshold", **given)
    assert Config(**config.model_dump(mode="json")) == config


def test_the_guard_gets_the_operators_rules():
    config = Config(policy="static", plan="diffusion/8", quality="any", ttft_target_s=0.5)
    guard = config.make_guard()
    assert guard.rules.ttft_target_s == 0.5
    assert guard.rules.ttl_s == config.schedule_ttl_s
    decision, _ = guard.decide(Signals("r", decoding=Reading(1, 0)), None, 0.0)
    assert (decision.plan, decision.policy) == (DIFFUSION_8, "static")


def test_policy_options_reach_the_policy():
    guard = Config(policy_options={"hysteresis": 0.3, "local": False}).make_guard()
    assert guard.policy.hysteresis == 0.3


def test_an_unknown_policy_lists_the_known_ones():
    with pytest.raises(ConfigError, match="static, threshold"):
        Config(policy="greedy").make_guard()


def test_the_served_name_is_the_models_own_unless_given():
    assert Config(model="nvidia/Some-Model-8B/").model_name == "Some-Model-8B"
    assert Config(served_model_name="m").api_settings.model_name == "m"


def test_signals_come_from_prometheus_when_one_is_named():
    config = Config(
        prometheus_url="https://prom:9090", prometheus_username="u", prometheus_password="p"
    )
    assert isinstance(config.make_source(), PrometheusServer)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_replicas": 0}, ["num_replicas=0", "at least 1", "raise it"]),
        ({"num_replicas": "two"}, ["num_replicas=two", "integer"]),
        ({"num_replica": 1}, ["num_replica is not an option", "did you mean num_replicas?"]),
        ({"zzz": 1}, ["zzz is not an option", "remove it"]),
        ({"engine": "vllm"}, ["engine=vllm", "'torch' or 'sglang'"]),
        ({"interval_s": -1}, ["interval_s=-1", "above 0"]),
        ({"ttft_target_s": "nan"}, ["ttft_target_s=nan", "finite"]),
        ({"plan": "spec/8", "policy": "static"}, ["plan=spec/8", "write ar, self_speculation/16"]),
        ({"bands": "4=ar"}, ["bands=4=ar", "last band must have no upper bound"]),
        ({"bands": "x=ar,ar"}, ["bound 'x' of a band must be a whole number"]),
        ({"bands": "8=ar,4=self_speculation/4,ar"}, ["strictly ascending"]),
        ({"bands": 7}, ["bands=7", "4=self_speculation/16,ar"]),
        ({"bands": "ar", "policy": "static"}, ["bands is for policy=threshold", "change"]),
        ({"plan": "ar"}, ["plan is for policy=static"]),
        ({"allowed_plans": "diffusion/8"}, ["diffusion/8 is not exact", "quality=any"]),
        (
            {"policy": "static", "plan": "diffusion/8"},
            ["plan diffusion/8 is not allowed", "quality=any"],
        ),
        ({"interval_s": 10}, ["stale_after_s=5", "at least twice interval_s=10", "raise it"]),
        ({"max_output_tokens": 4096}, ["max_output_tokens=4096", "max_context_tokens=2048"]),
        ({"prometheus_url": "prom:9090"}, ["prometheus_url=prom:9090", "http"]),
        ({"prometheus_username": "u"}, ["prometheus_url is missing", "set it"]),
        (
            {"prometheus_url": "http://p", "prometheus_username": "u"},
            ["prometheus_username and prometheus_password need each other"],
        ),
        (
            {
                "prometheus_url": "http://p",
                "prometheus_username": "u",
                "prometheus_password": "p",
                "prometheus_bearer_token": "t",
            },
            ["exclude each other", "keep one"],
        ),
    ],
)
def test_a_fault_is_one_line_with_key_value_and_remedy(values, words):
    message = fault(**values)
    assert "pydantic" not in message
    assert all(word in message for word in words), message


def test_several_faults_are_a_line_each():
    assert len(fault(num_replicas=0, engine="x", interval_s=0).splitlines()) == 3


def test_no_fault_shows_a_secret():
    for name in ("api_keys", "admin_key", "prometheus_password", "prometheus_bearer_token"):
        message = fault(**{name: {"hush": "hunter2"}})
        assert name in message
        assert "hunter2" not in message
    assert "hunter2" not in repr(Config(admin_key="hunter2", api_keys=["hunter2"]))


def test_a_config_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        Config().num_replicas = 5


def test_every_option_says_what_it_is_for():
    for name, field in Config.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_schema_is_published():
    properties = Config.model_json_schema()["properties"]
    assert properties["allowed_plans"]["default"] is None
    assert set(properties) == set(Config.model_fields)
