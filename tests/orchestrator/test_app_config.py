"""The application's configuration. Run with: pytest tests/orchestrator/test_app_config.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.app_config import AppConfig
from orchestrator.config_page import to_markdown
from orchestrator.errors import ConfigError


def test_variables_of_the_environment_are_options_as_text() -> None:
    config = AppConfig.from_environment(
        {
            "TRIMODE_NUM_REPLICAS": "3",
            "TRIMODE_ADMIN_KEY": "secret",
            "TRIMODE_POLICY_OPTIONS": '{"local": false}',
            "TRIMODE_URL": "http://127.0.0.1:8000",
            "PATH": "/bin",
        }
    )
    assert (config.num_replicas, config.policy_options) == (3, {"local": False})
    assert len(config.api_settings.admin_keys) == 1


def test_a_variable_that_names_no_option_is_an_error() -> None:
    with pytest.raises(ConfigError, match="did you mean num_replicas"):
        AppConfig.from_environment({"TRIMODE_NUM_REPLICA": "3"})


def test_a_fault_never_shows_a_key() -> None:
    with pytest.raises(ConfigError) as raised:
        AppConfig(admin_key="secret", num_replicas=0)
    assert "secret" not in str(raised.value)


def test_the_demo_model_answers_greedily_unless_told_otherwise() -> None:
    assert AppConfig().api_settings.default_temperature == 0
    assert AppConfig(default_temperature=1).api_settings.default_temperature == 1
    assert AppConfig(model="/checkpoint").api_settings.default_temperature == 1


def test_a_replica_takes_a_gpu_where_the_device_is_one() -> None:
    assert AppConfig().gpus == 0
    assert AppConfig(device="cuda").gpus == 1
    assert AppConfig(device="cuda", num_gpus=0.5).gpus == 0.5


def test_the_configuration_page_says_what_the_models_say() -> None:
    page = Path(__file__).resolve().parents[2] / "docs/configuration.md"
    assert page.read_text(encoding="utf-8") == to_markdown()


def test_ports_of_metrics_pages_reach_the_replicas() -> None:
    from orchestrator.app import replica_options

    assert replica_options(AppConfig()).metrics_port == 0
    assert replica_options(AppConfig(metrics_port=9101)).metrics_port == 9101
    with pytest.raises(ConfigError, match="metrics_port"):
        AppConfig(metrics_port=65536)


@pytest.mark.parametrize(
    "given", ["--log-level info --name 'a b'", ["--log-level", "info", "--name", "a b"]]
)
def test_arguments_of_sglang_are_written_as_in_a_shell_or_a_list(given: object) -> None:
    config = AppConfig.model_validate({"sglang_args": given})
    assert config.sglang_args == ("--log-level", "info", "--name", "a b")
